// A frame of the data plane: 2 bytes say how long the header is, the rest is the payload.
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <vector>

#include "base/check.h"
#include "base/memory.h"
#include "transport/data/wire.h"

namespace {

class FuzzMessage final : public atl::transport::Message {
 public:
  FuzzMessage(std::span<const std::byte> header, std::span<const std::byte> payload)
      : header_(header.begin(), header.end()),
        memory_(payload.size() + 1),
        payload_(memory_.span().first(payload.size())) {
    if (!payload.empty()) std::memcpy(memory_.data(), payload.data(), payload.size());
  }
  std::span<const std::byte> header() const override { return header_; }
  std::span<const std::byte> payload() const override { return payload_; }

 private:
  std::vector<std::byte> header_;
  atl::HostBuffer memory_;  // aligned as a transport's buffers are
  std::span<const std::byte> payload_;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace atl::transport;
  if (size < 2) return 0;
  const std::span<const std::byte> bytes(reinterpret_cast<const std::byte*>(data) + 2, size - 2);
  const size_t header = std::min<size_t>(data[0] | data[1] << 8, bytes.size());
  const WireLimits limits{.rows_max = 8,
                          .hidden_size = 32,
                          .top_k = 2,
                          .num_layers = 4,
                          .n_routed_experts = 16,
                          .num_tiles = 8,
                          .row_type = WireRowType::kBf16};
  const FuzzMessage message(bytes.first(header), bytes.subspan(header));
  const auto frame = decode_frame(message, limits);
  if (!frame) {
    CHECK(!frame.error().message.empty());
    return 0;
  }
  // What was accepted is within the limits, and is what encoding would say again.
  std::vector<std::byte> again;
  switch (frame->kind) {
    case Frame::Kind::kDispatch:
      CHECK_LE(frame->dispatch.num_rows, limits.rows_max);
      CHECK_EQ(frame->dispatch.topk_ids.size(), size_t{frame->dispatch.num_rows} * limits.top_k);
      encode_dispatch_header(frame->dispatch, &again);
      break;
    case Frame::Kind::kPartial:
      CHECK_LE(frame->partial.row_begin + frame->partial.num_rows, limits.rows_max);
      encode_partial_header(frame->partial, &again);
      break;
    case Frame::Kind::kHint:
      encode_hint_header(frame->hint, &again);
      break;
    case Frame::Kind::kRefusal:  // control characters were taken out of their texts
    case Frame::Kind::kStepNote:
      return 0;
  }
  CHECK_EQ(again.size(), header);
  CHECK(std::memcmp(again.data(), bytes.data(), header) == 0);
  return 0;
}
