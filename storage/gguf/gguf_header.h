// What stands before the weights of a GGUF file: metadata and the table of tensors, checked, so
// that who reads on needn't. Source: the published description of the format, versions 2 and 3.
//
//   "GGUF" | version u32 | tensors u64 | keys u64 | keys | tensor table | zeros to the alignment |
//   data key:     name | kind u32 | value          string: bytes u64 | bytes, no zero tensor:  name
//   | dimensions u32 | sizes u64, innermost first | type u32 | offset in the data u64
//
// All little-endian. docs/gguf.md says what Atoll makes of it.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

namespace atl::storage {

// Whole tokenizers are in there: a vocabulary of 163,840 with its merges takes 8 MB.
inline constexpr uint64_t kGgufHeaderBytesMax = uint64_t{256} << 20;
inline constexpr uint64_t kGgufTensorsMax = 1 << 17;
inline constexpr uint64_t kGgufKeysMax = 1 << 16;

enum class GgufKind : uint32_t {
  kU8 = 0,
  kI8 = 1,
  kU16 = 2,
  kI16 = 3,
  kU32 = 4,
  kI32 = 5,
  kF32 = 6,
  kBool = 7,
  kString = 8,
  kArray = 9,
  kU64 = 10,
  kI64 = 11,
  kF64 = 12,
};

// Elements as they are in the file, whole and of one kind, no arrays among them.
struct GgufArray {
  GgufKind kind = GgufKind::kU8;
  uint64_t count = 0;
  std::string_view bytes;

  // LoadError if they are of another kind: "expected ..., found an array of f32".
  std::vector<std::string_view> strings() const;
  std::vector<int64_t> integers() const;
};
using GgufValue = std::variant<uint64_t, int64_t, double, bool, std::string_view, GgufArray>;
// "a string", "an array of i32", ... for messages.
std::string kind_text(const GgufValue& value);

struct GgufTensor {
  std::string_view name;
  uint32_t type = 0;           // one that find_ggml_type() knows
  std::vector<int64_t> shape;  // outermost first, as Hugging Face has it: [rows, columns]
  uint64_t offset = 0;         // of the first byte, from the start of the file
  uint64_t bytes = 0;

  int64_t elements() const;
};

struct GgufHeader {
  uint32_t version = 0;
  std::map<std::string_view, GgufValue, std::less<>> metadata;
  std::vector<GgufTensor> tensors;  // as in the file
  uint64_t data_offset = 0;
  std::shared_ptr<const std::string> text;  // what all names and values point into

  const GgufValue* find(std::string_view key) const;
};

// Parses the beginning of a file of `file_bytes`; nullopt if more of it is needed. `file` is for
// messages only. LoadError, one line with file, key or tensor, for everything that isn't as the
// format has it: lengths beyond the file's end, keys or tensors that stand twice, types that nobody
// knows, sizes that overflow, data that overlap or lie outside.
std::optional<GgufHeader> parse_gguf_header(std::shared_ptr<const std::string> begin,
                                            uint64_t file_bytes, const std::filesystem::path& file);

}  // namespace atl::storage
