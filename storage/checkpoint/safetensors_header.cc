#include "storage/checkpoint/safetensors_header.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>

#include "base/result.h"
#include "storage/io/printable.h"

namespace atl::storage {
namespace {

using Json = nlohmann::json;

constexpr size_t kDimensionsMax = 16;
constexpr int kNestingMax = 32;  // of values that are skipped

struct DTypeName {
  DType dtype;
  std::string_view name;
  size_t bytes;
};
constexpr std::array<DTypeName, 8> kDTypes = {{{DType::kF8E4m3, "F8_E4M3", 1},
                                               {DType::kBf16, "BF16", 2},
                                               {DType::kF32, "F32", 4},
                                               {DType::kF16, "F16", 2},
                                               {DType::kI64, "I64", 8},
                                               {DType::kI32, "I32", 4},
                                               {DType::kI8, "I8", 1},
                                               {DType::kU8, "U8", 1}}};

DType dtype_of(std::string_view name) {
  for (const DTypeName& known : kDTypes) {
    if (known.name == name) return known.dtype;
  }
  return DType::kOther;
}

// What nlohmann's parser tells, refusing everything that a derived class does not expect. It keeps
// no tree (a header has 92,000 objects) and sees duplicate keys, which a tree would hide.
class StrictSax : public nlohmann::json_sax<Json> {
 public:
  bool null() override { return scalar("null"); }
  bool boolean(bool) override { return scalar("a boolean"); }
  bool number_integer(number_integer_t value) override {
    return skipping() || refuse(fmt::format("negative number {}", value));
  }
  bool number_unsigned(number_unsigned_t value) override { return skipping() || number(value); }
  bool number_float(number_float_t, const string_t& text) override {
    return skipping() || refuse(fmt::format("number {} is not an integer in range", text));
  }
  bool string(string_t& value) override { return skipping() || text(value); }
  bool binary(binary_t&) override { return refuse("binary value"); }
  bool start_object(size_t) override { return enter() || object_begin(); }
  bool end_object() override { return leave() || object_end(); }
  bool start_array(size_t) override { return enter() || array_begin(); }
  bool end_array() override { return leave() || array_end(); }
  bool key(string_t& name) override { return skipping() || member(name); }
  bool parse_error(size_t position, const std::string&, const Json::exception&) override {
    return refuse(fmt::format("not valid JSON at byte {}", position));
  }

  const std::string& error() const { return error_; }

 protected:
  virtual bool number(uint64_t) { return refuse("unexpected number"); }
  virtual bool text(std::string& value) { return refuse("unexpected string " + printable(value)); }
  virtual bool member(std::string& name) = 0;
  virtual bool object_begin() = 0;
  virtual bool object_end() = 0;
  virtual bool array_begin() { return refuse("unexpected array"); }
  virtual bool array_end() { return true; }

  bool refuse(std::string what) {
    if (error_.empty()) error_ = std::move(what);
    return false;
  }
  // The value that comes next (a scalar, or all of an object or array) is of no interest.
  void skip_next_value() { skip_pending_ = true; }

 private:
  bool scalar(const char* what) { return skipping() || refuse(fmt::format("unexpected {}", what)); }
  bool skipping() {
    if (skip_depth_ > 0) return true;
    return std::exchange(skip_pending_, false);
  }
  bool enter() {
    if (!skip_pending_ && skip_depth_ == 0) return false;
    skip_pending_ = false;
    if (++skip_depth_ > kNestingMax) {
      skip_depth_ = 0;
      return false;
    }
    return true;
  }
  bool leave() {
    if (skip_depth_ == 0) return false;
    --skip_depth_;
    return true;
  }

  std::string error_;
  bool skip_pending_ = false;
  int skip_depth_ = 0;
};

// {"name": {"dtype", "shape", "data_offsets"}, ..., "__metadata__"?: {...}}
class HeaderSax final : public StrictSax {
 public:
  std::vector<TensorInfo> take() { return std::move(tensors_); }
  // The tensor that was being read when the text was refused.
  std::string_view tensor_name() const { return in_tensor_ ? current_.name : std::string_view(); }

 private:
  enum class Field { kNone, kDtype, kShape, kOffsets };

  bool object_begin() override {
    if (!in_header_) return in_header_ = true;
    if (!in_tensor_ || in_body_) return refuse("unexpected object");
    return in_body_ = true;
  }
  bool object_end() override {
    if (!in_body_) return true;  // the header's own end
    if (!has_[0]) return refuse("\"dtype\" is missing");
    if (!has_[1]) return refuse("\"shape\" is missing");
    if (!has_[2]) return refuse("\"data_offsets\" is missing");
    if (offsets_.size() != 2) {
      return refuse(fmt::format("data_offsets has {} numbers, expected 2", offsets_.size()));
    }
    if (offsets_[1] < offsets_[0]) {
      return refuse(
          fmt::format("data_offsets [{}, {}] end before they begin", offsets_[0], offsets_[1]));
    }
    current_.offset = offsets_[0];
    current_.bytes = current_.stored_bytes = offsets_[1] - offsets_[0];
    tensors_.push_back(std::move(current_));
    in_body_ = in_tensor_ = false;
    return true;
  }
  bool member(std::string& name) override {
    if (!in_body_) return header_member(name);
    field_ = name == "dtype"          ? Field::kDtype
             : name == "shape"        ? Field::kShape
             : name == "data_offsets" ? Field::kOffsets
                                      : Field::kNone;
    if (field_ == Field::kNone) return refuse("unknown key " + printable(name));
    bool& seen = has_[static_cast<int>(field_) - 1];
    if (seen) return refuse("key " + printable(name) + " stands there twice");
    return seen = true;
  }
  bool header_member(std::string& name) {
    if (name == "__metadata__") {
      if (std::exchange(has_metadata_, true)) return refuse("\"__metadata__\" stands there twice");
      skip_next_value();
      return true;
    }
    current_ = TensorInfo{};
    current_.name = std::move(name);
    offsets_.clear();
    has_ = {};
    field_ = Field::kNone;
    return in_tensor_ = true;
  }
  bool text(std::string& value) override {
    if (!in_body_ || field_ != Field::kDtype || in_array_) return StrictSax::text(value);
    current_.dtype = dtype_of(value);
    current_.dtype_name = std::move(value);
    field_ = Field::kNone;
    return true;
  }
  bool number(uint64_t value) override {
    if (!in_array_) return StrictSax::number(value);
    if (field_ == Field::kOffsets) {
      offsets_.push_back(value);
      return offsets_.size() <= 2 || refuse("data_offsets has more than 2 numbers");
    }
    if (value > static_cast<uint64_t>(INT64_MAX)) return refuse("a dimension is beyond 2^63");
    if (current_.shape.size() == kDimensionsMax) {
      return refuse(fmt::format("shape has more than {} dimensions", kDimensionsMax));
    }
    current_.shape.push_back(static_cast<int64_t>(value));
    return true;
  }
  bool array_begin() override {
    const bool expected =
        in_body_ && !in_array_ && (field_ == Field::kShape || field_ == Field::kOffsets);
    if (!expected) return refuse("unexpected array");
    return in_array_ = true;
  }
  bool array_end() override {
    in_array_ = false;
    field_ = Field::kNone;
    return true;
  }

  std::vector<TensorInfo> tensors_;
  TensorInfo current_;
  std::vector<uint64_t> offsets_;
  std::array<bool, 3> has_{};
  Field field_ = Field::kNone;
  bool has_metadata_ = false;
  bool in_header_ = false;
  bool in_tensor_ = false;  // between a tensor's name and the end of its object
  bool in_body_ = false;    // inside that object
  bool in_array_ = false;
};

// {"metadata": {...}, "weight_map": {"tensor": "file", ...}}; other keys are skipped.
class IndexSax final : public StrictSax {
 public:
  std::vector<IndexEntry> take() { return std::move(entries_); }
  bool has_map() const { return has_map_; }

 private:
  bool object_begin() override {
    if (!in_top_) return in_top_ = true;
    if (!map_next_) return refuse("unexpected object");
    map_next_ = false;
    return in_map_ = true;
  }
  bool object_end() override {
    in_map_ = false;
    return true;
  }
  bool member(std::string& name) override {
    if (in_map_) {
      entries_.push_back({std::move(name), {}});
      return true;
    }
    if (name != "weight_map") {
      skip_next_value();
      return true;
    }
    if (std::exchange(has_map_, true)) return refuse("\"weight_map\" stands there twice");
    return map_next_ = true;
  }
  bool text(std::string& value) override {
    if (!in_map_) return StrictSax::text(value);
    if (value.empty() || value == "." || value == ".." ||
        value.find_first_of(std::string_view("/\\\0", 3)) != std::string::npos) {
      return refuse(fmt::format("tensor {} is mapped to {}, expected a plain file name",
                                printable(entries_.back().tensor), printable(value)));
    }
    entries_.back().shard_file = std::move(value);
    return true;
  }

  std::vector<IndexEntry> entries_;
  bool has_map_ = false;
  bool in_top_ = false;
  bool map_next_ = false;
  bool in_map_ = false;
};

[[noreturn]] void throw_tensor(const std::filesystem::path& file, std::string_view tensor,
                               const std::string& what) {
  throw LoadError(fmt::format("{}: tensor {}: {}", file.string(), printable(tensor), what));
}

std::string shape_text(const std::vector<int64_t>& shape) {
  return fmt::format("[{}]", fmt::join(shape, ", "));
}

// Bytes that dtype and shape ask for; nothing if that is beyond 2^63.
std::optional<uint64_t> expected_bytes(const TensorInfo& tensor) {
  int64_t bytes = static_cast<int64_t>(dtype_bytes(tensor.dtype));
  for (const int64_t size : tensor.shape) {
    if (size == 0) return 0;
  }
  for (const int64_t size : tensor.shape) {
    if (__builtin_mul_overflow(bytes, size, &bytes)) return std::nullopt;
  }
  return static_cast<uint64_t>(bytes);
}

void check_size(const TensorInfo& tensor, const std::filesystem::path& file) {
  int64_t elements = 1;
  for (const int64_t size : tensor.shape) {
    if (size != 0 && __builtin_mul_overflow(elements, size, &elements)) {
      throw_tensor(file, tensor.name,
                   fmt::format("shape {} has more than 2^63 elements", shape_text(tensor.shape)));
    }
  }
  if (tensor.dtype == DType::kOther) return;
  const std::optional<uint64_t> expected = expected_bytes(tensor);
  if (expected != tensor.bytes) {
    throw_tensor(file, tensor.name,
                 fmt::format("data_offsets span {} bytes, expected {} for {} {}", tensor.bytes,
                             expected ? fmt::format("{}", *expected) : "more than 2^63",
                             tensor.dtype_name, shape_text(tensor.shape)));
  }
}

// Every byte of the data section belongs to exactly one tensor.
void check_coverage(const std::vector<TensorInfo>& tensors, uint64_t data_bytes,
                    const std::filesystem::path& file) {
  std::vector<const TensorInfo*> by_offset;
  for (const TensorInfo& tensor : tensors) by_offset.push_back(&tensor);
  std::sort(by_offset.begin(), by_offset.end(), [](const TensorInfo* a, const TensorInfo* b) {
    return std::pair(a->offset, a->bytes) < std::pair(b->offset, b->bytes);
  });
  uint64_t end = 0;
  for (const TensorInfo* place : by_offset) {
    const TensorInfo& tensor = *place;
    if (tensor.offset + tensor.bytes > data_bytes) {
      throw_tensor(file, tensor.name,
                   fmt::format("ends at byte {} of {} in the data section: the file is truncated, "
                               "fetch it again",
                               tensor.offset + tensor.bytes, data_bytes));
    }
    if (tensor.offset < end) {
      throw_tensor(file, tensor.name,
                   fmt::format("begins at byte {}, inside the tensor before it, which ends at {}",
                               tensor.offset, end));
    }
    if (tensor.offset > end) {
      throw_tensor(file, tensor.name,
                   fmt::format("begins at byte {}, but the tensor before it ends at {}: a hole",
                               tensor.offset, end));
    }
    end = tensor.offset + tensor.bytes;
  }
  if (end != data_bytes) {
    throw LoadError(fmt::format("{}: the data section has {} bytes, its tensors end at {}",
                                file.string(), data_bytes, end));
  }
}

template <typename Entries, typename Name>
void sort_and_refuse_duplicates(Entries& entries, Name name, const std::filesystem::path& file) {
  std::sort(entries.begin(), entries.end(),
            [&](const auto& a, const auto& b) { return name(a) < name(b); });
  const auto twice =
      std::adjacent_find(entries.begin(), entries.end(),
                         [&](const auto& a, const auto& b) { return name(a) == name(b); });
  if (twice != entries.end()) throw_tensor(file, name(*twice), "stands there twice");
}

}  // namespace

std::string_view to_string(DType dtype) {
  for (const DTypeName& known : kDTypes) {
    if (known.dtype == dtype) return known.name;
  }
  return "other";
}

size_t dtype_bytes(DType dtype) {
  for (const DTypeName& known : kDTypes) {
    if (known.dtype == dtype) return known.bytes;
  }
  return 0;
}

std::vector<TensorInfo> parse_safetensors_header(std::string_view json, uint64_t data_offset,
                                                 uint64_t file_bytes,
                                                 const std::filesystem::path& file) {
  HeaderSax sax;
  if (!Json::sax_parse(json.begin(), json.end(), &sax)) {
    if (!sax.tensor_name().empty()) throw_tensor(file, sax.tensor_name(), sax.error());
    throw LoadError(fmt::format("{}: header: {}", file.string(), sax.error()));
  }
  std::vector<TensorInfo> tensors = sax.take();
  sort_and_refuse_duplicates(
      tensors, [](const TensorInfo& t) -> const std::string& { return t.name; }, file);
  for (const TensorInfo& tensor : tensors) check_size(tensor, file);
  check_coverage(tensors, file_bytes - data_offset, file);
  for (TensorInfo& tensor : tensors) tensor.offset += data_offset;
  return tensors;
}

std::vector<IndexEntry> parse_safetensors_index(std::string_view json,
                                                const std::filesystem::path& file) {
  IndexSax sax;
  if (!Json::sax_parse(json.begin(), json.end(), &sax)) {
    throw LoadError(fmt::format("{}: {}", file.string(), sax.error()));
  }
  if (!sax.has_map()) {
    throw LoadError(fmt::format("{}: \"weight_map\" is missing", file.string()));
  }
  std::vector<IndexEntry> entries = sax.take();
  if (entries.empty()) throw LoadError(fmt::format("{}: \"weight_map\" is empty", file.string()));
  sort_and_refuse_duplicates(
      entries, [](const IndexEntry& e) -> const std::string& { return e.tensor; }, file);
  return entries;
}

}  // namespace atl::storage
