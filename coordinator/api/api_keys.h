// API keys: who may ask, and what logs and fair queueing call them.
#pragma once

#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace atl::coordinator {

struct ApiKey {
  std::string name;  // of its owner
  std::string key;
};

// One `name key` or `key` (its name is then keyN, N the number of its line) per line; # begins a
// comment. LoadError names file and line; also if others than its owner can read the file, and if
// it holds no key.
std::vector<ApiKey> load_api_keys(const std::string& file);

// The owner of the key in an `Authorization: Bearer KEY` header; nullopt if it is none of them.
// Takes the same time for every key of one length.
std::optional<std::string> owner_of_key(std::span<const ApiKey> keys,
                                        std::string_view authorization);

}  // namespace atl::coordinator
