// The messages of the data plane: Dispatch (rows out) and Partial (partial rows back), or Refusal;
// Hint (experts that will probably be asked for) and StepNote (for whom it is computed), which
// nobody answers. Bytes are drawn in docs/wire.md. Little-endian; every field is checked by decode.
//
// A Dispatch names (session, dispatch id, epoch, layer, tiles wanted); the Partial repeats the
// names. A Partial may come in pieces: a rectangle of rows x outputs each.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/ids.h"
#include "base/result.h"
#include "transport/data/transport.h"

namespace atl::transport {

inline constexpr uint16_t kWireVersion = 3;
inline constexpr uint32_t kTileRangesMax = 256;
// Most rows that a handshake may agree on for one Dispatch; bounds a node's buffers.
inline constexpr uint32_t kDispatchRowsMax = 8192;
// Rows of one Partial, so that a header holds a failure of each of them (4 bytes).
inline constexpr uint32_t kPartialRowsMax = 1000;

enum class WireRowType : uint8_t { kBf16 = 1, kF32 = 2 };
constexpr size_t row_element_bytes(WireRowType type) { return type == WireRowType::kBf16 ? 2 : 4; }

// Tiles [begin, end) of every expert of a layer.
struct TileRange {
  uint16_t begin = 0;
  uint16_t end = 0;
  friend bool operator==(const TileRange&, const TileRange&) = default;
};

// What both sides agreed on in the handshake; decode refuses whatever exceeds it.
struct WireLimits {
  uint32_t rows_max = 512;  // per Dispatch
  uint32_t hidden_size = 0;
  uint32_t top_k = 0;
  uint32_t num_layers = 0;
  uint32_t n_routed_experts = 0;
  uint32_t num_tiles = 0;
  WireRowType row_type = WireRowType::kBf16;

  size_t dispatch_payload_bytes_max() const;
  size_t hint_payload_bytes_max() const;
  size_t partial_payload_bytes_max() const;
};

// Names that tie an answer to its question.
struct DispatchNames {
  SessionId session;
  DispatchId dispatch;
  Epoch epoch;
  uint32_t layer = 0;
  friend bool operator==(const DispatchNames&, const DispatchNames&) = default;
};

// A view on a received Dispatch (borrowed from the Message), or what to encode. A top-k id of -1 is
// a missing choice; its weight is ignored.
struct Dispatch {
  DispatchNames names;
  WireRowType row_type = WireRowType::kBf16;
  uint32_t num_rows = 0;
  uint32_t hidden_size = 0;
  uint32_t top_k = 0;
  std::vector<TileRange> tiles;         // ascending, disjoint, not empty
  std::span<const int32_t> topk_ids;    // [num_rows, top_k]
  std::span<const float> topk_weights;  // [num_rows, top_k], finite
  std::span<const std::byte> rows;      // [num_rows, hidden_size] of row_type, 64-byte aligned
};

// The payload is the same for all nodes (ids, weights, rows), the header differs in its tiles.
// Layout of the payload: ids | weights | zeros to 64 | rows.
struct DispatchPayloadLayout {
  size_t ids = 0, weights = 0, rows = 0, bytes = 0;
};
DispatchPayloadLayout dispatch_payload_layout(uint32_t num_rows, uint32_t hidden_size,
                                              uint32_t top_k, WireRowType row_type);
void encode_dispatch_header(const Dispatch& dispatch, std::vector<std::byte>* header);

// A row whose result cannot be given: a contribution of `expert` was not finite or beyond +-2^23.
struct FailedRow {
  uint32_t row = 0;    // of the Dispatch
  int32_t expert = 0;  // the lowest such expert of the row in this piece
  friend bool operator==(const FailedRow&, const FailedRow&) = default;
};

// Integers in units of 2^-24 for rows [row_begin, +num_rows) and outputs [output_begin,
// +num_outputs). 48 bits each if all fit, else 64: an encoding, never a limit, so that whether a
// request ends in an error cannot depend on who owned which tile.
struct Partial {
  DispatchNames names;
  uint32_t row_begin = 0, num_rows = 0;
  uint32_t output_begin = 0, num_outputs = 0;
  uint8_t element_bits = 48;
  std::vector<FailedRow> failed_rows;   // ascending by row, found while computing this piece
  std::span<const std::byte> elements;  // [num_rows, num_outputs] packed
};
size_t partial_elements_bytes(uint32_t num_rows, uint32_t num_outputs, uint8_t element_bits);
void encode_partial_header(const Partial& partial, std::vector<std::byte>* header);
// 48 if every value fits in 48 bits two's complement, else 64.
uint8_t narrowest_element_bits(std::span<const int64_t> values);
// Packs values at out (element_bits/8 bytes each); and adds packed elements to sum.
void pack_elements(std::span<const int64_t> values, uint8_t element_bits, std::byte* out);
void add_elements(std::span<const std::byte> elements, uint8_t element_bits,
                  std::span<int64_t> sum);

// The dispatch id of a Refusal that answers a frame which could not be read. Real ids start at 1.
inline constexpr DispatchId kUnreadableDispatch{0};

// Why a node didn't compute: kUnavailable (tile not reachable), kInvalid (bad frame, unknown
// session or epoch), kOverloaded, kCorrupt.
struct Refusal {
  DispatchNames names;
  Error error;
};
void encode_refusal(const Refusal& refusal, std::vector<std::byte>* header);  // no payload

// Experts of a layer that rows will probably choose soon: the node may read its tiles of them
// ahead. Never needed and never answered; the dispatch in its names is 0. A view on a received Hint
// (borrowed from the Message), or what to encode.
struct Hint {
  DispatchNames names;
  std::vector<TileRange> tiles;      // ascending, disjoint, not empty
  std::span<const int32_t> experts;  // ascending, none twice, 1 to n_routed_experts of them
};
// The payload is the experts as they lie in memory, the same for all nodes.
void encode_hint_header(const Hint& hint, std::vector<std::byte>* header);

// For whom the Dispatches from names.dispatch on are computed, until the next note: ids of
// requests, for the node's log. Never needed and never answered; layer is 0. `text` is cut at 1024
// bytes.
struct StepNote {
  DispatchNames names;
  std::string text;
};
void encode_step_note(const StepNote& note, std::vector<std::byte>* header);  // no payload

// One received frame, checked against the limits. kInvalid says which field, expected and found.
struct Frame {
  enum class Kind : uint8_t { kDispatch = 1, kPartial = 2, kRefusal = 3, kHint = 4, kStepNote = 5 };
  Kind kind = Kind::kDispatch;
  Dispatch dispatch;
  Partial partial;
  Refusal refusal;
  Hint hint;
  StepNote note;
};
Result<Frame> decode_frame(const Message& message, const WireLimits& limits);

}  // namespace atl::transport
