// atoll chat: a conversation in the terminal with a running server, or with one started for it.
#include <fmt/format.h>
#include <pthread.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "base/child_process.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/one_line.h"
#include "cli/chat_session.h"
#include "cli/cluster_file_option.h"
#include "cli/commands.h"
#include "cli/line_input.h"
#include "cli/output.h"
#include "cli/rolling_text.h"
#include "cli/server_option.h"
#include "storage/checkpoint/model_dir.h"

namespace atl::cli {
namespace {

constexpr std::string_view kListening = "listening on ";
constexpr std::chrono::seconds kReadyPoll{1}, kReachTime{3};
constexpr const char* kHelp =
    "/clear           begin anew, with the same system message\n"
    "/system [TEXT]   set the system message, or none\n"
    "/save FILE       write the conversation as JSON\n"
    "/reasoning       show what the model thought before its last reply\n"
    "/quit            leave; so does Ctrl-D, and Ctrl-C twice on an empty line\n"
    "//TEXT           send a text that begins with a slash\n"
    "A line that ends with \\ goes on in the next one. Ctrl-C stops a reply; what is typed "
    "meanwhile\n"
    "stands in the next prompt.\n";

struct ChatCommandOptions {
  std::string target;
  ClusterFileOption cluster_file;
  std::vector<std::string> serve_arguments;
  std::string api_key_file;
  bool show_reasoning = false;
  ChatOptions chat;
};

// What a model says could move the cursor or set the title; on a terminal only text and line breaks
// pass. `text` is valid UTF-8.
std::string without_controls(std::string_view text) {
  std::string clean;
  for (size_t i = 0; i < text.size(); ++i) {
    const auto c = static_cast<unsigned char>(text[i]);
    const bool is_c1 = c == 0xc2 && i + 1 < text.size() &&
                       static_cast<unsigned char>(text[i + 1]) < 0xa0;  // U+0080 to U+009F
    if (is_c1) {
      ++i;
    } else if ((c >= 0x20 && c != 0x7f) || c == '\n' || c == '\t') {
      clean.push_back(text[i]);
    }
  }
  return clean;
}

// SIGINT stops the reply under way. Where there is none it ends the process, unless an editor takes
// Ctrl-C: then it was meant for the reply that has just ended. SIGTERM ends the process. Its child,
// if any, ends with it. Construct before any other thread.
class ChatSignals {
 public:
  ChatSignals() {
    sigemptyset(&set_);
    sigaddset(&set_, SIGINT);
    sigaddset(&set_, SIGTERM);
    pthread_sigmask(SIG_BLOCK, &set_, nullptr);
    has_terminal_ = tcgetattr(STDIN_FILENO, &terminal_) == 0;
    // Ends with the process: it owns nothing.
    std::thread([this] { watch(); }).detach();
  }
  // The session must outlive the result.
  auto watch_session(ChatSession& session) {
    set_session(&session);
    const auto forget = [this](ChatSession*) { set_session(nullptr); };
    return std::unique_ptr<ChatSession, decltype(forget)>(&session, forget);
  }
  void set_replying(bool replying) { replying_ = replying; }
  void set_editing(bool editing) { editing_ = editing; }

 private:
  void set_session(ChatSession* session) {
    const std::lock_guard lock(mutex_);
    session_ = session;
  }
  void watch() {
    for (int signal = 0; sigwait(&set_, &signal) == 0;) {
      const std::lock_guard lock(mutex_);
      if (signal == SIGINT && replying_ && session_) {
        session_->stop();
        continue;
      }
      if (signal == SIGINT && editing_) continue;
      if (has_terminal_) tcsetattr(STDIN_FILENO, TCSANOW, &terminal_);
      std::_Exit(128 + signal);
    }
  }

  sigset_t set_;
  termios terminal_{};
  bool has_terminal_ = false;
  std::mutex mutex_;
  ChatSession* session_ = nullptr;
  std::atomic<bool> replying_{false}, editing_{false};
};

// What of `atoll serve` says which model: MODEL_DIR, or a cluster file.
std::vector<std::string> model_arguments(const ChatCommandOptions& options) {
  const ClusterFileOption& file = options.cluster_file;
  if (!file.is_given()) return {options.target};
  std::vector<std::string> arguments = {"--config", file.path.string(), "--host", "127.0.0.1"};
  if (!file.coordinator.empty()) {
    arguments.insert(arguments.end(), {"--coordinator", file.coordinator});
  }
  for (const std::string& flag : file.flags) arguments.insert(arguments.end(), {"--set", flag});
  return arguments;
}

// `atoll serve` on a free port; *url is where it listens.
ChildProcess start_server(const ChatCommandOptions& options, http::HttpUrl* url) {
  ChildOptions child;
  child.argv = {std::filesystem::canonical("/proc/self/exe").string(), "serve"};
  const std::vector<std::string> model = model_arguments(options);
  child.argv.insert(child.argv.end(), model.begin(), model.end());
  child.argv.insert(child.argv.end(), {"--port", "0", "--log-level", "warn"});
  child.argv.insert(child.argv.end(), options.serve_arguments.begin(),
                    options.serve_arguments.end());
  child.name = "atoll serve";
  child.pipe_stdout = true;
  child.own_process_group = true;  // Ctrl-C stops a reply, not the server
  ChildProcess process = ChildProcess::start(child);
  for (;;) {  // a large checkpoint takes as long as it takes
    const Result<std::string> line = process.read_line(kReadyPoll);
    if (!line && line.error().code == ErrorCode::kTimeout) continue;
    if (!line) {
      // It has said why on stderr.
      throw LoadError(fmt::format("the server of {} did not start: {}",
                                  model.front() == "--config" ? model[1] : model.front(),
                                  line.error().message));
    }
    const auto parsed = line->starts_with(kListening)
                            ? http::parse_http_url(line->substr(kListening.size()))
                            : Error{ErrorCode::kInvalid, "unexpected output"};
    if (!parsed) throw LoadError(fmt::format("atoll serve said '{}'", one_line(*line)));
    *url = *parsed;
    return process;
  }
}

// While it lives, what is typed is kept for whoever reads next and not shown: an answer is being
// written there. Ctrl-C is a signal and throws nothing of it away.
class KeysForLater {
 public:
  KeysForLater() {
    known_ = tcgetattr(STDIN_FILENO, &before_) == 0;
    if (!known_) return;
    termios settings = before_;
    settings.c_lflag &= ~static_cast<tcflag_t>(ICANON | ECHO);
    settings.c_lflag |= NOFLSH;
    settings.c_cc[VMIN] = 1;
    settings.c_cc[VTIME] = 0;
    tcsetattr(STDIN_FILENO, TCSANOW, &settings);
  }
  ~KeysForLater() {
    if (known_) tcsetattr(STDIN_FILENO, TCSANOW, &before_);
  }
  KeysForLater(const KeysForLater&) = delete;
  KeysForLater& operator=(const KeysForLater&) = delete;

 private:
  termios before_{};
  bool known_ = false;
};

int terminal_columns() {
  winsize size{};
  if (ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) != 0 || size.ws_col == 0) return 80;
  return size.ws_col;
}

int64_t num_characters(std::string_view text) {
  return std::count_if(text.begin(), text.end(),
                       [](unsigned char c) { return (c & 0xC0) != 0x80; });
}

class Chat {
 public:
  Chat(ChatSession& session, ChatSignals& signals, bool show_reasoning)
      : session_(session), signals_(signals), input_(make_line_input()) {
    const char* term = std::getenv("TERM");
    folds_ = !show_reasoning && term != nullptr && std::string_view(term) != "dumb";
    interactive_ = isatty(STDIN_FILENO) == 1 && isatty(STDOUT_FILENO) == 1;
    signals_.set_editing(input_->takes_ctrl_c());
    colours_ = isatty(STDOUT_FILENO) == 1 && !std::getenv("NO_COLOR");
  }

  // 1 if a reply could not be had where nobody sits before it.
  int run() {
    if (interactive_) {
      write_stdout(
          fmt::format("Talking to {}. /help lists the commands.\n", one_line(session_.model())));
    }
    while (!leaving_) {
      const std::optional<std::string> text = read_text();
      if (!text) break;
      if (text->find_first_not_of(" \t") == std::string::npos) continue;
      if (text->starts_with('/') && !text->starts_with("//")) {
        command(*text);
      } else {
        ask(text->starts_with("//") ? text->substr(1) : *text);
      }
    }
    return !interactive_ && failed_ ? 1 : 0;
  }

 private:
  // One message, of several lines where each but the last ends with a backslash; nothing at the
  // end.
  std::optional<std::string> read_text() {
    std::string text;
    for (;;) {
      InputLine line = input_->read(text.empty() ? "> " : "| ");
      switch (line.kind) {
        case InputLine::Kind::kEnd:
          if (interactive_) write_stdout("\n");
          return text.empty() ? std::nullopt : std::optional(text);
        case InputLine::Kind::kInterrupt:
          interrupts_ = 0;
          return "";
        case InputLine::Kind::kEmptyInterrupt:
          if (++interrupts_ == 2) return std::nullopt;
          write_stdout("(Ctrl-C once more, or /quit, to leave)\n");
          return "";
        case InputLine::Kind::kLine:
          break;
      }
      interrupts_ = 0;
      const bool goes_on = interactive_ && line.text.ends_with('\\');
      if (goes_on) line.text.back() = '\n';
      text += line.text;
      if (!goes_on) return text;
    }
  }

  void command(const std::string& line) {
    const size_t space = line.find(' ');
    const std::string name = line.substr(0, space);
    std::string rest = space == std::string::npos ? "" : line.substr(space + 1);
    while (rest.starts_with(' ')) rest.erase(0, 1);
    if (name == "/quit" || name == "/exit") {
      leaving_ = true;
    } else if (name == "/help") {
      write_stdout(kHelp);
    } else if (name == "/clear") {
      session_.clear();
    } else if (name == "/system") {
      session_.set_system(rest);
    } else if (name == "/save") {
      save(rest);
    } else if (name == "/reasoning") {
      note(reasoning_.empty() ? "(the last reply had none)" : without_controls(reasoning_));
    } else {
      complain(
          fmt::format("{}: no such command; /help lists them, and // begins a text with a "
                      "slash",
                      one_line(name)));
    }
  }

  void save(const std::string& file) {
    if (file.empty()) return complain("/save FILE: there is no file's name");
    std::ofstream out(file);
    out << session_.to_json() << "\n";
    out.close();
    if (!out) return complain("can't write " + file);
    if (interactive_) write_stdout("saved to " + file + "\n");
  }

  void ask(const std::string& text) {
    at_line_start_ = true;
    dimmed_ = false;
    reasoning_.clear();
    std::optional<KeysForLater> keys;
    if (input_->takes_ctrl_c()) keys.emplace();  // an editor will show them
    signals_.set_replying(true);
    const Result<ChatReply> reply = session_.ask(
        text, [this](std::string_view piece) { show_reasoning(piece); },
        [this](std::string_view piece) { show_text(piece); });
    signals_.set_replying(false);
    keys.reset();
    fold();
    set_dimmed(false);
    if (!at_line_start_ || !interactive_) write_stdout("\n");
    if (!reply) return complain(reply.error().message);
    if (reply->stopped) note("(stopped)");
    if (reply->finish_reason == "length") note("(cut: the reply reached its limit of tokens)");
  }

  void show_reasoning(std::string_view text) {
    if (!interactive_) return;  // a script wants the answer
    if (reasoning_.empty()) thinks_since_ = clock_.now();
    reasoning_ += text;
    set_dimmed(true);
    if (!folds_) return write(text);
    if (!thinking_) thinking_.emplace(terminal_columns(), kThinkingRows);
    write_stdout(thinking_->add(without_controls(text)));
  }
  // In place of the reasoning a line that says how much there was.
  void fold() {
    if (!thinking_) return;
    write_stdout(thinking_->erase());
    thinking_.reset();
    set_dimmed(false);
    note(fmt::format("(thought for {:.1f} s, {} characters; /reasoning shows them)",
                     seconds_between(thinks_since_, clock_.now()), num_characters(reasoning_)));
  }
  void show_text(std::string_view text) {
    fold();
    if (dimmed_) {
      set_dimmed(false);
      if (!at_line_start_) write("\n");
    }
    write(text);
  }
  void write(std::string_view text) {
    if (text.empty()) return;
    at_line_start_ = text.back() == '\n';
    if (isatty(STDOUT_FILENO) == 1) {
      write_stdout(without_controls(text));
    } else {
      write_stdout(text);
    }
  }
  void set_dimmed(bool dimmed) {
    if (dimmed == dimmed_) return;
    dimmed_ = dimmed;
    if (colours_) write_stdout(dimmed ? "\x1b[2m" : "\x1b[0m");
  }

  void note(const std::string& text) {
    if (interactive_) write_stdout((colours_ ? "\x1b[2m" + text + "\x1b[0m" : text) + "\n");
  }
  void complain(const std::string& what) {
    failed_ = true;
    fmt::print(stderr, "atoll: error: {}\n", one_line(what));
  }

  static constexpr int kThinkingRows = 6;

  ChatSession& session_;
  ChatSignals& signals_;
  std::unique_ptr<LineInput> input_;
  const SteadyClock clock_;
  bool folds_ = false;
  std::string reasoning_;                // of the last reply
  std::optional<RollingText> thinking_;  // while it is shown
  Clock::TimePoint thinks_since_;
  bool interactive_ = false, colours_ = false;
  bool leaving_ = false, failed_ = false, dimmed_ = false, at_line_start_ = true;
  int interrupts_ = 0;
};

// Where the file's coordinator listens, if one answers there; else it is this process's child that
// greets the nodes. It is said which. A key that nobody gave is the first of the file's.
std::optional<ChildProcess> reach_cluster(const ChatCommandOptions& options, ChatOptions* chat) {
  const config::ClusterConfig config = options.cluster_file.load_for_coordinator();
  if (chat->api_key.empty() && !config.coordinator.api_keys.empty()) {
    chat->api_key = read_api_key(config.coordinator.api_keys.string());
  }
  const config::Address& listen = config.coordinator.listen;
  chat->url = reachable(listen);
  http::HttpClientOptions client_options;
  client_options.connect_timeout = kReachTime;
  if (listen.port != 0 &&
      http::HttpClient(chat->url, client_options).ask({.path = "/health", .timeout = kReachTime})) {
    log_info("{} answers at {}", config.coordinator.name, listen.text());
    return std::nullopt;
  }
  log_info("nobody answers at {}: a coordinator is started", listen.text());
  return start_server(options, &chat->url);
}

int run_chat(ChatCommandOptions options) {
  // Until the process ends, since its thread may hold it then.
  static ChatSignals& signals = *new ChatSignals;
  std::optional<ChildProcess> server;
  options.chat.api_key = api_key_of(options.api_key_file);
  if (options.cluster_file.is_given()) {
    server = reach_cluster(options, &options.chat);
  } else if (options.target.find("://") != std::string::npos &&
             !storage::is_hugging_face_address(options.target)) {
    if (!options.serve_arguments.empty()) {
      throw LoadError("options of atoll serve belong to a MODEL_DIR, not to a URL");
    }
    const auto url = http::parse_http_url(options.target);
    if (!url) throw LoadError(url.error().message);
    options.chat.url = *url;
  } else if (std::filesystem::is_directory(options.target)) {
    server = start_server(options, &options.chat.url);
  } else {
    const auto hint = storage::download_hint(options.target);
    throw LoadError(fmt::format(
        "'{}' is neither a URL such as http://127.0.0.1:8080 nor a directory with a model{}",
        one_line(options.target), hint ? "; if this is a model on Hugging Face, " + *hint : ""));
  }
  ChatSession session(options.chat);
  const auto watched = signals.watch_session(session);
  return Chat(session, signals, options.show_reasoning).run();
}

}  // namespace

void add_chat_command(CLI::App& app, int* exit_code) {
  auto options = std::make_shared<ChatCommandOptions>();
  ChatOptions& chat = options->chat;
  CLI::App* command = app.add_subcommand("chat", "Talk to a model in the terminal");
  command->add_option("URL_OR_MODEL_DIR", options->target,
                      "http://HOST:PORT of an OpenAI-compatible server, or a model to start 'atoll "
                      "serve' for; unless --config says them");
  options->cluster_file.add_config_option(*command);
  options->cluster_file.add_coordinator_option(*command);
  command->add_option("SERVE_OPTIONS", options->serve_arguments,
                      "Behind --: options of atoll serve, for a MODEL_DIR");
  command->add_option("--model", chat.model, "Unless given, the first of /v1/models");
  command->add_option("--system", chat.system, "System message");
  command->add_option("--max-tokens", chat.max_tokens, "Of a reply; the server's unless given")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 30));
  command->add_option("--temperature", chat.temperature, "The server's unless given")
      ->check(CLI::Range(0.0, 2.0));
  command->add_option("--top-p", chat.top_p, "The server's unless given")
      ->check(CLI::Range(0.0, 1.0));
  command->add_option("--seed", chat.seed, "For the same replies again");
  command
      ->add_option("--api-key-file", options->api_key_file,
                   "File with the key; unless given, ATOLL_API_KEY's value, if any")
      ->type_name("PATH");
  command->add_flag("--show-reasoning", options->show_reasoning,
                    "Keep what the model thinks on the screen; else it is folded into a line once "
                    "the reply begins");
  command->footer(
      "Lines that come through a pipe are sent one after the other; only the replies are printed "
      "then.\n\nExamples:\n  atoll chat http://127.0.0.1:8080 --system 'Be brief.'\n"
      "  atoll chat tests/models/tiny-fp8 --max-tokens 32 -- --nodes 2\n"
      "  atoll chat --config cluster.yaml");
  command->callback([options, exit_code] {
    if (options->target.empty() != options->cluster_file.is_given()) {
      throw CLI::ValidationError(options->target.empty()
                                     ? "expected URL_OR_MODEL_DIR or --config FILE"
                                     : "URL_OR_MODEL_DIR and --config exclude each other");
    }
    *exit_code = run_chat(*options);
  });
}

}  // namespace atl::cli
