// Makes GGUF files byte by byte, right ones and wrong ones.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

namespace atl::test {

class GgufBytes {
 public:
  explicit GgufBytes(uint32_t version = 3) : version_(version) {}

  static std::string u32(uint32_t value) { return raw(value); }
  static std::string u64(uint64_t value) { return raw(value); }
  static std::string f32(float value) { return raw(value); }
  static std::string text(std::string_view value) { return u64(value.size()) + std::string(value); }

  // A key of the kind's number with the bytes of its value.
  GgufBytes& key(std::string_view name, uint32_t kind, const std::string& value) {
    keys_ += text(name) + u32(kind) + value;
    ++num_keys_;
    return *this;
  }
  GgufBytes& integer(std::string_view name, uint32_t value) { return key(name, 4, u32(value)); }
  GgufBytes& number(std::string_view name, float value) { return key(name, 6, f32(value)); }
  GgufBytes& boolean(std::string_view name, bool value) {
    return key(name, 7, std::string(1, static_cast<char>(value)));
  }
  GgufBytes& string(std::string_view name, std::string_view value) {
    return key(name, 8, text(value));
  }
  GgufBytes& strings(std::string_view name, const std::vector<std::string>& values) {
    std::string all = u32(8) + u64(values.size());
    for (const std::string& value : values) all += text(value);
    return key(name, 9, all);
  }
  GgufBytes& integers(std::string_view name, const std::vector<int32_t>& values) {
    std::string all = u32(5) + u64(values.size());
    for (const int32_t value : values) all += raw(value);
    return key(name, 9, all);
  }

  // Sizes outermost first; data behind those of the tensors before, at a multiple of 32.
  GgufBytes& tensor(std::string_view name, const std::vector<uint64_t>& shape, uint32_t type,
                    std::string_view data) {
    data_.resize((data_.size() + 31) / 32 * 32);
    entry(name, shape, type, data_.size());
    data_ += data;
    return *this;
  }
  // The entry alone.
  GgufBytes& entry(std::string_view name, const std::vector<uint64_t>& shape, uint32_t type,
                   uint64_t offset) {
    tensors_ += text(name) + u32(static_cast<uint32_t>(shape.size()));
    for (auto size = shape.rbegin(); size != shape.rend(); ++size) tensors_ += u64(*size);
    tensors_ += u32(type) + u64(offset);
    ++num_tensors_;
    return *this;
  }

  std::string file() const {
    std::string all =
        "GGUF" + u32(version_) + u64(num_tensors_) + u64(num_keys_) + keys_ + tensors_;
    all.resize((all.size() + 31) / 32 * 32);
    return all + data_;
  }

 private:
  template <typename T>
  static std::string raw(T value) {
    std::string bytes(sizeof value, '\0');
    std::memcpy(bytes.data(), &value, sizeof value);
    return bytes;
  }

  uint32_t version_;
  uint64_t num_keys_ = 0, num_tensors_ = 0;
  std::string keys_, tensors_, data_;
};

}  // namespace atl::test
