#include "coordinator/api/api_keys.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <cerrno>
#include <cstring>
#include <memory>
#include <sstream>

#include "base/result.h"

namespace atl::coordinator {
namespace {

constexpr size_t kKeyBytesMin = 8;
constexpr size_t kFileBytesMax = size_t{1} << 20;

// Text of a regular file that nobody but its owner can read or write. What is opened is what is
// looked at, and a pipe that nobody writes to doesn't hold the start up.
std::string read_private(const std::string& file) {
  const auto fail = [&](const std::string& why) {
    return LoadError(fmt::format("API keys {}: {}", file, why));
  };
  const int fd = open(file.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC);
  if (fd < 0) throw fail(std::strerror(errno));
  const auto close_file = [](const int* descriptor) { ::close(*descriptor); };
  const std::unique_ptr<const int, decltype(close_file)> closer(&fd, close_file);
  struct stat info {};
  if (fstat(fd, &info) != 0) throw fail(std::strerror(errno));
  if (!S_ISREG(info.st_mode)) throw fail("expected a regular file, found something else");
  if ((info.st_mode & (S_IRWXG | S_IRWXO)) != 0) {
    throw fail(fmt::format("others than its owner can {} it (mode {:o}); chmod 600 it",
                           (info.st_mode & (S_IRGRP | S_IROTH)) != 0 ? "read" : "write or run",
                           info.st_mode & 0777));
  }
  std::string text(kFileBytesMax + 1, '\0');
  size_t length = 0;
  while (length < text.size()) {
    const ssize_t got = read(fd, text.data() + length, text.size() - length);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) throw fail(std::strerror(errno));
    if (got == 0) break;
    length += static_cast<size_t>(got);
  }
  if (length > kFileBytesMax) throw fail("is longer than 1 MiB, expected lines of `name key`");
  text.resize(length);
  return text;
}

// Up to a remark: a # at the line's beginning or behind a space. One within a word is a part of it.
std::string without_remark(const std::string& line) {
  for (size_t at = line.find('#'); at != std::string::npos; at = line.find('#', at + 1)) {
    if (at == 0 || line[at - 1] == ' ' || line[at - 1] == '\t') return line.substr(0, at);
  }
  return line;
}

ApiKey parse_line(const std::string& file, int line_number, std::istringstream& words) {
  const auto fail = [&](std::string_view why) {
    return LoadError(fmt::format("API keys {}:{}: {}", file, line_number, why));
  };
  std::string first, second, more;
  words >> first;
  ApiKey key;
  if (words >> second) {
    key = {.name = first, .key = second};
  } else {
    key = {.name = fmt::format("key{}", line_number), .key = first};
  }
  if (words >> more) throw fail("expected `name key` or `key`, found more than two words");
  if (key.key.size() < kKeyBytesMin) {
    throw fail(
        fmt::format("a key has at least {} characters, found {}", kKeyBytesMin, key.key.size()));
  }
  return key;
}

// Looks at every byte of `given` whatever it finds.
bool equal_in_constant_time(std::string_view secret, std::string_view given) {
  unsigned difference = secret.size() != given.size();
  for (size_t i = 0; i < given.size(); ++i) {
    const char expected = secret.empty() ? '\0' : secret[i % secret.size()];
    difference |= static_cast<unsigned char>(expected ^ given[i]);
  }
  return difference == 0;
}

}  // namespace

std::vector<ApiKey> load_api_keys(const std::string& file) {
  std::istringstream in(read_private(file));
  std::vector<ApiKey> keys;
  int line_number = 0;
  for (std::string line; std::getline(in, line);) {
    ++line_number;
    line = without_remark(line);
    if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
    std::istringstream words(line);
    ApiKey key = parse_line(file, line_number, words);
    const bool twice = std::any_of(keys.begin(), keys.end(), [&](const ApiKey& other) {
      return other.key == key.key || other.name == key.name;
    });
    if (twice) {
      throw LoadError(fmt::format("API keys {}:{}: this name or key stands in the file twice", file,
                                  line_number));
    }
    keys.push_back(std::move(key));
  }
  if (keys.empty()) throw LoadError(fmt::format("API keys {}: no key in it", file));
  return keys;
}

std::optional<std::string> owner_of_key(std::span<const ApiKey> keys,
                                        std::string_view authorization) {
  constexpr std::string_view kScheme = "bearer ";
  if (authorization.size() < kScheme.size()) return std::nullopt;
  for (size_t i = 0; i < kScheme.size(); ++i) {
    const int c = std::tolower(static_cast<unsigned char>(authorization[i]));
    if (c != kScheme[i]) return std::nullopt;
  }
  std::string_view given = authorization.substr(kScheme.size());
  while (given.starts_with(' ')) given.remove_prefix(1);
  std::optional<std::string> owner;
  for (const ApiKey& key : keys) {
    if (equal_in_constant_time(key.key, given)) owner = key.name;
  }
  return owner;
}

}  // namespace atl::coordinator
