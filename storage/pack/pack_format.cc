#include "storage/pack/pack_format.h"

#include <fmt/format.h>
#include <xxhash.h>

#include <algorithm>
#include <cstring>
#include <nlohmann/json.hpp>
#include <optional>

#include "base/check.h"
#include "base/json_reader.h"
#include "base/result.h"
#include "base/units.h"
#include "storage/io/printable.h"

namespace atl::storage {
namespace {

using kernels::Activations;
using kernels::ScaleOrigin;
using kernels::WeightFormat;
using Json = nlohmann::ordered_json;

constexpr std::string_view kHeaderMagic = "ATOLPACK";
constexpr std::string_view kLayerMagic = "ATOLTILE";
constexpr size_t kFixedBytes = 64;  // the fields before JSON or checksums
constexpr size_t kChecksumAt = 32;  // in both

// Bounds on what a header may say, far beyond any model, so that sizes can't overflow.
constexpr int64_t kDimensionMax = 1 << 20;

// What the bytes of tiles mean. A name for each way to lay a format out: whoever changes
// kernels/panel.h, kernels/int4.h or kernels/int8.h changes the number here, and older packs are
// refused.
std::string layout_id(WeightFormat format) {
  return fmt::format("panels of {}, {}, layout 1", kernels::kPanelWidth, to_string(format));
}

template <typename T>
void put(std::string& bytes, size_t at, T value) {
  for (size_t i = 0; i < sizeof value; ++i) {
    bytes[at + i] = static_cast<char>(static_cast<uint64_t>(value) >> (8 * i));
  }
}
template <typename T>
T get(std::string_view bytes, size_t at) {
  uint64_t value = 0;
  for (size_t i = 0; i < sizeof(T); ++i) {
    value |= static_cast<uint64_t>(static_cast<unsigned char>(bytes[at + i])) << (8 * i);
  }
  return static_cast<T>(value);
}

// XXH3-64 of bytes whose own checksum field counts as zeros.
uint64_t checksum_without_field(std::string_view bytes) {
  XXH3_state_t* state = XXH3_createState();
  CHECK(state != nullptr);
  XXH3_64bits_reset(state);
  constexpr char kZeros[sizeof(uint64_t)] = {};
  XXH3_64bits_update(state, bytes.data(), kChecksumAt);
  XXH3_64bits_update(state, kZeros, sizeof kZeros);
  XXH3_64bits_update(state, bytes.data() + kChecksumAt + sizeof kZeros,
                     bytes.size() - kChecksumAt - sizeof kZeros);
  const uint64_t sum = XXH3_64bits_digest(state);
  XXH3_freeState(state);
  return sum;
}

[[noreturn]] void refuse(const std::filesystem::path& file, const std::string& what) {
  throw LoadError(fmt::format("{}: {}", file.string(), what));
}

constexpr std::string_view kDamaged = "the file is damaged: remove it and pack again";

// Magic, version and checksum, in the order in which they explain a failure best.
void check_envelope(std::string_view bytes, std::string_view magic,
                    const std::filesystem::path& file) {
  if (bytes.size() < kFixedBytes) {
    refuse(file,
           fmt::format("{} bytes, expected at least {}: {}", bytes.size(), kFixedBytes, kDamaged));
  }
  if (bytes.substr(0, magic.size()) != magic) {
    refuse(file, fmt::format("starts with {}, expected \"{}\": {}",
                             printable(bytes.substr(0, magic.size())), magic, kDamaged));
  }
  const auto version = get<uint32_t>(bytes, 8);
  if (version != kPackVersion) {
    refuse(file, fmt::format("version {} of the pack format, this program reads version {}: pack "
                             "again with this program",
                             version, kPackVersion));
  }
  const auto stored = get<uint64_t>(bytes, kChecksumAt);
  const uint64_t found = checksum_without_field(bytes);
  if (stored != found) {
    refuse(file, fmt::format("checksum {:016x} of its {} bytes, expected {:016x}: {}", found,
                             bytes.size(), stored, kDamaged));
  }
}

Json params_json(const PackParams& params) {
  return {{"format", to_string(params.format)},
          {"layout", layout_id(params.format)},
          {"activations", to_string(params.activations)},
          {"scales", params.scales == ScaleOrigin::kCheckpoint ? "checkpoint" : "packing"},
          {"hidden_size", params.hidden_size},
          {"moe_intermediate_size", params.moe_intermediate_size},
          {"n_routed_experts", params.n_routed_experts},
          {"layers", params.layers},
          {"tile_begin", params.tile_begin},
          {"tile_end", params.tile_end},
          {"source_format", params.source_format},
          {"source_fingerprint", params.source_fingerprint}};
}

// Reads a header's JSON, naming the key where it is wrong. The checksum was right: this is against
// a program that writes nonsense, or a stranger.
class Reader {
 public:
  Reader(const Json& json, const std::filesystem::path& file) : json_(json), file_(file) {
    if (!json.is_object()) refuse(file, "the header's text is no JSON object");
  }
  const Json& at(const char* key) const {
    const auto place = json_.find(key);
    if (place == json_.end()) refuse(file_, fmt::format("{} is missing in the header", key));
    return *place;
  }
  int64_t integer(const char* key, int64_t least, int64_t most) const {
    return integer_of(at(key), key, least, most);
  }
  int64_t integer_of(const Json& value, const char* key, int64_t least, int64_t most) const {
    const bool fits = value.is_number_unsigned()
                          ? value.get<uint64_t>() <= static_cast<uint64_t>(INT64_MAX)
                          : value.is_number_integer();
    const int64_t number = fits ? value.get<int64_t>() : -1;
    if (!fits || number < least || number > most) {
      refuse(file_, fmt::format("{}: expected a whole number from {} to {}, found {}", key, least,
                                most, printable(value.dump(-1, ' ', true))));
    }
    return number;
  }
  std::string text(const char* key) const {
    const Json& value = at(key);
    if (!value.is_string()) refuse(file_, fmt::format("{} is no text in the header", key));
    return value.get<std::string>();
  }
  const Json& list(const char* key, size_t most) const {
    const Json& value = at(key);
    if (!value.is_array() || value.size() > most) {
      refuse(file_, fmt::format("{} is no list of at most {} in the header", key, most));
    }
    return value;
  }

 private:
  const Json& json_;
  const std::filesystem::path& file_;
};

PackParams read_params(const Reader& reader, const std::filesystem::path& file) {
  PackParams params;
  const std::string format = reader.text("format");
  const auto known = kernels::parse_weight_format(format);
  const auto activations = kernels::parse_activations(reader.text("activations"));
  if (!known || !activations) {
    refuse(file, fmt::format("format {} with activations {} is unknown to this program",
                             printable(format), printable(reader.text("activations"))));
  }
  params.format = *known;
  params.activations = *activations;
  if (*activations == Activations::kI8 && !kernels::is_packed_only(*known)) {
    refuse(file, "activations i8 are for int4 and int8 only");
  }
  if (*activations == Activations::kF32 && *known == WeightFormat::kInt8) {
    refuse(file, "activations f32: int8 takes i8 alone");
  }
  if (reader.text("layout") != layout_id(params.format)) {
    refuse(file, fmt::format("layout {}, this program reads \"{}\": pack again with this program",
                             printable(reader.text("layout")), layout_id(params.format)));
  }
  const std::string scales = reader.text("scales");
  if (scales != "checkpoint" && scales != "packing") {
    refuse(file, fmt::format("scales {}: expected checkpoint or packing", printable(scales)));
  }
  params.scales = scales == "checkpoint" ? ScaleOrigin::kCheckpoint : ScaleOrigin::kPacking;
  params.hidden_size = reader.integer("hidden_size", 1, kDimensionMax);
  params.moe_intermediate_size = reader.integer("moe_intermediate_size", 1, kDimensionMax);
  params.n_routed_experts = reader.integer("n_routed_experts", 1, kDimensionMax);
  for (const Json& layer : reader.list("layers", kDimensionMax)) {
    const int64_t least = params.layers.empty() ? 0 : params.layers.back() + 1;
    params.layers.push_back(
        static_cast<int32_t>(reader.integer_of(layer, "layers", least, kDimensionMax)));
  }
  const int64_t tiles = kernels::num_tiles(params.moe_intermediate_size);
  params.tile_begin = static_cast<int>(reader.integer("tile_begin", 0, tiles - 1));
  params.tile_end = static_cast<int>(reader.integer("tile_end", params.tile_begin + 1, tiles));
  params.source_format = reader.text("source_format");
  params.source_fingerprint = reader.text("source_fingerprint");
  return params;
}

bool plain_file_name(std::string_view name) {
  return !name.empty() && name != "." && name != ".." && name.find('/') == name.npos &&
         name.find('\0') == name.npos;
}

uint64_t num_blocks(uint64_t bytes) { return (bytes + kSumBlockBytes - 1) / kSumBlockBytes; }

}  // namespace

uint64_t checksum(std::span<const std::byte> bytes) {
  return XXH3_64bits(bytes.data(), bytes.size());
}

std::string difference(const PackParams& found, const PackParams& expected) {
  const Json a = params_json(found), b = params_json(expected);
  for (const auto& [key, value] : a.items()) {
    if (value == b.at(key)) continue;
    const auto text = [](const Json& json) {
      return json.is_string() ? printable(json.get<std::string>()) : json.dump();
    };
    return fmt::format("{}: {} instead of {}", key, text(value), text(b.at(key)));
  }
  return "";
}

std::array<uint64_t, 2> pack_id(const PackParams& params) {
  const std::string text = params_json(params).dump();
  const XXH128_hash_t hash = XXH3_128bits(text.data(), text.size());
  return {hash.low64, hash.high64};
}

PackGeometry::PackGeometry(const PackParams& params)
    : tile_begin_(params.tile_begin), tile_end_(params.tile_end) {
  const int count = kernels::num_tiles(params.moe_intermediate_size);
  CHECK(0 <= tile_begin_ && tile_begin_ < tile_end_ && tile_end_ <= count);
  for (int tile = 0; tile < count; ++tile) {
    layouts_.push_back(kernels::tile_layout(params.format, params.hidden_size,
                                            params.moe_intermediate_size, tile, params.activations,
                                            params.scales));
    if (tile < tile_begin_ || tile >= tile_end_) continue;
    offsets_.push_back(expert_bytes_);
    expert_bytes_ += layouts_.back().bytes;
  }
  const auto experts = static_cast<uint64_t>(params.n_routed_experts);
  const uint64_t sums = experts * static_cast<uint64_t>(num_tiles()) * sizeof(uint64_t);
  head_bytes_ = (kFixedBytes + sums + kPackAlign - 1) / kPackAlign * kPackAlign;
  // At most 2^20 experts of 3 x 2^40 weights of 4 bytes do not fit: refuse what a file can't hold.
  if (expert_bytes_ > (uint64_t{1} << 62) / experts) {
    throw LoadError(
        fmt::format("{} experts of {} bytes are more than a file holds", experts, expert_bytes_));
  }
  file_bytes_ = head_bytes_ + experts * expert_bytes_;
}

std::string layer_file_name(int32_t layer) { return fmt::format("layer-{:05}.tiles", layer); }

std::string encode_pack_header(const PackHeader& header) {
  Json json = params_json(header.params);
  Json layer_files = Json::array(), carried = Json::array();
  for (const PackLayerFile& file : header.layer_files) {
    layer_files.push_back({{"layer", file.layer}, {"head_checksum", file.head_checksum}});
  }
  std::vector<uint64_t> sums;
  for (const PackCarriedFile& file : header.carried) {
    CHECK_EQ(file.checksums.size(), num_blocks(file.bytes));
    carried.push_back({{"name", file.name}, {"bytes", file.bytes}});
    sums.insert(sums.end(), file.checksums.begin(), file.checksums.end());
  }
  json["layer_files"] = layer_files;
  json["carried"] = carried;
  std::string text = json.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');

  std::string bytes(kFixedBytes, '\0');
  std::copy(kHeaderMagic.begin(), kHeaderMagic.end(), bytes.begin());
  put(bytes, 8, kPackVersion);
  put(bytes, 16, static_cast<uint64_t>(text.size()));
  put(bytes, 24, static_cast<uint64_t>(sums.size()));
  bytes += text;
  const size_t at = bytes.size();
  bytes.resize(at + sums.size() * sizeof(uint64_t));
  for (size_t i = 0; i < sums.size(); ++i) put(bytes, at + i * sizeof(uint64_t), sums[i]);
  put(bytes, kChecksumAt, checksum_without_field(bytes));
  return bytes;
}

PackHeader decode_pack_header(std::string_view bytes, const std::filesystem::path& file) {
  check_envelope(bytes, kHeaderMagic, file);
  const auto text_bytes = get<uint64_t>(bytes, 16);
  const auto num_sums = get<uint64_t>(bytes, 24);
  const uint64_t rest = bytes.size() - kFixedBytes;
  if (text_bytes > rest || num_sums != (rest - text_bytes) / sizeof(uint64_t) ||
      (rest - text_bytes) % sizeof(uint64_t) != 0) {
    refuse(file, fmt::format("{} bytes of text and {} checksums do not make {} bytes", text_bytes,
                             num_sums, bytes.size()));
  }
  const auto read = read_json(bytes.substr(kFixedBytes, text_bytes), bounds_of_file(text_bytes));
  if (!read) refuse(file, "the text of its head: " + read.error().message);
  const Json& json = *read;
  const Reader reader(json, file);
  PackHeader header;
  header.params = read_params(reader, file);
  for (const Json& entry : reader.list("layer_files", kDimensionMax)) {
    const Reader layer(entry, file);
    PackLayerFile layer_file;
    layer_file.layer = static_cast<int32_t>(layer.integer("layer", 0, kDimensionMax));
    if (!layer.at("head_checksum").is_number_unsigned()) {
      refuse(file, "head_checksum is no whole number");
    }
    layer_file.head_checksum = layer.at("head_checksum").get<uint64_t>();
    header.layer_files.push_back(layer_file);
  }
  uint64_t at = kFixedBytes + text_bytes;
  uint64_t left = num_sums;
  for (const Json& entry : reader.list("carried", kDimensionMax)) {
    const Reader carried(entry, file);
    PackCarriedFile& carried_file = header.carried.emplace_back();
    carried_file.name = carried.text("name");
    if (!plain_file_name(carried_file.name)) {
      refuse(file, fmt::format("{} is no plain file name", printable(carried_file.name)));
    }
    carried_file.bytes = static_cast<uint64_t>(carried.integer("bytes", 0, INT64_MAX));
    const uint64_t count = num_blocks(carried_file.bytes);
    if (count > left) refuse(file, "fewer checksums than its files need");
    left -= count;
    for (uint64_t i = 0; i < count; ++i, at += sizeof(uint64_t)) {
      carried_file.checksums.push_back(get<uint64_t>(bytes, at));
    }
  }
  if (left != 0) refuse(file, "more checksums than its files need");
  return header;
}

std::string encode_layer_head(const PackParams& params, const PackGeometry& geometry, int32_t layer,
                              std::span<const uint64_t> checksums) {
  std::string bytes(geometry.head_bytes(), '\0');
  std::copy(kLayerMagic.begin(), kLayerMagic.end(), bytes.begin());
  put(bytes, 8, kPackVersion);
  put(bytes, 12, static_cast<uint32_t>(layer));
  put(bytes, 16, static_cast<uint64_t>(checksums.size()));
  put(bytes, 24, geometry.head_bytes());
  const std::array<uint64_t, 2> id = pack_id(params);
  put(bytes, 40, id[0]);
  put(bytes, 48, id[1]);
  for (size_t i = 0; i < checksums.size(); ++i) {
    put(bytes, kFixedBytes + i * sizeof(uint64_t), checksums[i]);
  }
  put(bytes, kChecksumAt, checksum_without_field(bytes));
  return bytes;
}

uint64_t head_checksum(std::string_view head) { return get<uint64_t>(head, kChecksumAt); }

std::vector<uint64_t> decode_layer_head(std::string_view head, const PackParams& params,
                                        const PackGeometry& geometry, int32_t layer,
                                        const uint64_t* expected,
                                        const std::filesystem::path& file) {
  check_envelope(head, kLayerMagic, file);
  const std::array<uint64_t, 2> id = {get<uint64_t>(head, 40), get<uint64_t>(head, 48)};
  if (id != pack_id(params) || get<uint64_t>(head, 24) != geometry.head_bytes()) {
    refuse(file, "belongs to another pack than the header beside it");
  }
  if (get<uint32_t>(head, 12) != static_cast<uint32_t>(layer)) {
    refuse(file, fmt::format("holds layer {}, expected layer {}", get<uint32_t>(head, 12), layer));
  }
  if (expected != nullptr && *expected != head_checksum(head)) {
    refuse(file, fmt::format("checksum {:016x} of its head, the header expects {:016x}: {}",
                             head_checksum(head), *expected, kDamaged));
  }
  const auto count = static_cast<size_t>(params.n_routed_experts * geometry.num_tiles());
  std::vector<uint64_t> sums(count);
  for (size_t i = 0; i < count; ++i) {
    sums[i] = get<uint64_t>(head, kFixedBytes + i * sizeof(uint64_t));
  }
  return sums;
}

}  // namespace atl::storage
