#include "tests/support/golden.h"

#include <fstream>
#include <stdexcept>

namespace atl::test {

GoldenFolder::GoldenFolder(const std::filesystem::path& folder) : folder_(folder) {
  std::ifstream in(folder / "index.json");
  if (!in) throw std::runtime_error((folder / "index.json").string() + " is missing");
  index_ = nlohmann::json::parse(in);
}

template <typename T>
GoldenArray<T> GoldenFolder::read(const std::string& name, const std::string& dtype) const {
  const nlohmann::json& entry = index_.at("files").at(name);
  if (entry.at("dtype") != dtype) throw std::runtime_error(name + " is not " + dtype);
  GoldenArray<T> array;
  array.shape = entry.at("shape").get<std::vector<int64_t>>();
  int64_t elements = 1;
  for (const int64_t extent : array.shape) elements *= extent;
  array.data.resize(elements);
  const std::filesystem::path path = folder_ / entry.at("file").get<std::string>();
  std::ifstream in(path, std::ios::binary);
  in.read(reinterpret_cast<char*>(array.data.data()),
          static_cast<std::streamsize>(elements * sizeof(T)));
  if (!in) throw std::runtime_error(path.string() + " is missing or short");
  return array;
}

template GoldenArray<float> GoldenFolder::read<float>(const std::string&, const std::string&) const;
template GoldenArray<int32_t> GoldenFolder::read<int32_t>(const std::string&,
                                                          const std::string&) const;

GoldenArray<int32_t> GoldenFolder::ids(const std::string& name) const {
  const GoldenArray<uint16_t> narrow = read<uint16_t>(name, "u16");
  return {narrow.shape, {narrow.data.begin(), narrow.data.end()}};
}

std::filesystem::path tests_dir() { return std::filesystem::path(ATOLL_SOURCE_DIR) / "tests"; }

}  // namespace atl::test
