// atoll: reads the command line, runs one subcommand, tells errors in one line.
//
// Exit codes: 0 done, 1 the work could not be done, 2 the command line is wrong, 141 the reader of
// stdout went away (as a shell reports a program ended by SIGPIPE).
#include <fcntl.h>
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <new>
#include <string>

#include "base/log.h"
#include "base/one_line.h"
#include "cli/commands.h"
#include "cli/help_formatter.h"
#include "cli/output.h"
#include "cli/usage.h"
#include "transport/data/transport.h"

namespace atl::cli {
namespace {

constexpr int kExitFailure = 1;
constexpr int kExitUsage = 2;
constexpr int kExitOutputClosed = 141;

// In the order of `atoll --help`.
void add_commands(CLI::App& app, int* exit_code) {
  add_run_command(app, exit_code);
  add_serve_command(app, exit_code);
  add_chat_command(app, exit_code);
  add_eval_command(app, exit_code);
  add_node_command(app, exit_code);
  add_cluster_command(app, exit_code);
  add_experts_command(app, exit_code);
  add_top_command(app, exit_code);
  add_trace_command(app, exit_code);
  add_explain_command(app, exit_code);
  add_config_command(app, exit_code);
  add_keys_command(app, exit_code);
  add_pack_command(app, exit_code);
  add_inspect_command(app, exit_code);
  add_plan_command(app, exit_code);
  add_probe_command(app, exit_code);
  add_doctor_command(app, exit_code);
  add_tokenize_command(app, exit_code);
  add_topology_command(app, exit_code);
  add_synth_command(app, exit_code);
  add_bench_command(app, exit_code);
}

void add_common_options(CLI::App& app) {
  app.set_version_flag("--version", "atoll " ATOLL_VERSION);
  app.add_option_function<std::string>(
         "--log-level",
         [](const std::string& text) {
           LogLevel level = LogLevel::kInfo;
           if (!parse_log_level(text, &level)) {
             throw CLI::ValidationError(
                 "--log-level",
                 fmt::format("'{}' is none of trace, debug, info, warn, error, off", text));
           }
           init_log(level, "atoll");
         },
         "Lowest level of log lines on stderr: trace, debug, info, warn, error, off; info unless "
         "given")
      ->type_name("LEVEL");
  // So that common options may also stand behind the subcommand's name.
  for (CLI::App* subcommand : app.get_subcommands({})) subcommand->fallthrough();
}

int fail(int exit_code, std::string_view message) {
  fmt::print(stderr, "atoll: error: {}\n", one_line(message));
  return exit_code;
}

int parse_and_run(int argc, char** argv) {
  int exit_code = 0;
  CLI::App app("Atoll serves mixture-of-experts models of the DeepSeek-V3 class on a few machines.",
               "atoll");
  app.require_subcommand(1);
  app.footer(
      "Example:\n  atoll inspect tests/models/tiny-fp8\n"
      "\n'atoll COMMAND --help' lists the options of one command.");
  app.formatter(make_help_formatter());
  add_commands(app, &exit_code);
  add_common_options(app);
  init_log(LogLevel::kInfo, "atoll");
  try {
    app.parse(argc, argv);
  } catch (const CLI::CallForHelp&) {
    write_stdout(app.help());
  } catch (const CLI::CallForVersion& version) {
    write_stdout(fmt::format("{}\n", version.what()));
  } catch (const CLI::ParseError& error) {
    return fail(kExitUsage, usage_message(app, error));
  }
  return exit_code;
}

// stdin, stdout and stderr that were closed before the start (`0<&- 1>&-`) would be the numbers of
// the first files and sockets, which then got what is written for a person.
void open_missing_descriptors() {
  for (int fd = 0; fd <= 2; ++fd) {
    if (fcntl(fd, F_GETFD) >= 0 || errno != EBADF) continue;
    if (open("/dev/null", O_RDWR) != fd) std::_Exit(kExitFailure);
  }
}

int guarded_main(int argc, char** argv) {
  open_missing_descriptors();
  transport::release_ucx_signals();
  // A peer or reader that went away is an error code at the call, not the end of this process.
  std::signal(SIGPIPE, SIG_IGN);
  try {
    return parse_and_run(argc, argv);
  } catch (const OutputClosed&) {
    return kExitOutputClosed;
  } catch (const std::bad_alloc&) {
    return fail(kExitFailure, "out of memory");
  } catch (const std::exception& error) {
    return fail(kExitFailure, error.what());
  }
}

}  // namespace
}  // namespace atl::cli

int main(int argc, char** argv) { return atl::cli::guarded_main(argc, argv); }
