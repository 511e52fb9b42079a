// atoll top: what a server and its nodes do, once a second.
#include <fmt/format.h>
#include <poll.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <thread>

#include "base/clock.h"
#include "base/result.h"
#include "cli/cluster_file_option.h"
#include "cli/commands.h"
#include "cli/output.h"
#include "cli/server_option.h"
#include "cli/top_view.h"

namespace atl::cli {
namespace {

constexpr std::chrono::milliseconds kTopEvery{1000};

struct TopOptions {
  ServerOption server;
  bool json = false, once = false;
};

volatile sig_atomic_t g_top_ended = 0;
void end_top(int) { g_top_ended = 1; }

// The terminal as long as this lives: another screen, keys as they are pressed.
class TopTerminal {
 public:
  TopTerminal() {
    tcgetattr(STDIN_FILENO, &before_);
    termios raw = before_;
    raw.c_lflag &= ~static_cast<tcflag_t>(ICANON | ECHO | ISIG);
    raw.c_cc[VMIN] = 0;
    raw.c_cc[VTIME] = 0;
    tcsetattr(STDIN_FILENO, TCSANOW, &raw);
    struct sigaction action = {};
    action.sa_handler = end_top;
    for (const int signal : {SIGTERM, SIGHUP}) sigaction(signal, &action, nullptr);
    write_stdout("\x1b[?1049h\x1b[?25l");
  }
  ~TopTerminal() {
    try {
      write_stdout("\x1b[?25h\x1b[?1049l");
    } catch (const std::exception&) {  // it went away
    }
    tcsetattr(STDIN_FILENO, TCSANOW, &before_);
  }
  TopTerminal(const TopTerminal&) = delete;
  TopTerminal& operator=(const TopTerminal&) = delete;

  static void size(TopScreen* screen) {
    winsize size = {};
    if (ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) != 0 || size.ws_col == 0 || size.ws_row == 0) {
      return;
    }
    screen->width = size.ws_col;
    screen->height = size.ws_row;
  }
  static void draw(const std::vector<std::string>& lines) {
    std::string text = "\x1b[H";
    for (size_t i = 0; i < lines.size(); ++i) {
      text += (i == 0 ? "" : "\r\n") + lines[i] + "\x1b[K";
    }
    write_stdout(text);
  }
  // The next key within this time; arrows come as 'A' (up) and 'B' (down) with `is_arrow`.
  struct Key {
    char c = 0;
    bool is_arrow = false;
  };
  static std::optional<Key> key(std::chrono::milliseconds within) {
    pollfd in{STDIN_FILENO, POLLIN, 0};
    if (::poll(&in, 1, static_cast<int>(within.count())) != 1) return std::nullopt;
    char bytes[8];
    const ssize_t n = read(STDIN_FILENO, bytes, sizeof bytes);
    if (n <= 0) return Key{'q'};  // nobody is there
    if (n >= 3 && bytes[0] == '\x1b' && bytes[1] == '[') return Key{bytes[2], true};
    return Key{bytes[0]};
  }

 private:
  termios before_ = {};
};

class Top {
 public:
  explicit Top(const TopOptions& options) : options_(options), server_(options.server) {
    if (!server_.has_admin()) return;
    ClusterFileOption file;
    file.path = options.server.target;
    for (const config::NodeConfig& node : file.load().nodes) {
      memory_limits_[node.name] = node.machine.memory_bytes_per_second;
    }
  }

  void run() {
    before_ = look();
    const bool is_terminal = isatty(STDOUT_FILENO) == 1 && isatty(STDIN_FILENO) == 1;
    if (is_terminal && !options_.json && !options_.once) return run_on_terminal();
    do {
      std::this_thread::sleep_for(kTopEvery);
      const TopRates rates = next();
      write_stdout(options_.json ? top_json(rates) : top_line(rates));
    } while (!options_.once);
  }

 private:
  TopSample look() const {
    const nlohmann::ordered_json stats = server_.get("/stats", std::chrono::seconds(5));
    const std::string metrics = server_.get_text("/metrics", std::chrono::seconds(5));
    return top_sample(stats, metrics, seconds_between({}, clock_.now()));
  }
  TopRates next() {
    TopSample now = look();
    TopRates rates = top_rates(before_, now, memory_limits_);
    before_ = std::move(now);
    return rates;
  }

  void run_on_terminal() {
    TopTerminal terminal;
    auto due = clock_.now();
    while (!g_top_ended) {
      if (clock_.now() >= due) {
        due = clock_.now() + kTopEvery;
        try {
          rates_ = next();
          if (screen_.message.starts_with("no answer")) screen_.message.clear();
        } catch (const LoadError& error) {
          screen_.message = std::string("no answer: ") + error.what();
        }
      }
      TopTerminal::size(&screen_);
      sort_nodes(rates_, screen_.sort);
      TopTerminal::draw(top_lines(rates_, screen_));
      const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(due - clock_.now()) +
                        std::chrono::milliseconds(1);
      const auto key = TopTerminal::key(std::max(left, std::chrono::milliseconds(0)));
      if (key && !take(*key)) return;
    }
  }

  // False: the end.
  bool take(TopTerminal::Key key) {
    const size_t last = rates_.nodes.empty() ? 0 : rates_.nodes.size() - 1;
    if (key.is_arrow ? key.c == 'A' : key.c == 'k') {
      screen_.selected -= screen_.selected > 0;
    } else if (key.is_arrow ? key.c == 'B' : key.c == 'j') {
      screen_.selected = std::min(last, screen_.selected + 1);
    } else if (key.is_arrow) {
      return true;
    } else if (key.c == 'q' || key.c == '\x03') {
      return false;
    } else if (key.c == 's') {
      screen_.sort = static_cast<TopSort>((static_cast<int>(screen_.sort) + 1) % kNumTopSorts);
    } else if (key.c == 'd' || key.c == 'r') {
      change(key.c == 'd' ? "drain" : "resume");
    } else if (key.c == 'y' && !pending_.empty()) {
      apply();
    } else {
      pending_.clear();
      screen_.message.clear();
    }
    return true;
  }

  void change(const std::string& what) {
    if (rates_.nodes.empty()) return;
    pending_ = what;
    pending_node_ = rates_.nodes[std::min(screen_.selected, rates_.nodes.size() - 1)].now.name;
    screen_.message = fmt::format("{} {}? y: yes", pending_, pending_node_);
  }
  void apply() {
    try {
      server_.post_admin("/cluster/" + pending_,
                         nlohmann::ordered_json{{"node", pending_node_}}.dump());
      screen_.message = fmt::format("{}: {} was asked for", pending_node_, pending_);
    } catch (const LoadError& error) {
      screen_.message = error.what();
    }
    pending_.clear();
  }

  const TopOptions& options_;
  const ServerClient server_;
  const SteadyClock clock_;
  std::map<std::string, double> memory_limits_;
  TopSample before_;
  TopRates rates_;
  TopScreen screen_;
  std::string pending_, pending_node_;  // what waits for a 'y'; "": nothing
};

}  // namespace

void add_top_command(CLI::App& app, int* exit_code) {
  auto options = std::make_shared<TopOptions>();
  CLI::App* command =
      app.add_subcommand("top", "What a running server and its nodes do, once a second");
  options->server.add(*command);
  command->add_flag("--once", options->once, "One second, then the end");
  command->add_flag("--json", options->json, "A JSON object for each second in place of text");
  command->footer(
      "GB/s is what a node reads of its tiles while it computes, and behind / what the cluster "
      "file\nsays that its memory can do (mem_bw). Nodes can be drained where SERVER is a cluster "
      "file with\ncoordinator.admin. Output that is no terminal gets a line a second.\n\n"
      "Example:\n  atoll top http://127.0.0.1:8080\n  atoll top cluster.yaml --once --json");
  command->callback([options, exit_code] {
    Top(*options).run();
    *exit_code = 0;
  });
}

}  // namespace atl::cli
