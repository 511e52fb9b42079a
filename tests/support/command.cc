#include "tests/support/command.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <stdexcept>
#include <string_view>
#include <utility>

namespace atl::test {
namespace {

using TimePoint = std::chrono::steady_clock::time_point;

// One end of a pipe, closed when it goes.
class Fd {
 public:
  Fd() = default;
  explicit Fd(int fd) : fd_(fd) {}
  ~Fd() { reset(); }
  Fd(Fd&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Fd& operator=(Fd&& other) noexcept {
    reset();
    fd_ = std::exchange(other.fd_, -1);
    return *this;
  }
  int get() const { return fd_; }
  void reset() {
    if (fd_ >= 0) ::close(fd_);
    fd_ = -1;
  }

 private:
  int fd_ = -1;
};

struct Pipe {
  Fd read_end, write_end;
};

Pipe make_pipe() {
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) {
    throw std::runtime_error(std::string("pipe2: ") + std::strerror(errno));
  }
  return {Fd(ends[0]), Fd(ends[1])};
}

// Runs in the child, between fork and exec: only calls that are safe there.
[[noreturn]] void become(char* const* argv, char* const* environment, const char* directory, int in,
                         int out, int err) {
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  ::dup2(in, STDIN_FILENO);
  ::dup2(out, STDOUT_FILENO);
  ::dup2(err, STDERR_FILENO);
  ::signal(SIGPIPE, SIG_DFL);
  if (*directory == '\0' || ::chdir(directory) == 0) ::execve(argv[0], argv, environment);
  ::_exit(127);
}

std::vector<char*> pointers(const std::vector<std::string>& texts) {
  std::vector<char*> list;
  for (const std::string& text : texts) list.push_back(const_cast<char*>(text.c_str()));
  list.push_back(nullptr);
  return list;
}

std::vector<std::string> environment_with(const std::vector<std::string>& added) {
  std::vector<std::string> all = added;  // the first of two equal names wins
  for (char** entry = environ; *entry != nullptr; ++entry) all.emplace_back(*entry);
  return all;
}

// Appends what is there; closes at the end.
void drain(Fd& fd, std::string* text) {
  char buffer[1 << 16];
  const ssize_t got = ::read(fd.get(), buffer, sizeof buffer);
  if (got > 0) {
    text->append(buffer, static_cast<size_t>(got));
  } else if (got == 0 || errno != EINTR) {
    fd.reset();
  }
}

// Writes what fits; closes when all is written or nobody reads.
void feed(Fd& fd, std::string_view text, size_t* written) {
  const ssize_t put = ::write(fd.get(), text.data() + *written, text.size() - *written);
  if (put > 0) *written += static_cast<size_t>(put);
  if (*written == text.size() || (put < 0 && errno != EINTR && errno != EAGAIN)) fd.reset();
}

// Moves bytes until both outputs have ended. False if the deadline came first.
bool converse(Fd& in, std::string_view in_text, Fd& out, Fd& err, TimePoint deadline,
              CommandResult* result) {
  size_t written = 0;
  if (in_text.empty()) in.reset();
  while (out.get() >= 0 || err.get() >= 0) {
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(
        deadline - std::chrono::steady_clock::now());
    if (left.count() <= 0) return false;
    pollfd fds[] = {{in.get(), POLLOUT, 0}, {out.get(), POLLIN, 0}, {err.get(), POLLIN, 0}};
    if (::poll(fds, 3, static_cast<int>(left.count())) < 0 && errno != EINTR) return false;
    if (fds[0].revents != 0) feed(in, in_text, &written);
    if (fds[1].revents != 0) drain(out, &result->out);
    if (fds[2].revents != 0) drain(err, &result->err);
  }
  return true;
}

}  // namespace

CommandResult run_command(const std::vector<std::string>& argv, const CommandOptions& options) {
  ::signal(SIGPIPE, SIG_IGN);  // feed() sees EPIPE when the program doesn't read its stdin
  Pipe in = make_pipe(), out = make_pipe(), err = make_pipe();
  const std::vector<std::string> environment = environment_with(options.environment);
  const std::vector<char*> argv_list = pointers(argv), environment_list = pointers(environment);
  const pid_t child = ::fork();
  if (child < 0) throw std::runtime_error(std::string("fork: ") + std::strerror(errno));
  if (options.close_stdout) out.read_end.reset();
  if (child == 0) {
    become(argv_list.data(), environment_list.data(), options.directory.c_str(), in.read_end.get(),
           out.write_end.get(), err.write_end.get());
  }
  in.read_end.reset();
  out.write_end.reset();
  err.write_end.reset();
  ::fcntl(in.write_end.get(), F_SETFL, O_NONBLOCK);

  CommandResult result;
  result.timed_out = !converse(in.write_end, options.stdin_text, out.read_end, err.read_end,
                               std::chrono::steady_clock::now() + options.timeout, &result);
  if (result.timed_out) ::kill(child, SIGKILL);
  int status = 0;
  while (::waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  result.exit_code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  if (result.exit_code == 127) throw std::runtime_error("cannot run " + argv[0]);
  return result;
}

}  // namespace atl::test
