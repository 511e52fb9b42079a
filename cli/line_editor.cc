#include "cli/line_editor.h"

#include <histedit.h>
#include <langinfo.h>
#include <termios.h>
#include <unistd.h>

#include <clocale>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <string_view>

#include "cli/output.h"

namespace atl::cli {
namespace {

constexpr int kHistoryLines = 1000;

// While it lives, keys come one by one, are not shown by the terminal, and Ctrl-C is none but a
// key. libedit sets the same, but only after it has shown the prompt: what is typed in between, the
// terminal would edit by bytes.
class KeyByKey {
 public:
  KeyByKey() {
    known_ = tcgetattr(STDIN_FILENO, &before_) == 0;
    if (!known_) return;
    termios settings = before_;
    settings.c_lflag &= ~static_cast<tcflag_t>(ISIG | ICANON | ECHO);
    settings.c_cc[VMIN] = 1;
    settings.c_cc[VTIME] = 0;
    tcsetattr(STDIN_FILENO, TCSANOW, &settings);
  }
  ~KeyByKey() {
    if (known_) tcsetattr(STDIN_FILENO, TCSANOW, &before_);
  }
  KeyByKey(const KeyByKey&) = delete;
  KeyByKey& operator=(const KeyByKey&) = delete;

 private:
  termios before_{};
  bool known_ = false;
};

// libedit reads characters as the locale spells them; ours are UTF-8 whatever the environment says.
void use_utf8() {
  std::setlocale(LC_CTYPE, "");
  if (std::string_view(nl_langinfo(CODESET)) != "UTF-8") std::setlocale(LC_CTYPE, "C.UTF-8");
}

class LineEditor final : public LineInput {
 public:
  LineEditor() {
    use_utf8();
    editor_ = el_init("atoll", stdin, stdout, stderr);
    history_ = history_init();
    HistEvent event;
    history(history_, &event, H_SETSIZE, kHistoryLines);
    history(history_, &event, H_SETUNIQUE, 1);
    el_set(editor_, EL_CLIENTDATA, this);
    el_set(editor_, EL_PROMPT, &prompt_of);
    el_set(editor_, EL_EDITOR, "emacs");
    el_set(editor_, EL_HIST, history, history_);
    el_set(editor_, EL_ADDFN, "atoll-interrupt", "Ctrl-C", &interrupt);
    el_set(editor_, EL_SETTY, "-d", "-isig", nullptr);  // its own mode turns signals on
    el_set(editor_, EL_BIND, "^C", "atoll-interrupt", nullptr);
    el_set(editor_, EL_BIND, "^R", "em-inc-search-prev", nullptr);
  }
  ~LineEditor() override {
    history_end(history_);
    el_end(editor_);
  }
  LineEditor(const LineEditor&) = delete;
  LineEditor& operator=(const LineEditor&) = delete;

  InputLine read(const std::string& prompt) override {
    prompt_ = prompt;
    interrupted_ = false;
    int bytes = 0;
    const char* text = nullptr;
    {
      const KeyByKey keys;
      text = el_gets(editor_, &bytes);
    }
    if (interrupted_) {
      write_stdout("\n");
      return {line_was_empty_ ? InputLine::Kind::kEmptyInterrupt : InputLine::Kind::kInterrupt, ""};
    }
    if (!text || bytes <= 0) return {};
    std::string line(text, std::strlen(text));
    while (line.ends_with('\n') || line.ends_with('\r')) line.pop_back();
    HistEvent event;
    if (!line.empty()) history(history_, &event, H_ENTER, line.c_str());
    return {InputLine::Kind::kLine, std::move(line)};
  }
  bool takes_ctrl_c() const override { return true; }

 private:
  static LineEditor& self_of(EditLine* editor) {
    void* self = nullptr;
    el_get(editor, EL_CLIENTDATA, &self);
    return *static_cast<LineEditor*>(self);
  }
  static char* prompt_of(EditLine* editor) { return self_of(editor).prompt_.data(); }
  static unsigned char interrupt(EditLine* editor, int) {
    LineEditor& self = self_of(editor);
    const LineInfo* line = el_line(editor);
    self.interrupted_ = true;
    self.line_was_empty_ = line->buffer == line->lastchar;
    return CC_EOF;
  }

  EditLine* editor_ = nullptr;
  History* history_ = nullptr;
  std::string prompt_;
  bool interrupted_ = false, line_was_empty_ = false;
};

}  // namespace

std::unique_ptr<LineInput> make_line_editor() {
  const char* terminal = std::getenv("TERM");
  if (!terminal || std::string_view(terminal) == "dumb") return nullptr;
  return std::make_unique<LineEditor>();
}

}  // namespace atl::cli
