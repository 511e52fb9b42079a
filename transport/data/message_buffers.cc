#include "transport/data/message_buffers.h"

#include <algorithm>
#include <bit>
#include <new>

namespace atl::transport {

namespace {
constexpr size_t kSmallestBlock = 4096;
}

BufferPool::Block BufferPool::take(size_t bytes, size_t* capacity) {
  *capacity = std::bit_ceil(std::max(bytes, kSmallestBlock));
  {
    std::lock_guard lock(mutex_);
    auto& blocks = free_[*capacity];
    if (!blocks.empty()) {
      Block block = std::move(blocks.back());
      blocks.pop_back();
      kept_bytes_ -= *capacity;
      return block;
    }
    // give() must not allocate.
    blocks.reserve(std::max<size_t>(16, blocks.capacity()));
  }
  auto* p = static_cast<std::byte*>(std::aligned_alloc(64, *capacity));
  if (p == nullptr) throw std::bad_alloc();
  return Block(p);
}

void BufferPool::give(Block block, size_t capacity) noexcept {
  if (!block) return;
  std::lock_guard lock(mutex_);
  auto blocks = free_.find(capacity);
  if (blocks == free_.end() || blocks->second.size() == blocks->second.capacity()) return;
  if (kept_bytes_ + capacity > kKeptBytesMax) return;
  kept_bytes_ += capacity;
  blocks->second.push_back(std::move(block));
}

PooledMessage::PooledMessage(std::shared_ptr<BufferPool> pool, std::span<const std::byte> header,
                             size_t payload_bytes)
    : pool_(std::move(pool)),
      header_(header.begin(), header.end()),
      block_(pool_->take(payload_bytes, &capacity_)),
      payload_bytes_(payload_bytes) {}

PooledMessage::~PooledMessage() { pool_->give(std::move(block_), capacity_); }

}  // namespace atl::transport
