// atoll trace, atoll explain: what all processes of a running cluster do, and where the time goes.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <filesystem>
#include <memory>
#include <string>

#include "base/units.h"
#include "cli/commands.h"
#include "cli/output.h"
#include "cli/server_option.h"
#include "cli/trace_file.h"
#include "storage/io/file_io.h"

namespace atl::cli {
namespace {

constexpr uint64_t kTraceFileBytesMax = uint64_t{1} << 30;
constexpr double kTraceSecondsMax = 60;

struct TraceOptions {
  ServerOption server;
  double seconds = 5;
  std::filesystem::path out;
  bool json = false;
};

Trace trace_of(const ServerOption& option, double seconds) {
  const ServerClient server(option);
  TraceLines lines;
  server.get_events(fmt::format("/trace?seconds={:.3f}", seconds),
                    [&](std::string_view data) { lines.take(data); });
  return lines.finish();
}

// "n1 0.021 ms, n2 0.034 ms"
std::string clock_errors(const Trace& trace) {
  std::string text;
  for (const auto& [process, error] : trace.clock_error) {
    text += fmt::format("{}{} {:.3f} ms", text.empty() ? "" : ", ", process,
                        1e-6 * static_cast<double>(error));
  }
  return text.empty() ? "none" : text;
}

void write_trace(const TraceOptions& options) {
  const Trace trace = trace_of(options.server, options.seconds);
  const std::string text = chrome_trace(trace);
  storage::write_file_atomically(options.out, text);
  size_t events = 0;
  for (const Trace::Thread& thread : trace.threads) events += thread.events.size();
  write_stdout(fmt::format(
      "{}: {} events of {} threads in {:.3g} s, {}; open it at https://ui.perfetto.dev\n"
      "clocks of nodes set to the coordinator's, wrong by at most: {}\n{}",
      options.out.string(), events, trace.threads.size(), options.seconds,
      format_bytes(text.size()), clock_errors(trace),
      trace.lost == 0 ? ""
                      : fmt::format("{} events were lost: the rings are read ten times a second\n",
                                    trace.lost)));
}

void explain_trace(const TraceOptions& options) {
  const bool is_file = options.server.target.find("://") == std::string::npos &&
                       std::filesystem::path(options.server.target).extension() == ".json";
  const Trace trace =
      is_file
          ? read_chrome_trace(storage::read_whole_file(options.server.target, kTraceFileBytesMax),
                              options.server.target)
          : trace_of(options.server, options.seconds);
  const Explanation explanation = explain(trace);
  write_stdout(options.json ? explanation_json(explanation) : explanation_text(explanation));
}

void add_seconds_option(CLI::App& command, double* seconds) {
  command.add_option("--seconds", *seconds, "How long")
      ->check(CLI::Range(0.01, kTraceSecondsMax))
      ->capture_default_str();
}

}  // namespace

void add_trace_command(CLI::App& app, int* exit_code) {
  auto options = std::make_shared<TraceOptions>();
  CLI::App* command = app.add_subcommand(
      "trace", "What coordinator and nodes do, as a file for Perfetto or chrome://tracing");
  options->server.add(*command);
  add_seconds_option(*command, &options->seconds);
  command->add_option("--out", options->out, "File (Chrome's JSON)")->required()->type_name("FILE");
  command->footer(
      "Example:\n  atoll trace http://127.0.0.1:8080 --seconds 5 --out trace.json\n"
      "  atoll explain trace.json");
  command->callback([options, exit_code] {
    write_trace(*options);
    *exit_code = 0;
  });
}

void add_explain_command(CLI::App& app, int* exit_code) {
  auto options = std::make_shared<TraceOptions>();
  CLI::App* command = app.add_subcommand(
      "explain", "Where a token's time goes, of a trace or of a server that is traced now");
  options->server.add(*command);
  command->get_option("SERVER")->description(
      "A file of `atoll trace` (*.json), http://HOST:PORT of `atoll serve`, or its cluster file");
  add_seconds_option(*command, &options->seconds);
  command->add_flag("--json", options->json, "One JSON object in place of text");
  command->footer(
      "Example:\n  atoll explain trace.json\n  atoll explain http://127.0.0.1:8080 --seconds 2");
  command->callback([options, exit_code] {
    explain_trace(*options);
    *exit_code = 0;
  });
}

}  // namespace atl::cli
