// Lines that somebody types, or that come through a pipe.
#pragma once

#include <memory>
#include <string>

namespace atl::cli {

struct InputLine {
  enum class Kind {
    kLine,
    kEnd,             // of the input, or Ctrl-D
    kInterrupt,       // Ctrl-C on a line that was begun; it is thrown away
    kEmptyInterrupt,  // Ctrl-C on an empty line
  };
  Kind kind = Kind::kEnd;
  std::string text;  // without its end
};

class LineInput {
 public:
  virtual ~LineInput() = default;
  // Blocks. The prompt is shown by an editor only.
  virtual InputLine read(const std::string& prompt) = 0;
  // Ctrl-C is a key while read() waits, so that SIGINT comes only at other times.
  virtual bool takes_ctrl_c() const { return false; }
};

// An editor if stdin and stdout are a terminal and this program was built with one, else plain
// lines. LoadError for a line of more than 16 MiB.
std::unique_ptr<LineInput> make_line_input();

}  // namespace atl::cli
