// Messages one after the other in a stream of bytes, as on the encrypted link: a prefix (magic,
// sizes), the header, the payload (drawn in docs/wire.md). Private to transport/.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "base/result.h"
#include "transport/data/message_buffers.h"

namespace atl::transport {

// In front of every message.
struct MessagePrefix {
  uint32_t magic;
  uint32_t header_bytes;
  uint64_t payload_bytes;
};
static_assert(sizeof(MessagePrefix) == 16);
inline constexpr uint32_t kMessageMagic = 0x314d4c41;  // "ALM1"

// Puts messages together from pieces of any size. Memory for a payload is taken once its size is
// known to be allowed.
class MessageReader {
 public:
  // payload_bytes_max: larger ones are refused.
  MessageReader(std::shared_ptr<BufferPool> pool, size_t payload_bytes_max)
      : pool_(std::move(pool)), payload_bytes_max_(payload_bytes_max) {}

  // Where the next bytes of the stream go, at least one. With `keep` false a payload that begins
  // now is read and forgotten.
  std::span<std::byte> room(bool keep);
  // So many of them are there. A message if that was its last byte and it was kept; kInvalid, and
  // nothing may follow, if the stream is none of ours.
  Result<std::unique_ptr<PooledMessage>> filled(size_t bytes);

 private:
  enum class Part : uint8_t { kPrefix, kHeader, kPayload };

  const std::shared_ptr<BufferPool> pool_;
  const size_t payload_bytes_max_;
  Part part_ = Part::kPrefix;
  size_t done_ = 0;  // of the part
  MessagePrefix prefix_{};
  std::vector<std::byte> header_;
  std::unique_ptr<PooledMessage> message_;  // of the payload that is kept
  bool keep_ = true;
  std::vector<std::byte> forgotten_;
};

}  // namespace atl::transport
