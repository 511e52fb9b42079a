#include "storage/gguf/gguf_header.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>
#include <numeric>
#include <unordered_set>

#include "base/result.h"
#include "storage/gguf/gguf_types.h"
#include "storage/io/printable.h"

namespace atl::storage {
namespace {

constexpr std::string_view kMagic = "GGUF";
constexpr uint64_t kKeyBytesMax = 65535;  // the format's own
constexpr uint64_t kNameBytesMax = 1024;  // the format has 64; tools have written more
constexpr uint32_t kGgufDimensionsMax = 4;
constexpr uint64_t kAlignmentDefault = 32;
constexpr uint64_t kAlignmentMax = 1 << 20;

constexpr std::string_view kKindNames[] = {"u8",   "i8",     "u16",   "i16", "u32", "i32", "f32",
                                           "bool", "string", "array", "u64", "i64", "f64"};

// Bytes of a value of the kind in the file; 0 for strings and arrays.
size_t kind_bytes(GgufKind kind) {
  switch (kind) {
    case GgufKind::kU8:
    case GgufKind::kI8:
    case GgufKind::kBool:
      return 1;
    case GgufKind::kU16:
    case GgufKind::kI16:
      return 2;
    case GgufKind::kU32:
    case GgufKind::kI32:
    case GgufKind::kF32:
      return 4;
    case GgufKind::kU64:
    case GgufKind::kI64:
    case GgufKind::kF64:
      return 8;
    case GgufKind::kString:
    case GgufKind::kArray:
      return 0;
  }
  return 0;
}

// The file goes on behind what was read of it.
struct NeedsMore {};

uint64_t little_endian(std::string_view bytes) {
  uint64_t value = 0;
  for (size_t i = bytes.size(); i-- > 0;) value = value << 8 | static_cast<uint8_t>(bytes[i]);
  return value;
}

int64_t sign_extended(uint64_t value, size_t bytes) {
  const int shift = static_cast<int>(64 - 8 * bytes);
  return static_cast<int64_t>(value << shift) >> shift;
}

// Takes values off the front of the file's text.
class Cursor {
 public:
  Cursor(std::string_view text, uint64_t file_bytes, const std::filesystem::path& file)
      : text_(text), file_bytes_(file_bytes), file_(file) {}

  // What is being read, for messages: "key \"x\"".
  void enter(std::string what) { what_ = std::move(what); }
  [[noreturn]] void refuse(std::string_view what) const {
    throw LoadError(
        fmt::format("{}: {}{}{}", file_.string(), what_, what_.empty() ? "" : ": ", what));
  }

  std::string_view bytes(uint64_t count) {
    if (count > file_bytes_ - at_) {
      refuse(fmt::format("{} bytes at offset {} of a file of {}: the file is cut off or damaged",
                         count, at_, file_bytes_));
    }
    if (count > text_.size() - at_) {
      if (text_.size() >= kGgufHeaderBytesMax) {
        refuse(fmt::format("the header has more than {} bytes", kGgufHeaderBytesMax));
      }
      throw NeedsMore{};
    }
    const std::string_view taken = text_.substr(at_, count);
    at_ += count;
    return taken;
  }
  uint32_t u32() { return static_cast<uint32_t>(little_endian(bytes(4))); }
  uint64_t u64() { return little_endian(bytes(8)); }
  std::string_view string(uint64_t bytes_max) {
    const uint64_t count = u64();
    if (count > bytes_max && count <= file_bytes_ - at_) {
      refuse(fmt::format("a string of {} bytes, expected at most {}", count, bytes_max));
    }
    return bytes(count);
  }
  uint64_t at() const { return at_; }

 private:
  std::string_view text_;
  uint64_t file_bytes_;
  uint64_t at_ = 0;
  const std::filesystem::path& file_;
  std::string what_;
};

GgufKind read_kind(Cursor& cursor) {
  const uint32_t number = cursor.u32();
  if (number > static_cast<uint32_t>(GgufKind::kF64)) {
    cursor.refuse(fmt::format("a value of kind {}, expected 0 to 12", number));
  }
  return static_cast<GgufKind>(number);
}

GgufValue read_scalar(Cursor& cursor, GgufKind kind) {
  if (kind == GgufKind::kString) return cursor.string(std::numeric_limits<uint64_t>::max());
  const size_t bytes = kind_bytes(kind);
  const uint64_t bits = little_endian(cursor.bytes(bytes));
  switch (kind) {
    case GgufKind::kI8:
    case GgufKind::kI16:
    case GgufKind::kI32:
    case GgufKind::kI64:
      return sign_extended(bits, bytes);
    case GgufKind::kF32:
      return static_cast<double>(std::bit_cast<float>(static_cast<uint32_t>(bits)));
    case GgufKind::kF64:
      return std::bit_cast<double>(bits);
    case GgufKind::kBool:
      if (bits > 1) cursor.refuse(fmt::format("a bool of {}, expected 0 or 1", bits));
      return bits == 1;
    default:
      return bits;
  }
}

GgufValue read_array(Cursor& cursor, std::string_view text) {
  GgufArray array;
  array.kind = read_kind(cursor);
  array.count = cursor.u64();
  const uint64_t begin = cursor.at();
  if (array.kind == GgufKind::kArray) cursor.refuse("an array of arrays");
  if (array.kind == GgufKind::kString) {
    for (uint64_t i = 0; i < array.count; ++i) {
      cursor.string(std::numeric_limits<uint64_t>::max());
    }
  } else {
    const size_t bytes = kind_bytes(array.kind);
    if (array.count > std::numeric_limits<uint64_t>::max() / bytes) {
      cursor.refuse(fmt::format("an array of {} values", array.count));
    }
    cursor.bytes(array.count * bytes);
  }
  array.bytes = text.substr(begin, cursor.at() - begin);
  return array;
}

void read_metadata(Cursor& cursor, uint64_t count, GgufHeader& header) {
  for (uint64_t i = 0; i < count; ++i) {
    cursor.enter(fmt::format("key {} of {}", i + 1, count));
    const std::string_view key = cursor.string(kKeyBytesMax);
    cursor.enter(fmt::format("key {}", printable(key)));
    const GgufKind kind = read_kind(cursor);
    GgufValue value =
        kind == GgufKind::kArray ? read_array(cursor, *header.text) : read_scalar(cursor, kind);
    if (!header.metadata.emplace(key, std::move(value)).second) cursor.refuse("it is there twice");
  }
  cursor.enter("");
}

// Shape and bytes of a tensor; the offset is still that in the data.
GgufTensor read_tensor(Cursor& cursor) {
  GgufTensor tensor;
  tensor.name = cursor.string(kNameBytesMax);
  cursor.enter(fmt::format("tensor {}", printable(tensor.name)));
  const uint32_t dimensions = cursor.u32();
  if (dimensions < 1 || dimensions > kGgufDimensionsMax) {
    cursor.refuse(fmt::format("{} dimensions, expected 1 to {}", dimensions, kGgufDimensionsMax));
  }
  uint64_t elements = 1;
  for (uint32_t d = 0; d < dimensions; ++d) {
    const uint64_t size = cursor.u64();
    constexpr uint64_t kElementsMax = uint64_t{1} << 48;  // times 8 bytes stays inside 64 bits
    if (size == 0 || size > kElementsMax / elements) {
      cursor.refuse(
          fmt::format("dimension {} is {}: more values than a file can have, or none", d, size));
    }
    elements *= size;
    tensor.shape.insert(tensor.shape.begin(), static_cast<int64_t>(size));
  }
  tensor.type = cursor.u32();
  const GgmlTypeInfo* type = find_ggml_type(tensor.type);
  if (type == nullptr) {
    cursor.refuse(fmt::format("type {}, which this program doesn't know; it reads {}", tensor.type,
                              readable_ggml_types()));
  }
  if (tensor.shape.back() % type->block_values != 0) {
    cursor.refuse(fmt::format("rows of {} values, expected whole {} blocks of {}",
                              tensor.shape.back(), type->name, type->block_values));
  }
  tensor.bytes = elements / static_cast<uint64_t>(type->block_values) * type->block_bytes;
  tensor.offset = cursor.u64();
  return tensor;
}

uint64_t alignment_of(const Cursor& cursor, const GgufHeader& header) {
  const GgufValue* value = header.find("general.alignment");
  if (value == nullptr) return kAlignmentDefault;
  const auto* number = std::get_if<uint64_t>(value);
  if (number == nullptr || *number > kAlignmentMax || !std::has_single_bit(*number)) {
    cursor.refuse(
        fmt::format("general.alignment: expected a power of two up to {}", kAlignmentMax));
  }
  return *number;
}

// Turns offsets in the data into those in the file; data must be there, aligned, and not shared.
void place_tensors(Cursor& cursor, GgufHeader& header, uint64_t alignment, uint64_t file_bytes) {
  const uint64_t data = (cursor.at() + alignment - 1) / alignment * alignment;
  header.data_offset = std::min(data, file_bytes);
  for (GgufTensor& tensor : header.tensors) {
    cursor.enter(fmt::format("tensor {}", printable(tensor.name)));
    if (tensor.offset % alignment != 0) {
      cursor.refuse(fmt::format("offset {}, expected a multiple of {}", tensor.offset, alignment));
    }
    const uint64_t room = file_bytes - header.data_offset;
    if (tensor.offset > room || tensor.bytes > room - tensor.offset) {
      cursor.refuse(
          fmt::format("{} bytes at offset {} of {} bytes of data: the file is cut off or damaged",
                      tensor.bytes, tensor.offset, room));
    }
    tensor.offset += header.data_offset;
  }
  std::vector<const GgufTensor*> order;
  for (const GgufTensor& tensor : header.tensors) order.push_back(&tensor);
  std::sort(order.begin(), order.end(),
            [](const GgufTensor* a, const GgufTensor* b) { return a->offset < b->offset; });
  for (size_t i = 1; i < order.size(); ++i) {
    if (order[i - 1]->offset + order[i - 1]->bytes <= order[i]->offset) continue;
    cursor.enter(fmt::format("tensor {}", printable(order[i]->name)));
    cursor.refuse(fmt::format("its data overlap those of {}", printable(order[i - 1]->name)));
  }
}

void read_version(Cursor& cursor, GgufHeader& header) {
  if (cursor.bytes(kMagic.size()) != kMagic) {
    cursor.refuse("not a GGUF file: it doesn't begin with the letters GGUF");
  }
  header.version = cursor.u32();
  if (header.version == 2 || header.version == 3) return;
  const bool swapped = (header.version & 0xffff) == 0;
  cursor.refuse(swapped ? std::string("a GGUF file of a big-endian machine, which isn't supported")
                        : fmt::format("version {} of GGUF, expected 2 or 3", header.version));
}

GgufHeader parse(std::shared_ptr<const std::string> begin, uint64_t file_bytes,
                 const std::filesystem::path& file) {
  GgufHeader header;
  header.text = std::move(begin);
  Cursor cursor(*header.text, file_bytes, file);
  read_version(cursor, header);
  const uint64_t tensors = cursor.u64(), keys = cursor.u64();
  if (tensors > kGgufTensorsMax || keys > kGgufKeysMax) {
    cursor.refuse(fmt::format("{} tensors and {} keys, expected at most {} and {}", tensors, keys,
                              kGgufTensorsMax, kGgufKeysMax));
  }
  read_metadata(cursor, keys, header);
  std::unordered_set<std::string_view> names;
  for (uint64_t i = 0; i < tensors; ++i) {
    cursor.enter(fmt::format("tensor {} of {}", i + 1, tensors));
    header.tensors.push_back(read_tensor(cursor));
    if (!names.insert(header.tensors.back().name).second) cursor.refuse("it is there twice");
  }
  cursor.enter("");
  place_tensors(cursor, header, alignment_of(cursor, header), file_bytes);
  return header;
}

}  // namespace

int64_t GgufTensor::elements() const {
  return std::accumulate(shape.begin(), shape.end(), int64_t{1}, std::multiplies<>());
}

const GgufValue* GgufHeader::find(std::string_view key) const {
  const auto found = metadata.find(key);
  return found == metadata.end() ? nullptr : &found->second;
}

std::string kind_text(const GgufValue& value) {
  constexpr std::string_view kScalars[] = {"a whole number", "a whole number", "a number",
                                           "true or false", "a string"};
  if (const auto* array = std::get_if<GgufArray>(&value)) {
    return fmt::format("an array of {}", kKindNames[static_cast<uint32_t>(array->kind)]);
  }
  return std::string(kScalars[value.index()]);
}

std::vector<std::string_view> GgufArray::strings() const {
  if (kind != GgufKind::kString) {
    throw LoadError(fmt::format("expected an array of strings, found {}", kind_text(*this)));
  }
  std::vector<std::string_view> all;
  all.reserve(count);
  for (size_t at = 0; at < bytes.size();) {
    const uint64_t size = little_endian(bytes.substr(at, 8));
    all.push_back(bytes.substr(at + 8, size));
    at += 8 + size;
  }
  return all;
}

std::vector<int64_t> GgufArray::integers() const {
  const size_t size = kind_bytes(kind);
  const bool is_signed = kind == GgufKind::kI8 || kind == GgufKind::kI16 ||
                         kind == GgufKind::kI32 || kind == GgufKind::kI64;
  const bool is_unsigned =
      kind == GgufKind::kU8 || kind == GgufKind::kU16 || kind == GgufKind::kU32;
  if (!is_signed && !is_unsigned) {
    throw LoadError(fmt::format("expected an array of whole numbers, found {}", kind_text(*this)));
  }
  std::vector<int64_t> all;
  all.reserve(count);
  for (size_t at = 0; at < bytes.size(); at += size) {
    const uint64_t bits = little_endian(bytes.substr(at, size));
    all.push_back(is_signed ? sign_extended(bits, size) : static_cast<int64_t>(bits));
  }
  return all;
}

std::optional<GgufHeader> parse_gguf_header(std::shared_ptr<const std::string> begin,
                                            uint64_t file_bytes,
                                            const std::filesystem::path& file) {
  try {
    return parse(std::move(begin), file_bytes, file);
  } catch (const NeedsMore&) {
    return std::nullopt;
  }
}

}  // namespace atl::storage
