#include "coordinator/api/api_keys.h"

#include <fmt/format.h>
#include <sys/stat.h>

#include <algorithm>
#include <cctype>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <sstream>

#include "base/result.h"

namespace atl::coordinator {
namespace {

constexpr size_t kKeyBytesMin = 8;

void check_private(const std::string& file) {
  struct stat info {};
  if (stat(file.c_str(), &info) != 0) {
    throw LoadError(fmt::format("API keys {}: {}", file, std::strerror(errno)));
  }
  if ((info.st_mode & (S_IRGRP | S_IROTH)) != 0) {
    throw LoadError(
        fmt::format("API keys {}: others than its owner can read it (mode {:o}); chmod 600 it",
                    file, info.st_mode & 0777));
  }
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
  check_private(file);
  std::ifstream in(file);
  if (!in) throw LoadError(fmt::format("API keys {}: {}", file, std::strerror(errno)));
  std::vector<ApiKey> keys;
  int line_number = 0;
  for (std::string line; std::getline(in, line);) {
    ++line_number;
    line = line.substr(0, line.find('#'));
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
