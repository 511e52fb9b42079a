// Runs a program as a user would: arguments and stdin in, stdout, stderr and exit code out.
#pragma once

#include <chrono>
#include <string>
#include <vector>

namespace atl::test {

struct CommandOptions {
  std::string stdin_text;
  std::vector<std::string> environment;  // "NAME=value", added to this process's own
  std::string directory;                 // to run in; "" = this process's own
  bool close_stdout = false;             // a reader of stdout that has gone away
  std::chrono::milliseconds timeout{60'000};
};

struct CommandResult {
  int exit_code = -1;  // of the program, or 128 + the signal that ended it
  std::string out;
  std::string err;
  bool timed_out = false;  // it was killed at the timeout (exit_code is then 137)
};

// argv[0] is a path. The program gets stdin_text and then its end; both outputs are read to their
// ends. It is killed at the timeout and if this process dies. Throws std::runtime_error if it can't
// be started.
CommandResult run_command(const std::vector<std::string>& argv, const CommandOptions& options = {});

}  // namespace atl::test
