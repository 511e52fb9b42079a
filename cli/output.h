// What a subcommand says: results on stdout, never logs.
#pragma once

#include <exception>
#include <string>
#include <string_view>

namespace atl::cli {

// The reader of stdout went away (`atoll run ... | head`): main() ends the process without a word.
class OutputClosed : public std::exception {
 public:
  const char* what() const noexcept override { return "stdout was closed"; }
};

// Writes all of `text` now, without a buffer in between, so that streamed text appears as it comes.
// Throws OutputClosed, or LoadError with the system's text (a full disk).
void write_stdout(std::string_view text);

// All of stdin. LoadError if it can't be read or is longer than bytes_max.
std::string read_stdin(size_t bytes_max);

}  // namespace atl::cli
