// Reference results under tests/golden and tests/models/*/golden: raw little-endian arrays listed
// in an index.json (tests/golden/README.md).
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace atl::test {

template <typename T>
struct GoldenArray {
  std::vector<int64_t> shape;
  std::vector<T> data;

  int64_t row_elements() const { return shape.back(); }
  const T* row(int64_t index) const { return data.data() + index * row_elements(); }
};

// Throws std::runtime_error for a file that is missing, short or of another type.
class GoldenFolder {
 public:
  explicit GoldenFolder(const std::filesystem::path& folder);

  const nlohmann::json& index() const { return index_; }
  GoldenArray<float> f32(const std::string& name) const { return read<float>(name, "f32"); }
  GoldenArray<int32_t> i32(const std::string& name) const { return read<int32_t>(name, "i32"); }
  // u16 ids, widened.
  GoldenArray<int32_t> ids(const std::string& name) const;

 private:
  template <typename T>
  GoldenArray<T> read(const std::string& name, const std::string& dtype) const;

  std::filesystem::path folder_;
  nlohmann::json index_;
};

// tests/ of the source tree.
std::filesystem::path tests_dir();

}  // namespace atl::test
