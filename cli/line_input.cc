#include "cli/line_input.h"

#include <unistd.h>

#include <iostream>

#include "base/result.h"
#include "cli/line_editor.h"
#include "cli/output.h"

namespace atl::cli {
namespace {

constexpr size_t kLineBytesMax = 16 << 20;

class PlainInput final : public LineInput {
 public:
  explicit PlainInput(bool shows_prompt) : shows_prompt_(shows_prompt) {}

  InputLine read(const std::string& prompt) override {
    if (shows_prompt_) write_stdout(prompt);
    InputLine line;
    while (true) {
      const int c = std::cin.get();
      if (c == std::char_traits<char>::eof()) {
        if (!line.text.empty()) line.kind = InputLine::Kind::kLine;
        return line;
      }
      line.kind = InputLine::Kind::kLine;
      if (c == '\n') return line;
      if (line.text.size() == kLineBytesMax) {
        throw LoadError("a line of stdin is longer than 16 MiB");
      }
      line.text.push_back(static_cast<char>(c));
    }
  }

 private:
  const bool shows_prompt_;
};

}  // namespace

std::unique_ptr<LineInput> make_line_input() {
  const bool terminal = isatty(STDIN_FILENO) == 1 && isatty(STDOUT_FILENO) == 1;
  if (terminal) {
    if (auto editor = make_line_editor()) return editor;
  }
  return std::make_unique<PlainInput>(terminal);
}

}  // namespace atl::cli
