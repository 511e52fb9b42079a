#include "transport/data/wire.h"

#include <fmt/core.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <optional>

#include "base/units.h"

namespace atl::transport {

namespace {

static_assert(std::endian::native == std::endian::little, "frames are little-endian in memory");

constexpr uint16_t kMagic = 0x4641;  // "AF"
constexpr size_t kRowAlignment = 64;

// The frames as drawn in docs/wire.md; no padding.
struct FrameHeader {
  uint16_t magic;
  uint16_t version;
  uint8_t kind;
  uint8_t detail;         // Dispatch: row type; Partial: element bits; Refusal: error code; else 0
  uint16_t header_bytes;  // of the whole header
  uint64_t session;
  uint64_t dispatch;
  uint32_t epoch;
  uint32_t layer;
};
static_assert(sizeof(FrameHeader) == 32);
struct DispatchFields {  // then num_tile_ranges x {u16 begin, u16 end}
  uint32_t num_rows;
  uint32_t hidden_size;
  uint32_t top_k;
  uint32_t num_tile_ranges;
};
static_assert(sizeof(DispatchFields) == 16);
struct PartialFields {  // then num_failed_rows x {u16 row - row_begin, u16 expert}
  uint32_t row_begin;
  uint32_t num_rows;
  uint32_t output_begin;
  uint32_t num_outputs;
  uint32_t num_failed_rows;
  uint32_t reserved;
};
static_assert(sizeof(PartialFields) == 24);
struct TextFields {  // then text_bytes of UTF-8; of a Refusal and a StepNote
  uint32_t text_bytes;
  uint32_t reserved;
};
static_assert(sizeof(TextFields) == 8);
struct HintFields {  // then num_tile_ranges x {u16 begin, u16 end}
  uint32_t num_experts;
  uint32_t num_tile_ranges;
};
static_assert(sizeof(HintFields) == 8);
struct PackedFailedRow {
  uint16_t row;
  uint16_t expert;
};

constexpr size_t kTextMax = 1024;
static_assert(sizeof(FrameHeader) + sizeof(DispatchFields) + kTileRangesMax * sizeof(TileRange) <=
              kHeaderBytesMax);
static_assert(sizeof(HintFields) <= sizeof(DispatchFields), "a Hint's header fits, too");
static_assert(sizeof(FrameHeader) + sizeof(PartialFields) +
                  kPartialRowsMax * sizeof(PackedFailedRow) <=
              kHeaderBytesMax);
static_assert(sizeof(FrameHeader) + sizeof(TextFields) + kTextMax <= kHeaderBytesMax);

// ---- encoding

class Writer {
 public:
  Writer(std::vector<std::byte>* out, size_t bytes) : out_(*out) {
    CHECK_LE(bytes, kHeaderBytesMax);
    out_.resize(bytes);
  }
  template <typename T>
  void put(const T& value) {
    put_bytes(&value, sizeof value);
  }
  void put_bytes(const void* data, size_t bytes) {
    CHECK_LE(at_ + bytes, out_.size());
    if (bytes > 0) std::memcpy(out_.data() + at_, data, bytes);
    at_ += bytes;
  }

 private:
  std::vector<std::byte>& out_;
  size_t at_ = 0;
};

FrameHeader frame_header(Frame::Kind kind, uint8_t detail, size_t header_bytes,
                         const DispatchNames& names) {
  return {kMagic,
          kWireVersion,
          static_cast<uint8_t>(kind),
          detail,
          static_cast<uint16_t>(header_bytes),
          names.session.value,
          names.dispatch.value,
          names.epoch.value,
          names.layer};
}

// `text` is cut at kTextMax bytes.
void encode_text(Frame::Kind kind, uint8_t detail, const DispatchNames& names,
                 std::string_view text, std::vector<std::byte>* header) {
  text = text.substr(0, kTextMax);
  const size_t bytes = sizeof(FrameHeader) + sizeof(TextFields) + text.size();
  Writer writer(header, bytes);
  writer.put(frame_header(kind, detail, bytes, names));
  writer.put(TextFields{static_cast<uint32_t>(text.size()), 0});
  writer.put_bytes(text.data(), text.size());
}

// ---- decoding

using Failure = std::optional<Error>;

Error invalid_frame(std::string what) { return {ErrorCode::kInvalid, "frame: " + std::move(what)}; }
template <typename Found, typename Expected>
Failure expect(bool condition, const char* field, const Found& found, const Expected& expected) {
  if (condition) return std::nullopt;
  return invalid_frame(fmt::format("{} is {}, expected {}", field, found, expected));
}

// Takes the header apart; a read beyond its end gives zeros and is_short().
class Reader {
 public:
  explicit Reader(std::span<const std::byte> bytes) : bytes_(bytes) {}
  template <typename T>
  T take() {
    T value{};
    if (bytes_.size() < sizeof value) {
      is_short_ = true;
      return value;
    }
    std::memcpy(&value, bytes_.data(), sizeof value);
    bytes_ = bytes_.subspan(sizeof value);
    return value;
  }
  bool is_short() const { return is_short_; }
  std::span<const std::byte> rest() const { return bytes_; }

 private:
  std::span<const std::byte> bytes_;
  bool is_short_ = false;
};

Failure check_tiles(const std::vector<TileRange>& tiles, const WireLimits& limits) {
  uint32_t previous_end = 0;
  for (size_t i = 0; i < tiles.size(); ++i) {
    const TileRange tile = tiles[i];
    const bool ok =
        tile.begin < tile.end && tile.begin >= previous_end && tile.end <= limits.num_tiles;
    if (!ok)
      return invalid_frame(
          fmt::format("tile range {} is [{}, {}), expected a range that isn't empty, in [{}, {})",
                      i, tile.begin, tile.end, previous_end, limits.num_tiles));
    previous_end = tile.end;
  }
  return std::nullopt;
}

// Quadratic in top_k (8): a row's choices fit in a cache line.
Failure check_choices(const Dispatch& dispatch, const WireLimits& limits) {
  const size_t top_k = dispatch.top_k;
  for (size_t row = 0; row < dispatch.num_rows; ++row) {
    const auto ids = dispatch.topk_ids.subspan(row * top_k, top_k);
    const auto weights = dispatch.topk_weights.subspan(row * top_k, top_k);
    for (size_t i = 0; i < top_k; ++i) {
      if (ids[i] == -1) continue;
      if (ids[i] < -1 || ids[i] >= static_cast<int64_t>(limits.n_routed_experts))
        return invalid_frame(fmt::format("expert id {} of row {} is {}, expected -1 to {}", i, row,
                                         ids[i],
                                         static_cast<int64_t>(limits.n_routed_experts) - 1));
      if (std::find(ids.begin(), ids.begin() + i, ids[i]) != ids.begin() + i)
        return invalid_frame(fmt::format("expert id {} stands twice in row {}", ids[i], row));
      if (!std::isfinite(weights[i]))
        return invalid_frame(
            fmt::format("weight {} of row {} is {}, expected a finite number", i, row, weights[i]));
    }
  }
  return std::nullopt;
}

template <typename T>
std::span<const T> view(std::span<const std::byte> payload, size_t offset, size_t count) {
  return {reinterpret_cast<const T*>(payload.data() + offset), count};
}

// The rest of a header: this many tile ranges.
Failure decode_tiles(Reader reader, uint32_t num_ranges, const WireLimits& limits,
                     std::vector<TileRange>* tiles) {
  if (auto bad = expect(num_ranges >= 1 && num_ranges <= kTileRangesMax, "number of tile ranges",
                        num_ranges, fmt::format("1 to {}", kTileRangesMax)))
    return bad;
  if (auto bad =
          expect(reader.rest().size() == num_ranges * sizeof(TileRange), "bytes of tile ranges",
                 reader.rest().size(), num_ranges * sizeof(TileRange)))
    return bad;
  tiles->resize(num_ranges);
  std::memcpy(tiles->data(), reader.rest().data(), reader.rest().size());
  return check_tiles(*tiles, limits);
}

Failure decode_dispatch(Reader reader, uint8_t detail, std::span<const std::byte> payload,
                        const WireLimits& limits, Dispatch* dispatch) {
  const auto fields = reader.take<DispatchFields>();
  const int row_type = static_cast<int>(limits.row_type);
  if (auto bad = expect(detail == row_type, "row type", detail, row_type)) return bad;
  if (auto bad = expect(fields.num_rows >= 1 && fields.num_rows <= limits.rows_max,
                        "number of rows", fields.num_rows, fmt::format("1 to {}", limits.rows_max)))
    return bad;
  if (auto bad = expect(fields.hidden_size == limits.hidden_size, "hidden size", fields.hidden_size,
                        limits.hidden_size))
    return bad;
  if (auto bad = expect(fields.top_k == limits.top_k, "top_k", fields.top_k, limits.top_k))
    return bad;
  if (auto bad = decode_tiles(reader, fields.num_tile_ranges, limits, &dispatch->tiles)) return bad;

  const auto layout =
      dispatch_payload_layout(fields.num_rows, fields.hidden_size, fields.top_k, limits.row_type);
  if (auto bad =
          expect(payload.size() == layout.bytes, "payload bytes", payload.size(), layout.bytes))
    return bad;
  CHECK_EQ(reinterpret_cast<uintptr_t>(payload.data()) % kRowAlignment, 0u);
  const size_t num_choices = size_t{fields.num_rows} * fields.top_k;
  dispatch->row_type = limits.row_type;
  dispatch->num_rows = fields.num_rows;
  dispatch->hidden_size = fields.hidden_size;
  dispatch->top_k = fields.top_k;
  dispatch->topk_ids = view<int32_t>(payload, layout.ids, num_choices);
  dispatch->topk_weights = view<float>(payload, layout.weights, num_choices);
  dispatch->rows = payload.subspan(layout.rows);
  for (size_t i = layout.weights + num_choices * sizeof(float); i < layout.rows; ++i)
    if (auto bad = expect(payload[i] == std::byte{0}, "padding before the rows",
                          static_cast<int>(payload[i]), 0))
      return bad;
  return check_choices(*dispatch, limits);
}

Failure decode_failed_rows(std::span<const std::byte> bytes, const WireLimits& limits,
                           Partial* partial) {
  Reader reader(bytes);
  int64_t previous = -1;
  while (!reader.rest().empty()) {
    const auto packed = reader.take<PackedFailedRow>();
    if (packed.row <= previous || packed.row >= partial->num_rows)
      return invalid_frame(fmt::format("failed row {} of the piece, expected one in ({}, {})",
                                       packed.row, previous, partial->num_rows));
    if (auto bad = expect(packed.expert < limits.n_routed_experts, "expert of a failed row",
                          packed.expert, fmt::format("below {}", limits.n_routed_experts)))
      return bad;
    partial->failed_rows.push_back({partial->row_begin + packed.row, packed.expert});
    previous = packed.row;
  }
  return std::nullopt;
}

// [begin, begin + count) within [0, limit), not empty; 64-bit, so nothing wraps.
bool is_range(uint32_t begin, uint32_t count, uint32_t limit) {
  return count >= 1 && uint64_t{begin} + count <= limit;
}

Failure decode_partial(Reader reader, uint8_t detail, std::span<const std::byte> payload,
                       const WireLimits& limits, Partial* partial) {
  const auto fields = reader.take<PartialFields>();
  if (auto bad = expect(detail == 48 || detail == 64, "element bits", detail, "48 or 64"))
    return bad;
  if (auto bad = expect(is_range(fields.row_begin, fields.num_rows, limits.rows_max) &&
                            fields.num_rows <= kPartialRowsMax,
                        "row range", fmt::format("{} +{}", fields.row_begin, fields.num_rows),
                        fmt::format("1 to {} rows in [0, {})", kPartialRowsMax, limits.rows_max)))
    return bad;
  if (auto bad =
          expect(is_range(fields.output_begin, fields.num_outputs, limits.hidden_size),
                 "output range", fmt::format("{} +{}", fields.output_begin, fields.num_outputs),
                 fmt::format("a range in [0, {})", limits.hidden_size)))
    return bad;
  if (auto bad = expect(fields.num_failed_rows <= fields.num_rows, "number of failed rows",
                        fields.num_failed_rows, fmt::format("at most {}", fields.num_rows)))
    return bad;
  if (auto bad = expect(fields.reserved == 0, "reserved field", fields.reserved, 0)) return bad;
  if (auto bad = expect(reader.rest().size() == fields.num_failed_rows * sizeof(PackedFailedRow),
                        "bytes of failed rows", reader.rest().size(),
                        fields.num_failed_rows * sizeof(PackedFailedRow)))
    return bad;
  const size_t bytes = partial_elements_bytes(fields.num_rows, fields.num_outputs, detail);
  if (auto bad = expect(payload.size() == bytes, "payload bytes", payload.size(), bytes))
    return bad;
  partial->row_begin = fields.row_begin;
  partial->num_rows = fields.num_rows;
  partial->output_begin = fields.output_begin;
  partial->num_outputs = fields.num_outputs;
  partial->element_bits = detail;
  partial->elements = payload;
  return decode_failed_rows(reader.rest(), limits, partial);
}

Failure decode_text(Reader reader, std::span<const std::byte> payload, std::string* text) {
  const auto fields = reader.take<TextFields>();
  if (auto bad = expect(fields.reserved == 0, "reserved field", fields.reserved, 0)) return bad;
  if (auto bad = expect(fields.text_bytes <= kTextMax && reader.rest().size() == fields.text_bytes,
                        "text bytes", reader.rest().size(),
                        fmt::format("{}, at most {}", fields.text_bytes, kTextMax)))
    return bad;
  if (auto bad = expect(payload.empty(), "payload bytes", payload.size(), 0)) return bad;
  text->assign(reinterpret_cast<const char*>(reader.rest().data()), reader.rest().size());
  // Somebody else's words in our log: no line breaks, no escapes.
  for (char& c : *text)
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) c = '?';
  return std::nullopt;
}

Failure decode_refusal(Reader reader, uint8_t detail, std::span<const std::byte> payload,
                       Refusal* refusal) {
  constexpr int kLastCode = static_cast<int>(ErrorCode::kInternal);
  if (auto bad =
          expect(detail <= kLastCode, "error code", detail, fmt::format("0 to {}", kLastCode)))
    return bad;
  refusal->error.code = static_cast<ErrorCode>(detail);
  return decode_text(reader, payload, &refusal->error.message);
}

Failure decode_step_note(Reader reader, uint8_t detail, std::span<const std::byte> payload,
                         StepNote* note) {
  if (auto bad = expect(detail == 0, "detail of a note", detail, 0)) return bad;
  if (auto bad = expect(note->names.layer == 0, "layer of a note", note->names.layer, 0))
    return bad;
  return decode_text(reader, payload, &note->text);
}

Failure decode_hint(Reader reader, uint8_t detail, std::span<const std::byte> payload,
                    const WireLimits& limits, Hint* hint) {
  const auto fields = reader.take<HintFields>();
  if (auto bad = expect(detail == 0, "detail of a hint", detail, 0)) return bad;
  if (auto bad = expect(hint->names.dispatch.value == 0, "dispatch of a hint",
                        hint->names.dispatch.value, 0))
    return bad;
  if (auto bad = expect(fields.num_experts >= 1 && fields.num_experts <= limits.n_routed_experts,
                        "number of experts", fields.num_experts,
                        fmt::format("1 to {}", limits.n_routed_experts)))
    return bad;
  if (auto bad = decode_tiles(reader, fields.num_tile_ranges, limits, &hint->tiles)) return bad;
  const size_t bytes = fields.num_experts * sizeof(int32_t);
  if (auto bad = expect(payload.size() == bytes, "payload bytes", payload.size(), bytes))
    return bad;
  hint->experts = view<int32_t>(payload, 0, fields.num_experts);
  int64_t previous = -1;
  for (size_t i = 0; i < hint->experts.size(); ++i) {
    const int32_t expert = hint->experts[i];
    if (expert <= previous || expert >= static_cast<int64_t>(limits.n_routed_experts))
      return invalid_frame(fmt::format("hinted expert {} is {}, expected one in ({}, {})", i,
                                       expert, previous, limits.n_routed_experts));
    previous = expert;
  }
  return std::nullopt;
}

size_t fields_bytes(Frame::Kind kind) {
  switch (kind) {
    case Frame::Kind::kDispatch:
      return sizeof(DispatchFields);
    case Frame::Kind::kPartial:
      return sizeof(PartialFields);
    case Frame::Kind::kRefusal:
    case Frame::Kind::kStepNote:
      return sizeof(TextFields);
    case Frame::Kind::kHint:
      return sizeof(HintFields);
  }
  return 0;
}

}  // namespace

size_t WireLimits::dispatch_payload_bytes_max() const {
  return dispatch_payload_layout(rows_max, hidden_size, top_k, row_type).bytes;
}

size_t WireLimits::hint_payload_bytes_max() const { return n_routed_experts * sizeof(int32_t); }

size_t WireLimits::partial_payload_bytes_max() const {
  return partial_elements_bytes(std::min(rows_max, kPartialRowsMax), hidden_size, 64);
}

DispatchPayloadLayout dispatch_payload_layout(uint32_t num_rows, uint32_t hidden_size,
                                              uint32_t top_k, WireRowType row_type) {
  const size_t num_choices = size_t{num_rows} * top_k;
  DispatchPayloadLayout layout;
  layout.weights = num_choices * sizeof(int32_t);
  layout.rows = static_cast<size_t>(
      round_up(static_cast<int64_t>(layout.weights + num_choices * sizeof(float)), kRowAlignment));
  layout.bytes = layout.rows + size_t{num_rows} * hidden_size * row_element_bytes(row_type);
  return layout;
}

void encode_dispatch_header(const Dispatch& dispatch, std::vector<std::byte>* header) {
  CHECK_GE(dispatch.tiles.size(), 1u);
  CHECK_LE(dispatch.tiles.size(), kTileRangesMax);
  const size_t tiles_bytes = dispatch.tiles.size() * sizeof(TileRange);
  const size_t bytes = sizeof(FrameHeader) + sizeof(DispatchFields) + tiles_bytes;
  Writer writer(header, bytes);
  writer.put(frame_header(Frame::Kind::kDispatch, static_cast<uint8_t>(dispatch.row_type), bytes,
                          dispatch.names));
  writer.put(DispatchFields{dispatch.num_rows, dispatch.hidden_size, dispatch.top_k,
                            static_cast<uint32_t>(dispatch.tiles.size())});
  writer.put_bytes(dispatch.tiles.data(), tiles_bytes);
}

void encode_hint_header(const Hint& hint, std::vector<std::byte>* header) {
  CHECK_GE(hint.tiles.size(), 1u);
  CHECK_LE(hint.tiles.size(), kTileRangesMax);
  CHECK_EQ(hint.names.dispatch.value, 0u);
  const size_t tiles_bytes = hint.tiles.size() * sizeof(TileRange);
  const size_t bytes = sizeof(FrameHeader) + sizeof(HintFields) + tiles_bytes;
  Writer writer(header, bytes);
  writer.put(frame_header(Frame::Kind::kHint, 0, bytes, hint.names));
  writer.put(HintFields{static_cast<uint32_t>(hint.experts.size()),
                        static_cast<uint32_t>(hint.tiles.size())});
  writer.put_bytes(hint.tiles.data(), tiles_bytes);
}

size_t partial_elements_bytes(uint32_t num_rows, uint32_t num_outputs, uint8_t element_bits) {
  return size_t{num_rows} * num_outputs * (element_bits / 8);
}

void encode_partial_header(const Partial& partial, std::vector<std::byte>* header) {
  CHECK(partial.element_bits == 48 || partial.element_bits == 64);
  CHECK_LE(partial.num_rows, kPartialRowsMax);
  CHECK_LE(partial.failed_rows.size(), partial.num_rows);
  const size_t bytes = sizeof(FrameHeader) + sizeof(PartialFields) +
                       partial.failed_rows.size() * sizeof(PackedFailedRow);
  Writer writer(header, bytes);
  writer.put(frame_header(Frame::Kind::kPartial, partial.element_bits, bytes, partial.names));
  writer.put(PartialFields{partial.row_begin, partial.num_rows, partial.output_begin,
                           partial.num_outputs, static_cast<uint32_t>(partial.failed_rows.size()),
                           0});
  for (const FailedRow& failed : partial.failed_rows) {
    CHECK_GE(failed.row, partial.row_begin);
    CHECK_LT(failed.row - partial.row_begin, partial.num_rows);
    CHECK(failed.expert >= 0 && failed.expert <= UINT16_MAX);
    writer.put(PackedFailedRow{static_cast<uint16_t>(failed.row - partial.row_begin),
                               static_cast<uint16_t>(failed.expert)});
  }
}

void encode_refusal(const Refusal& refusal, std::vector<std::byte>* header) {
  encode_text(Frame::Kind::kRefusal, static_cast<uint8_t>(refusal.error.code), refusal.names,
              refusal.error.message, header);
}

void encode_step_note(const StepNote& note, std::vector<std::byte>* header) {
  CHECK_EQ(note.names.layer, 0u);
  encode_text(Frame::Kind::kStepNote, 0, note.names, note.text, header);
}

uint8_t narrowest_element_bits(std::span<const int64_t> values) {
  // A value fits in 48 bits if its upper 17 bits are all alike.
  constexpr uint64_t kSignBit = uint64_t{1} << 47;
  uint64_t outside = 0;
  for (const int64_t value : values) outside |= static_cast<uint64_t>(value) + kSignBit;
  return outside >> 48 == 0 ? 48 : 64;
}

void pack_elements(std::span<const int64_t> values, uint8_t element_bits, std::byte* out) {
  if (values.empty()) return;
  if (element_bits == 64) {
    std::memcpy(out, values.data(), values.size_bytes());
    return;
  }
  // Eight bytes are stored for each but the last; the next store overwrites the upper two.
  const size_t last = values.size() - 1;
  for (size_t i = 0; i < last; ++i) std::memcpy(out + 6 * i, &values[i], 8);
  std::memcpy(out + 6 * last, &values[last], 6);
}

void add_elements(std::span<const std::byte> elements, uint8_t element_bits,
                  std::span<int64_t> sum) {
  CHECK_EQ(elements.size(), sum.size() * (element_bits / 8));
  if (sum.empty()) return;
  // Unsigned, so that a sum that leaves 64 bits wraps instead of being undefined.
  const auto add = [](int64_t a, int64_t b) {
    return static_cast<int64_t>(static_cast<uint64_t>(a) + static_cast<uint64_t>(b));
  };
  if (element_bits == 64) {
    for (size_t i = 0; i < sum.size(); ++i) {
      int64_t value;
      std::memcpy(&value, elements.data() + 8 * i, 8);
      sum[i] = add(sum[i], value);
    }
    return;
  }
  const size_t last = sum.size() - 1;
  for (size_t i = 0; i < last; ++i) {
    uint64_t value;
    std::memcpy(&value, elements.data() + 6 * i, 8);
    sum[i] = add(sum[i], static_cast<int64_t>(value << 16) >> 16);
  }
  uint64_t value = 0;
  std::memcpy(&value, elements.data() + 6 * last, 6);
  sum[last] = add(sum[last], static_cast<int64_t>(value << 16) >> 16);
}

Result<Frame> decode_frame(const Message& message, const WireLimits& limits) {
  Reader reader(message.header());
  const auto header = reader.take<FrameHeader>();
  if (reader.is_short())
    return invalid_frame(fmt::format("header has {} bytes, expected at least {}",
                                     message.header().size(), sizeof(FrameHeader)));
  if (auto bad = expect(header.magic == kMagic, "magic", header.magic, kMagic)) return *bad;
  if (auto bad = expect(header.version == kWireVersion, "version", header.version, kWireVersion))
    return *bad;
  if (auto bad = expect(header.kind >= 1 && header.kind <= 5, "kind", header.kind, "1 to 5"))
    return *bad;
  if (auto bad = expect(header.header_bytes == message.header().size(), "header bytes",
                        header.header_bytes, message.header().size()))
    return *bad;
  if (auto bad = expect(header.layer < limits.num_layers, "layer", header.layer,
                        fmt::format("below {}", limits.num_layers)))
    return *bad;

  Frame frame;
  frame.kind = static_cast<Frame::Kind>(header.kind);
  if (auto bad = expect(reader.rest().size() >= fields_bytes(frame.kind), "header bytes",
                        header.header_bytes,
                        fmt::format("at least {}", sizeof header + fields_bytes(frame.kind))))
    return *bad;
  const DispatchNames names{SessionId(header.session), DispatchId(header.dispatch),
                            Epoch(header.epoch), header.layer};
  Failure failure;
  switch (frame.kind) {
    case Frame::Kind::kDispatch:
      frame.dispatch.names = names;
      failure = decode_dispatch(reader, header.detail, message.payload(), limits, &frame.dispatch);
      break;
    case Frame::Kind::kPartial:
      frame.partial.names = names;
      failure = decode_partial(reader, header.detail, message.payload(), limits, &frame.partial);
      break;
    case Frame::Kind::kRefusal:
      frame.refusal.names = names;
      failure = decode_refusal(reader, header.detail, message.payload(), &frame.refusal);
      break;
    case Frame::Kind::kHint:
      frame.hint.names = names;
      failure = decode_hint(reader, header.detail, message.payload(), limits, &frame.hint);
      break;
    case Frame::Kind::kStepNote:
      frame.note.names = names;
      failure = decode_step_note(reader, header.detail, message.payload(), &frame.note);
      break;
  }
  if (failure) return *failure;
  return frame;
}

}  // namespace atl::transport
