// Received messages and the pool that their payload buffers come from. Private to transport/.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "transport/data/transport.h"

namespace atl::transport {

// 64-byte aligned buffers, kept for reuse: the first touch of fresh memory costs more than a
// message (0.4-12 GB/s on a guest whose host hands memory over lazily). Any thread: a message may
// be dropped by whoever read it last.
class BufferPool {
 public:
  // Bytes kept for reuse, at most. Twice the largest default message, so that a steady flow of
  // either kind never allocates.
  static constexpr size_t kKeptBytesMax = 128u << 20;

  struct Free {
    void operator()(std::byte* p) const { std::free(p); }
  };
  using Block = std::unique_ptr<std::byte, Free>;

  // A buffer of at least `bytes`; *capacity is its true size, to be handed back in give(). Throws
  // std::bad_alloc.
  Block take(size_t bytes, size_t* capacity);
  void give(Block block, size_t capacity) noexcept;

 private:
  std::mutex mutex_;
  std::map<size_t, std::vector<Block>> free_;  // by capacity, a power of two
  size_t kept_bytes_ = 0;
};

// A message whose payload lies in a pooled buffer.
class PooledMessage final : public Message {
 public:
  PooledMessage(std::shared_ptr<BufferPool> pool, std::span<const std::byte> header,
                size_t payload_bytes);
  ~PooledMessage() override;
  PooledMessage(const PooledMessage&) = delete;
  PooledMessage& operator=(const PooledMessage&) = delete;

  std::span<const std::byte> header() const override { return header_; }
  std::span<const std::byte> payload() const override { return {block_.get(), payload_bytes_}; }
  std::byte* payload_data() { return block_.get(); }

 private:
  std::shared_ptr<BufferPool> pool_;
  std::vector<std::byte> header_;
  BufferPool::Block block_;
  size_t capacity_ = 0;
  size_t payload_bytes_ = 0;
};

}  // namespace atl::transport
