// Child processes that end with their parent, always.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <string>
#include <utility>
#include <vector>

#include "base/result.h"

namespace atl {

struct ChildOptions {
  std::vector<std::string> argv;  // [0] is the program's path (no search in PATH)
  std::vector<std::pair<std::string, std::string>> env;  // added to this process's environment
  std::string name;                                      // in errors and logs; argv[0] if empty
  bool inherit_stdin = false;                            // else /dev/null
  bool pipe_stdout = false;        // for read_line(); else inherited. stderr is always inherited
  bool silent_stdout = false;      // to /dev/null instead
  bool own_process_group = false;  // Ctrl-C at the terminal is not for it
  int inherited_fd = -1;           // borrowed: the child has it as kInheritedFd
};
inline constexpr int kInheritedFd = 3;

// One child process. The kernel kills it when this process ends in whatever way, kill -9 included:
// PR_SET_PDEATHSIG, and since that is tied to the *thread* that forked, all children are forked by
// one thread that lives as long as the process. The child gets no descriptors but 0, 1, 2 and the
// one that the options name.
//
// The destructor asks (SIGTERM), waits for `kGrace` and then kills. Movable; one thread at a time.
class ChildProcess {
 public:
  static constexpr std::chrono::milliseconds kGrace{5000};

  // Throws LoadError if the program can't be started, with the system's reason.
  static ChildProcess start(const ChildOptions& options);

  ChildProcess() = default;
  ~ChildProcess() { stop(); }
  ChildProcess(ChildProcess&& other) noexcept;
  ChildProcess& operator=(ChildProcess&& other) noexcept;

  bool has_child() const { return pid_ > 0; }  // not started, moved from, or ended and waited for
  pid_t pid() const { return pid_; }
  const std::string& name() const { return name_; }

  // The next line of the child's stdout without its '\n' (pipe_stdout). kTimeout; kUnavailable if
  // it ended or closed its stdout first; kInvalid for more than 64 KiB without an end of line.
  Result<std::string> read_line(std::chrono::milliseconds timeout);

  void send_signal(int signal);
  // "exit code 3", "signal 9 (Killed)". kTimeout if it is still running. After success there is no
  // child any more.
  Result<std::string> wait(std::chrono::milliseconds timeout);
  // SIGTERM, grace, SIGKILL. Returns at once if there is no child.
  void stop(std::chrono::milliseconds grace = kGrace);

 private:
  void release();

  std::string name_;
  pid_t pid_ = -1;
  int pidfd_ = -1;
  int stdout_fd_ = -1;
  std::string unread_;
};

}  // namespace atl
