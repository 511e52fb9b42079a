#include "storage/checkpoint/model_dir.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <fstream>
#include <optional>
#include <sstream>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "storage/io/printable.h"

namespace atl::storage {
namespace {

namespace fs = std::filesystem;

// Source: git-lfs, docs/spec.md, "The Pointer": at most 1024 bytes, this line first.
constexpr std::string_view kLfsPointer = "version https://git-lfs.github.com/spec/v1";
constexpr uintmax_t kLfsPointerBytesMax = 1024;

constexpr std::string_view kGoOn =
    "run the download again, it goes on where it stopped (huggingface-cli download ID --local-dir "
    "DIR)";
constexpr std::string_view kReads =
    "Atoll reads config.json, tokenizer.json and safetensors as published on Hugging Face";
constexpr size_t kNamesShown = 3;

[[noreturn]] void refuse(const fs::path& path, std::string_view what) {
  throw LoadError(fmt::format("{}: {}", path.string(), what));
}

bool is_lfs_pointer(const fs::path& file) {
  std::error_code error;
  if (!fs::is_regular_file(file, error)) return false;
  const uintmax_t bytes = fs::file_size(file, error);
  if (error || bytes > kLfsPointerBytesMax || bytes < kLfsPointer.size()) return false;
  std::string begin(kLfsPointer.size(), '\0');
  std::ifstream in(file, std::ios::binary);
  in.read(begin.data(), static_cast<std::streamsize>(begin.size()));
  return in && begin == kLfsPointer;
}

// Names of what is in a directory, sorted; empty if it can't be read.
std::vector<std::string> names_in(const fs::path& dir) {
  std::vector<std::string> names;
  std::error_code error;
  for (fs::directory_iterator at(dir, error), end; !error && at != end; at.increment(error)) {
    names.push_back(at->path().filename().string());
  }
  std::sort(names.begin(), names.end());
  return names;
}

std::vector<std::string> with_suffix(const std::vector<std::string>& names,
                                     std::string_view suffix) {
  std::vector<std::string> found;
  std::copy_if(names.begin(), names.end(), std::back_inserter(found),
               [&](const std::string& name) { return name.ends_with(suffix); });
  return found;
}

// What stands behind the host of an address on Hugging Face.
std::optional<std::string> behind_host(std::string_view text) {
  for (const std::string_view scheme : {"https://", "http://"}) {
    if (text.starts_with(scheme)) text.remove_prefix(scheme.size());
  }
  for (const std::string_view host :
       {"hf://", "www.huggingface.co/", "huggingface.co/", "hf.co/"}) {
    if (text.starts_with(host)) return std::string(text.substr(host.size()));
  }
  return std::nullopt;
}

// "ORG/NAME" of "ORG/NAME", "https://huggingface.co/ORG/NAME/tree/main" and the like.
std::optional<std::string> hugging_face_id(const std::string& text) {
  const std::optional<std::string> address = behind_host(text);
  std::istringstream parts(address.value_or(text));
  std::string owner, name, rest;
  std::getline(parts, owner, '/');
  std::getline(parts, name, '/');
  if (!address && std::getline(parts, rest)) return std::nullopt;
  const auto is_name = [](const std::string& part) {
    return !part.empty() && part.front() != '.' &&
           std::all_of(part.begin(), part.end(), [](unsigned char c) {
             return std::isalnum(c) || c == '-' || c == '_' || c == '.';
           });
  };
  if (!is_name(owner) || !is_name(name)) return std::nullopt;
  return owner + "/" + name;
}

[[noreturn]] void refuse_missing(const fs::path& path) {
  if (path.extension() == ".gguf") refuse(path, "there is no such file");
  const std::string text = path.string();
  if (const auto hint = download_hint(text)) {
    refuse(path, fmt::format("there is no such directory; if this is a model on Hugging Face, {}",
                             *hint));
  }
  if (text.find("://") != std::string::npos) {
    refuse(path, "an address, expected a directory of this machine: download the model first");
  }
  refuse(path,
         "there is no such directory: expected a model directory with config.json and "
         "safetensors files");
}

[[noreturn]] void refuse_file(const fs::path& path) {
  fs::path dir = path.parent_path();
  if (dir.empty()) dir = ".";
  std::error_code error;
  if (fs::exists(dir / "config.json", error)) {
    refuse(path, fmt::format("a file, expected its directory: give {}", dir.string()));
  }
  refuse(path, "a file, expected a model directory with config.json and safetensors files");
}

// Of a model in a Hugging Face cache (models--ORG--NAME) the directory that has its files; the one
// that "main" names, else the last one by name.
std::optional<fs::path> snapshot_of(const fs::path& dir) {
  const std::vector<std::string> names = names_in(dir / "snapshots");
  if (names.empty()) return std::nullopt;
  std::string main;
  std::ifstream(dir / "refs" / "main") >> main;
  const bool known = std::find(names.begin(), names.end(), main) != names.end();
  return dir / "snapshots" / (known ? main : names.back());
}

[[noreturn]] void refuse_without_config(const fs::path& dir) {
  const std::vector<std::string> names = names_in(dir);
  std::error_code error;
  if (fs::is_directory(dir / "snapshots", error)) {
    const auto snapshot = snapshot_of(dir);
    if (!snapshot) refuse(dir, fmt::format("a Hugging Face cache without a snapshot: {}", kGoOn));
    refuse(dir, fmt::format("a Hugging Face cache, expected one of its snapshots: give {}",
                            snapshot->string()));
  }
  for (const std::string& name : names) {
    if (!name.starts_with("models--")) continue;
    const auto snapshot = snapshot_of(dir / name);
    if (!snapshot) continue;
    refuse(dir, fmt::format("a Hugging Face cache of several models, expected a snapshot of one, "
                            "such as {}",
                            snapshot->string()));
  }
  for (const std::string& name : names) {
    if (!fs::exists(dir / name / "config.json", error)) continue;
    refuse(dir, fmt::format("no config.json here, but in a directory below: give {}",
                            (dir / name).string()));
  }
  if (std::find(names.begin(), names.end(), "adapter_config.json") != names.end()) {
    refuse(dir,
           "an adapter (adapter_config.json), not a model: merge it into its base model first");
  }
  refuse(dir, fmt::format("config.json is not there{}: expected a model directory as published on "
                          "Hugging Face; if this is one, {}",
                          names.empty() ? ", the directory is empty" : "", kGoOn));
}

// Downloads that were begun and not finished: of a local directory they lie below .cache, of a
// snapshot in the cache beside its blobs.
size_t count_unfinished(const fs::path& dir) {
  size_t count = 0;
  for (const fs::path& place :
       {dir / ".cache" / "huggingface" / "download", dir / ".." / ".." / "blobs", dir}) {
    count += with_suffix(names_in(place), ".incomplete").size();
  }
  return count;
}

std::string unfinished_text(const fs::path& dir) {
  const size_t count = count_unfinished(dir);
  return count == 0 ? "" : fmt::format(", {} begun and not finished (.incomplete)", count);
}

std::string first_names(const std::vector<std::string>& names) {
  const size_t shown = std::min(names.size(), kNamesShown);
  return fmt::format("{}{}", fmt::join(names.begin(), names.begin() + shown, ", "),
                     shown < names.size() ? ", ..." : "");
}

}  // namespace

std::optional<std::string> download_hint(const std::string& text) {
  const auto id = hugging_face_id(text);
  if (!id) return std::nullopt;
  return fmt::format("download it first: huggingface-cli download {} --local-dir {}", *id,
                     id->substr(id->find('/') + 1));
}

bool is_hugging_face_address(const std::string& text) { return behind_host(text).has_value(); }

void require_directory(const fs::path& path) {
  std::error_code error;
  if (!fs::exists(path, error)) refuse_missing(path);
  if (!fs::is_directory(path, error)) refuse_file(path);
  constexpr std::array kSmallFiles = {"config.json",           "generation_config.json",
                                      "tokenizer.json",        "tiktoken.model",
                                      "tokenizer_config.json", "model.safetensors.index.json"};
  for (const char* name : kSmallFiles) {
    if (!is_lfs_pointer(path / name)) continue;
    refuse(path / name, fmt::format("a git-lfs pointer, not the file itself: run 'git lfs pull' in "
                                    "{}",
                                    path.string()));
  }
}

void require_model_dir(const fs::path& path) {
  require_directory(path);
  std::error_code error;
  if (!fs::exists(path / "config.json", error)) refuse_without_config(path);
}

void refuse_without_weights(const fs::path& dir) {
  const std::vector<std::string> names = names_in(dir);
  if (const auto shards = with_suffix(names, ".safetensors"); !shards.empty()) {
    refuse(dir, fmt::format("model.safetensors.index.json is missing, which says what is in {}: {}",
                            first_names(shards), kGoOn));
  }
  for (const std::string_view suffix : {".bin", ".pth", ".pt"}) {
    const auto weights = with_suffix(names, suffix);
    if (weights.empty()) continue;
    refuse(dir, fmt::format("only PyTorch weights ({}): {}; take a revision of the model with "
                            "safetensors, or convert it with save_pretrained(DIR, "
                            "safe_serialization=True)",
                            first_names(weights), kReads));
  }
  refuse(dir, fmt::format("neither model.safetensors.index.json nor model.safetensors is there{}: "
                          "{}",
                          unfinished_text(dir), kGoOn));
}

void require_shards(const fs::path& dir, std::span<const std::string> files) {
  std::vector<std::string> missing, pointers;
  std::error_code error;
  for (const std::string& file : files) {
    if (!fs::exists(dir / file, error)) missing.push_back(printable(file));
    if (is_lfs_pointer(dir / file)) pointers.push_back(printable(file));
  }
  const auto tell = [&](const std::vector<std::string>& which, std::string_view what,
                        std::string_view way_out) {
    if (which.empty()) return;
    refuse(dir, fmt::format("{} of {} weight files {} ({}){}", which.size(), files.size(), what,
                            first_names(which), way_out));
  };
  tell(missing, missing.size() == 1 ? "is missing" : "are missing",
       fmt::format("{}: {}", unfinished_text(dir), kGoOn));
  tell(pointers,
       pointers.size() == 1 ? "is a git-lfs pointer, not the file itself"
                            : "are git-lfs pointers, not the files themselves",
       fmt::format(": run 'git lfs pull' in {}", dir.string()));
}

}  // namespace atl::storage
