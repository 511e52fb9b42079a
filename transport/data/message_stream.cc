#include "transport/data/message_stream.h"

#include <fmt/core.h>

#include <algorithm>

#include "base/check.h"

namespace atl::transport {

namespace {
constexpr size_t kForgottenBytes = 16u << 10;
}

std::span<std::byte> MessageReader::room(bool keep) {
  keep_ = keep;
  switch (part_) {
    case Part::kPrefix:
      return std::as_writable_bytes(std::span(&prefix_, 1)).subspan(done_);
    case Part::kHeader:
      return std::span(header_).subspan(done_);
    case Part::kPayload:
      if (message_) return {message_->payload_data() + done_, prefix_.payload_bytes - done_};
      forgotten_.resize(kForgottenBytes);
      return std::span(forgotten_)
          .first(std::min<uint64_t>(kForgottenBytes, prefix_.payload_bytes - done_));
  }
  return {};
}

Result<std::unique_ptr<PooledMessage>> MessageReader::filled(size_t bytes) {
  done_ += bytes;
  if (part_ == Part::kPrefix && done_ == sizeof prefix_) {
    if (prefix_.magic != kMessageMagic || prefix_.header_bytes > kHeaderBytesMax)
      return Error{
          ErrorCode::kInvalid,
          fmt::format("it sent {:08x} and a header of {} bytes, expected {:08x} and at "
                      "most {}",
                      prefix_.magic, prefix_.header_bytes, kMessageMagic, kHeaderBytesMax)};
    if (prefix_.payload_bytes > payload_bytes_max_)
      return Error{ErrorCode::kInvalid,
                   fmt::format("it sent a message of {} bytes, at most {} are allowed",
                               prefix_.payload_bytes, payload_bytes_max_)};
    header_.resize(prefix_.header_bytes);
    done_ = 0;
    part_ = Part::kHeader;
  }
  if (part_ == Part::kHeader && done_ == header_.size()) {
    if (keep_) message_ = std::make_unique<PooledMessage>(pool_, header_, prefix_.payload_bytes);
    done_ = 0;
    part_ = Part::kPayload;
  }
  if (part_ != Part::kPayload) return std::unique_ptr<PooledMessage>();
  CHECK_LE(done_, prefix_.payload_bytes);
  if (done_ < prefix_.payload_bytes) return std::unique_ptr<PooledMessage>();
  done_ = 0;
  part_ = Part::kPrefix;
  return std::move(message_);
}

}  // namespace atl::transport
