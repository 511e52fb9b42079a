#include "storage/gguf/gguf_files.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>
#include <set>
#include <string>
#include <unordered_set>

#include "base/result.h"
#include "storage/checkpoint/model_dir.h"
#include "storage/io/printable.h"
#include "storage/pack/pack.h"

namespace atl::storage {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kExtension = ".gguf";
// Most headers are a few MB; one that needs more is read again with twice as much.
constexpr uint64_t kFirstReadBytes = uint64_t{16} << 20;

// "NAME-00002-of-00005.gguf": NAME, 2 and 5.
struct SplitName {
  std::string stem;
  int number = 0, count = 0;

  std::string file(int which) const {
    return fmt::format("{}-{:05}-of-{:05}{}", stem, which, count, kExtension);
  }
};

std::optional<int> five_digits(std::string_view text) {
  int value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  const bool whole = error == std::errc() && end == text.data() + text.size() && value > 0;
  return whole && text.size() == 5 ? std::optional(value) : std::nullopt;
}

std::optional<SplitName> split_name(std::string_view name) {
  constexpr std::string_view kForm = "-00001-of-00005.gguf", kOf = "-of-";
  if (name.size() <= kForm.size() || !name.ends_with(kExtension)) return std::nullopt;
  const std::string_view tail = name.substr(name.size() - kForm.size());
  if (tail[0] != '-' || tail.substr(6, kOf.size()) != kOf) return std::nullopt;
  const auto number = five_digits(tail.substr(1, 5)), count = five_digits(tail.substr(10, 5));
  if (!number || !count || *number > *count) return std::nullopt;
  return SplitName{std::string(name.substr(0, name.size() - kForm.size())), *number, *count};
}

bool begins_as_gguf(const fs::path& file) {
  const FileHandle handle = open_for_reading(file);
  if (file_bytes(handle) < 4) return false;
  char magic[4];
  read_exactly(handle, 0, std::as_writable_bytes(std::span(magic)));
  return std::string_view(magic, 4) == "GGUF";
}

GgufHeader read_header(const FileHandle& file, uint64_t bytes) {
  for (uint64_t step = kFirstReadBytes;; step *= 2) {
    auto text = std::make_shared<std::string>(std::min({step, bytes, kGgufHeaderBytesMax}), '\0');
    read_exactly(file, 0, std::as_writable_bytes(std::span(*text)));
    if (auto header = parse_gguf_header(std::move(text), bytes, file.path())) {
      return std::move(*header);
    }
  }
}

// The key's number, if it is there and is one.
std::optional<uint64_t> number_of(const GgufHeader& header, std::string_view key) {
  const GgufValue* value = header.find(key);
  if (value == nullptr) return std::nullopt;
  if (const auto* number = std::get_if<uint64_t>(value)) return *number;
  const auto* number = std::get_if<int64_t>(value);
  return number != nullptr && *number >= 0 ? std::optional<uint64_t>(*number) : std::nullopt;
}

// What each file says of the splits is what their names say.
void check_splits(const std::vector<GgufFile>& files) {
  uint64_t tensors = 0;
  for (size_t i = 0; i < files.size(); ++i) {
    const GgufHeader& header = files[i].header;
    const uint64_t count = number_of(header, "split.count").value_or(1);
    const uint64_t number = number_of(header, "split.no").value_or(0);
    tensors += header.tensors.size();
    if (std::max<uint64_t>(count, 1) == files.size() && number == i) continue;
    throw LoadError(fmt::format(
        "{}: the file says it is split {} of {}, by its name it is {} of {}: give the files of a "
        "model their published names NAME-00001-of-0000N.gguf",
        files[i].file.path().string(), number + 1, count, i + 1, files.size()));
  }
  const auto expected = number_of(files[0].header, "split.tensors.count");
  if (!expected || *expected == tensors || files.size() == 1) return;
  throw LoadError(fmt::format("{}: split.tensors.count is {}, the {} files have {} tensors",
                              files[0].file.path().string(), *expected, files.size(), tensors));
}

void refuse_tensor_twice(const std::vector<GgufFile>& files) {
  std::unordered_set<std::string_view> names;
  for (const GgufFile& file : files) {
    for (const GgufTensor& tensor : file.header.tensors) {
      if (names.insert(tensor.name).second) continue;
      throw LoadError(fmt::format("{}: tensor {} is in another split, too",
                                  file.file.path().string(), printable(tensor.name)));
    }
  }
}

}  // namespace

std::optional<fs::path> find_gguf(const fs::path& path) {
  std::error_code error;
  if (fs::is_regular_file(path, error)) {
    if (path.extension() == kExtension || begins_as_gguf(path)) return path;
    return std::nullopt;
  }
  if (!fs::is_directory(path, error) || Pack::is_pack(path) ||
      fs::exists(path / "model.safetensors", error) ||
      fs::exists(path / "model.safetensors.index.json", error)) {
    return std::nullopt;
  }
  std::set<std::string> models;  // by their first file
  for (const fs::directory_entry& entry : fs::directory_iterator(path, error)) {
    const std::string name = entry.path().filename().string();
    if (!name.ends_with(kExtension)) continue;
    const auto split = split_name(name);
    models.insert(split ? split->file(1) : name);
  }
  if (models.empty()) return std::nullopt;
  if (models.size() > 1) {
    throw LoadError(fmt::format("{}: {} GGUF models ({}): give the file of one", path.string(),
                                models.size(), fmt::join(models, ", ")));
  }
  return path / *models.begin();
}

std::vector<GgufFile> open_gguf_files(const fs::path& path) {
  std::vector<std::string> names = {path.filename().string()};
  if (const auto split = split_name(names[0])) {
    if (split->count > kGgufSplitsMax) {
      throw LoadError(fmt::format("{}: one of {} splits, expected at most {}", path.string(),
                                  split->count, kGgufSplitsMax));
    }
    names.clear();
    for (int number = 1; number <= split->count; ++number) names.push_back(split->file(number));
  }
  const fs::path dir = path.has_parent_path() ? path.parent_path() : fs::path(".");
  require_shards(dir, names);
  std::vector<GgufFile> files;
  for (const std::string& name : names) {
    GgufFile file{open_for_reading(dir / name), 0, {}};
    file.file_bytes = file_bytes(file.file);
    file.header = read_header(file.file, file.file_bytes);
    files.push_back(std::move(file));
  }
  check_splits(files);
  refuse_tensor_twice(files);
  return files;
}

}  // namespace atl::storage
