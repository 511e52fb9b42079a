#include "cli/output.h"

#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "base/result.h"
#include "base/units.h"

namespace atl::cli {

void write_stdout(std::string_view text) {
  while (!text.empty()) {
    const ssize_t written = ::write(STDOUT_FILENO, text.data(), text.size());
    if (written >= 0) {
      text.remove_prefix(static_cast<size_t>(written));
    } else if (errno == EPIPE) {
      throw OutputClosed();
    } else if (errno != EINTR) {
      throw LoadError(fmt::format("cannot write to stdout: {}", std::strerror(errno)));
    }
  }
}

std::string read_stdin(size_t bytes_max) {
  std::string text;
  char buffer[1 << 16];
  while (true) {
    const ssize_t got = ::read(STDIN_FILENO, buffer, sizeof buffer);
    if (got == 0) return text;
    if (got < 0) {
      if (errno == EINTR) continue;
      throw LoadError(fmt::format("cannot read stdin: {}", std::strerror(errno)));
    }
    text.append(buffer, static_cast<size_t>(got));
    if (text.size() > bytes_max) {
      throw LoadError(
          fmt::format("stdin is longer than {}; give it in parts", format_bytes(bytes_max)));
    }
  }
}

}  // namespace atl::cli
