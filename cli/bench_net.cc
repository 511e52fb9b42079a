// atoll bench net: what the links between a running coordinator and its nodes add to each dispatch.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <atomic>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "base/units.h"
#include "cli/bench_report.h"
#include "cli/net_times.h"
#include "cli/output.h"
#include "cli/server_option.h"
#include "cli/table.h"
#include "cli/trace_file.h"

namespace atl::cli {
namespace {

using NetJson = nlohmann::ordered_json;

struct BenchNetOptions {
  ServerOption server;
  double seconds = 6;
  bool json = false;
};

constexpr int kManySequences = 16;
constexpr int kPromptWords = 700;  // more than a step takes

// One sequence, then sixteen, then long prompts, again and again until it ends.
class NetLoad {
 public:
  explicit NetLoad(const ServerClient& server) : server_(server), thread_([this] { run(); }) {}
  ~NetLoad() {
    done_ = true;
    thread_.join();
  }
  const std::string& failure() const { return failure_; }  // once this has ended

 private:
  void run() {
    std::mt19937 random(1);
    try {
      while (!done_) {
        ask(1, 32, "One", random);
        ask(kManySequences, 16, "Many", random);
        std::string prompt;
        for (int word = 0; word < kPromptWords; ++word)
          prompt += fmt::format("{} ", random() % 997);
        ask(1, 1, prompt, random);
      }
    } catch (const LoadError& error) {
      failure_ = error.what();
    }
  }
  void ask(int sequences, int tokens, const std::string& prompt, std::mt19937& random) {
    if (done_) return;
    const NetJson body = {{"prompt", fmt::format("{} {}", random(), prompt)},
                          {"max_tokens", tokens},
                          {"n", sequences},
                          {"temperature", 1},
                          {"ignore_eos", true}};
    server_.post("/v1/completions", body.dump());
  }

  const ServerClient& server_;
  std::atomic<bool> done_ = false;
  std::string failure_;
  std::thread thread_;
};

// Bytes that a row of a dispatch is there and back, of each node.
std::map<std::string, RowBytes> row_bytes(const NetJson& before, const NetJson& after) {
  std::map<std::string, RowBytes> bytes;
  for (const NetJson& now : after.at("nodes")) {
    for (const NetJson& was : before.at("nodes")) {
      if (was.at("name") != now.at("name")) continue;
      const auto grown = [&](const char* key) { return now.value(key, 0.0) - was.value(key, 0.0); };
      const double rows = grown("rows");
      if (rows <= 0) continue;
      bytes[now.at("name").get<std::string>()] = {grown("bytes_out") / rows,
                                                  grown("bytes_in") / rows};
    }
  }
  return bytes;
}

std::string net_text(const std::vector<NodeNet>& nodes) {
  Table table({{"node"},
               {"rows", Align::kRight},
               {"dispatches", Align::kRight},
               {"median", Align::kRight},
               {"p10", Align::kRight},
               {"p90", Align::kRight},
               {"there", Align::kRight},
               {"back", Align::kRight},
               {"rate", Align::kRight},
               {""}});
  for (const NodeNet& node : nodes) {
    for (const NetCell& cell : node.cells) {
      table.add_row({node.name, std::to_string(cell.rows), std::to_string(cell.dispatches),
                     fmt::format("{:.0f} us", 1e6 * cell.median),
                     fmt::format("{:.0f} us", 1e6 * cell.low),
                     fmt::format("{:.0f} us", 1e6 * cell.high),
                     format_bytes(static_cast<uint64_t>(cell.bytes_out)),
                     format_bytes(static_cast<uint64_t>(cell.bytes_in)),
                     format_rate((cell.bytes_out + cell.bytes_in) / cell.median),
                     cell.is_slow ? "slow" : ""});
    }
  }
  return table.to_string("") +
         "what a dispatch takes beyond the node's own work on it: both ways, and threads that "
         "wake up\n";
}

std::string net_json(const std::vector<NodeNet>& nodes) {
  NetJson list = NetJson::array();
  for (const NodeNet& node : nodes) {
    NetJson cells = NetJson::array();
    for (const NetCell& cell : node.cells) {
      cells.push_back({{"rows", cell.rows},
                       {"dispatches", cell.dispatches},
                       {"seconds_median", cell.median},
                       {"seconds_p10", cell.low},
                       {"seconds_p90", cell.high},
                       {"bytes_out", cell.bytes_out},
                       {"bytes_in", cell.bytes_in},
                       {"slow", cell.is_slow}});
    }
    list.push_back({{"name", node.name}, {"cells", cells}});
  }
  return NetJson{{"nodes", list}}.dump(-1, ' ', false, NetJson::error_handler_t::replace) + "\n";
}

void bench_net(const BenchNetOptions& options) {
  const ServerClient server(options.server);
  const NetJson before = server.get("/stats");
  TraceLines lines;
  {
    NetLoad load(server);
    server.get_events(fmt::format("/trace?seconds={:.3f}", options.seconds),
                      [&](std::string_view line) { lines.take(line); });
  }
  const Trace trace = lines.finish();
  const auto nodes = net_times(trace, row_bytes(before, server.get("/stats")));
  write_stdout(options.json ? net_json(nodes) : net_text(nodes));
}

}  // namespace

void add_bench_net_command(CLI::App& bench, int* exit_code) {
  auto options = std::make_shared<BenchNetOptions>();
  CLI::App* command = bench.add_subcommand(
      "net", "What the links between a running coordinator and its nodes add to a dispatch");
  options->server.add(*command);
  command->add_option("--seconds", options->seconds, "How long")
      ->check(CLI::Range(1.0, 60.0))
      ->capture_default_str();
  command->add_flag("--json", options->json, "One JSON object in place of the table");
  command->footer(
      "Sends requests of one sequence, of sixteen and of long prompts, traces them, and takes from "
      "each\ndispatch the time that its node worked on it. A node is marked slow that adds twice "
      "what the\nmiddle one does. Nodes don't speak to each other.\n\n"
      "Example:\n  atoll bench net http://127.0.0.1:8080");
  command->callback([options, exit_code] {
    bench_net(*options);
    *exit_code = 0;
  });
}

}  // namespace atl::cli
