// Text that a user gives to a command: from the command line, a file or stdin. Always UTF-8, and
// never more than a bound.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace atl::cli {

// Longest file of text or ids that is read at once.
inline constexpr uint64_t kInputBytesMax = uint64_t{4} << 30;

// The whole file. LoadError names `path` and what is wrong with it: it can't be opened or read, is
// a directory, or is longer than kInputBytesMax.
std::string read_file(const std::string& path);

// LoadError unless `text` is UTF-8, with the first wrong byte and its place. `name` is what the
// user knows it by, such as "--prompt" or a path.
void require_utf8(std::string_view text, std::string_view name);

// Where a prompt comes from.
struct PromptSource {
  bool is_given = false;  // `text` is the prompt
  std::string text;
  std::string file;  // "" for none, "-" for stdin
};
// The prompt and what to call it in a message. From a file or stdin a last line break is left out:
// editors and `echo` add it. LoadError as above, or if stdin is empty.
struct Prompt {
  std::string text;
  std::string name;
};
Prompt read_prompt(const PromptSource& source);

}  // namespace atl::cli
