#include "base/child_process.h"

#include <fcntl.h>
#include <fmt/core.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <condition_variable>
#include <cstring>
#include <functional>
#include <mutex>
#include <thread>

#include "base/check.h"
#include "base/log.h"

extern char** environ;

namespace atl {

namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

constexpr size_t kLineBytesMax = 64 << 10;

// Runs functions on one thread that never ends, so that "parent thread" in PR_SET_PDEATHSIG means
// this process. Never destroyed: its end is the process's.
class ForkThread {
 public:
  // The one of this process; a process forked without exec gets its own.
  static ForkThread& get() {
    static std::mutex mutex;
    static ForkThread* instance = nullptr;
    static pid_t owner = 0;
    std::lock_guard lock(mutex);
    if (owner != ::getpid()) {
      instance = new ForkThread;
      owner = ::getpid();
    }
    return *instance;
  }

  void run(const std::function<void()>& work) {
    std::lock_guard one_caller(callers_);
    std::unique_lock lock(mutex_);
    work_ = &work;
    changed_.notify_all();
    changed_.wait(lock, [this] { return work_ == nullptr; });
  }

 private:
  ForkThread() {
    std::thread([this] { loop(); }).detach();
  }

  void loop() {
    std::unique_lock lock(mutex_);
    for (;;) {
      changed_.wait(lock, [this] { return work_ != nullptr; });
      (*work_)();
      work_ = nullptr;
      changed_.notify_all();
    }
  }

  std::mutex callers_;
  std::mutex mutex_;
  std::condition_variable changed_;
  const std::function<void()>* work_ = nullptr;
};

// What the child needs between fork and exec, where nothing may be allocated.
struct Launch {
  std::vector<char*> argv;
  std::vector<char*> envp;
  int stdin_fd = -1;   // -1: inherited
  int stdout_fd = -1;  // -1: inherited
  int inherited_fd = -1;
  int error_fd = -1;  // errno of a failed exec is written here; closed by a successful one
  pid_t parent = 0;
  bool own_process_group = false;
};

// dup2 that also works where it is already in place: the copy stays open over the exec.
bool move_to(int from, int to) {
  if (from == to) return ::fcntl(from, F_SETFD, 0) == 0;
  return ::dup2(from, to) == to;
}

[[noreturn]] void become_child(Launch& launch) {
  const auto fail = [&] {
    const int error = errno;
    [[maybe_unused]] const ssize_t written = ::write(launch.error_fd, &error, sizeof error);
    ::_exit(127);
  };
  if (::prctl(PR_SET_PDEATHSIG, SIGKILL) != 0) fail();
  // The parent may have died before the call above; then nobody would tell us.
  if (::getppid() != launch.parent) ::_exit(127);
  if (launch.own_process_group && ::setpgid(0, 0) != 0) fail();
  if (launch.stdin_fd >= 0 && !move_to(launch.stdin_fd, STDIN_FILENO)) fail();
  if (launch.stdout_fd >= 0 && !move_to(launch.stdout_fd, STDOUT_FILENO)) fail();
  // Descriptors of libraries that don't ask for close-on-exec.
  ::syscall(SYS_close_range, 3u, ~0u, 1u << 2 /* CLOSE_RANGE_CLOEXEC */);
  if (launch.inherited_fd >= 0) {
    // The place may be taken, by the descriptor for errors, too: that one moves up first.
    if (launch.error_fd == kInheritedFd) {
      launch.error_fd = ::fcntl(launch.error_fd, F_DUPFD_CLOEXEC, kInheritedFd + 1);
    }
    if (!move_to(launch.inherited_fd, kInheritedFd)) fail();
  }
  // Event loops block signals and ignore SIGPIPE; both would survive the exec.
  sigset_t none;
  ::sigemptyset(&none);
  ::sigprocmask(SIG_SETMASK, &none, nullptr);
  ::signal(SIGPIPE, SIG_DFL);
  ::execve(launch.argv[0], launch.argv.data(), launch.envp.data());
  fail();
  ::_exit(127);
}

std::vector<std::string> environment_with(
    const std::vector<std::pair<std::string, std::string>>& added) {
  std::vector<std::string> variables;
  for (char** v = environ; *v != nullptr; ++v) {
    const std::string_view variable = *v;
    bool replaced = false;
    for (const auto& [name, value] : added) replaced |= variable.starts_with(name + "=");
    if (!replaced) variables.emplace_back(variable);
  }
  for (const auto& [name, value] : added) variables.push_back(name + "=" + value);
  return variables;
}

std::vector<char*> pointers_to(std::vector<std::string>& strings) {
  std::vector<char*> pointers;
  for (std::string& s : strings) pointers.push_back(s.data());
  pointers.push_back(nullptr);
  return pointers;
}

void close_fd(int& fd) {
  if (fd >= 0) ::close(fd);
  fd = -1;
}

// Milliseconds for poll() until the deadline, rounded up so that it isn't asked in a tight loop.
int poll_timeout(Clock::time_point deadline) {
  const auto left = std::chrono::ceil<milliseconds>(deadline - Clock::now()).count();
  return static_cast<int>(std::clamp<int64_t>(left, 0, 1 << 30));
}

// Waits until fd can be read (or the other end is gone); false at the deadline.
bool wait_readable(int fd, Clock::time_point deadline) {
  for (;;) {
    pollfd ready{fd, POLLIN, 0};
    const int n = ::poll(&ready, 1, poll_timeout(deadline));
    if (n > 0) return true;
    if (n == 0 && Clock::now() >= deadline) return false;
  }
}

std::string text_of(const siginfo_t& info) {
  if (info.si_code == CLD_EXITED) return fmt::format("exit code {}", info.si_status);
  return fmt::format("signal {} ({})", info.si_status, ::strsignal(info.si_status));
}

struct Pipe {
  int read_fd = -1, write_fd = -1;
  Pipe() {
    int fds[2];
    if (::pipe2(fds, O_CLOEXEC) != 0)
      throw LoadError(fmt::format("cannot make a pipe for a child process: {}", strerror(errno)));
    read_fd = fds[0];
    write_fd = fds[1];
  }
  ~Pipe() {
    close_fd(read_fd);
    close_fd(write_fd);
  }
  Pipe(const Pipe&) = delete;
};

}  // namespace

ChildProcess ChildProcess::start(const ChildOptions& options) {
  CHECK(!options.argv.empty());
  std::vector<std::string> arguments = options.argv;
  std::vector<std::string> variables = environment_with(options.env);
  Pipe errors, output;
  CHECK(!options.pipe_stdout || !options.silent_stdout);
  int null_fd = ::open("/dev/null", O_RDWR | O_CLOEXEC);
  Launch launch;
  launch.argv = pointers_to(arguments);
  launch.envp = pointers_to(variables);
  launch.stdin_fd = options.inherit_stdin ? -1 : null_fd;
  launch.stdout_fd = options.pipe_stdout ? output.write_fd : options.silent_stdout ? null_fd : -1;
  launch.inherited_fd = options.inherited_fd;
  launch.error_fd = errors.write_fd;
  launch.parent = ::getpid();
  launch.own_process_group = options.own_process_group;

  ChildProcess child;
  child.name_ = options.name.empty() ? options.argv[0] : options.name;
  int fork_error = 0;
  ForkThread::get().run([&] {
    child.pid_ = ::fork();
    if (child.pid_ == 0) become_child(launch);
    fork_error = errno;
  });
  close_fd(null_fd);
  if (child.pid_ < 0)
    throw LoadError(fmt::format("cannot start {}: fork: {}", child.name_, strerror(fork_error)));
  child.pidfd_ = static_cast<int>(::syscall(SYS_pidfd_open, child.pid_, 0));
  close_fd(errors.write_fd);
  int exec_error = 0;
  if (::read(errors.read_fd, &exec_error, sizeof exec_error) == sizeof exec_error) {
    ::waitpid(child.pid_, nullptr, 0);
    child.release();
    throw LoadError(
        fmt::format("cannot start {}: {}: {}", child.name_, options.argv[0], strerror(exec_error)));
  }
  if (child.pidfd_ < 0) {
    const int error = errno;
    ::kill(child.pid_, SIGKILL);
    ::waitpid(child.pid_, nullptr, 0);
    child.release();
    throw LoadError(fmt::format("cannot watch {}: pidfd_open: {}", child.name_, strerror(error)));
  }
  if (options.pipe_stdout) child.stdout_fd_ = std::exchange(output.read_fd, -1);
  return child;
}

ChildProcess::ChildProcess(ChildProcess&& other) noexcept { *this = std::move(other); }

ChildProcess& ChildProcess::operator=(ChildProcess&& other) noexcept {
  if (this == &other) return *this;
  stop();
  name_ = std::move(other.name_);
  pid_ = std::exchange(other.pid_, -1);
  pidfd_ = std::exchange(other.pidfd_, -1);
  stdout_fd_ = std::exchange(other.stdout_fd_, -1);
  unread_ = std::move(other.unread_);
  return *this;
}

void ChildProcess::release() {
  pid_ = -1;
  close_fd(pidfd_);
  close_fd(stdout_fd_);
}

Result<std::string> ChildProcess::read_line(milliseconds timeout) {
  const auto deadline = Clock::now() + timeout;
  for (;;) {
    if (const size_t end = unread_.find('\n'); end != std::string::npos) {
      std::string line = unread_.substr(0, end);
      unread_.erase(0, end + 1);
      return line;
    }
    if (unread_.size() > kLineBytesMax)
      return Error{ErrorCode::kInvalid, fmt::format("{}: printed {} bytes without an end of line",
                                                    name_, unread_.size())};
    if (stdout_fd_ < 0)
      return Error{ErrorCode::kUnavailable, fmt::format("{}: no output to read", name_)};
    if (!wait_readable(stdout_fd_, deadline))
      return Error{ErrorCode::kTimeout,
                   fmt::format("{}: printed no line within {} ms", name_, timeout.count())};
    char buffer[4096];
    const ssize_t bytes = ::read(stdout_fd_, buffer, sizeof buffer);
    if (bytes < 0 && errno == EINTR) continue;
    if (bytes <= 0) {
      close_fd(stdout_fd_);
      return Error{ErrorCode::kUnavailable,
                   fmt::format("{}: ended before it printed a line", name_)};
    }
    unread_.append(buffer, static_cast<size_t>(bytes));
  }
}

void ChildProcess::send_signal(int signal) {
  if (has_child()) ::syscall(SYS_pidfd_send_signal, pidfd_, signal, nullptr, 0);
}

Result<std::string> ChildProcess::wait(milliseconds timeout) {
  if (!has_child()) return Error{ErrorCode::kUnavailable, fmt::format("{}: no child", name_)};
  if (!wait_readable(pidfd_, Clock::now() + timeout))
    return Error{ErrorCode::kTimeout,
                 fmt::format("{}: still running after {} ms", name_, timeout.count())};
  siginfo_t info{};
  ::waitid(P_PID, static_cast<id_t>(pid_), &info, WEXITED);
  release();
  return text_of(info);
}

void ChildProcess::stop(milliseconds grace) {
  if (!has_child()) return;
  send_signal(SIGTERM);
  if (wait(grace)) return;
  log_warn("{}: didn't end within {} ms, killed", name_, grace.count());
  send_signal(SIGKILL);
  ::waitpid(pid_, nullptr, 0);
  release();
}

}  // namespace atl
