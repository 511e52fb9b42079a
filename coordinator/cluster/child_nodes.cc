#include "coordinator/cluster/child_nodes.h"

#include <fmt/format.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <utility>

namespace atl::coordinator {
namespace {

// Reading the headers of a 163-shard checkpoint on a loaded machine takes seconds.
constexpr auto kHelloTimeout = std::chrono::seconds(60);
// A process that ends by itself closes its sockets a little before it can be waited for.
constexpr auto kEndingTime = std::chrono::milliseconds(20);
constexpr auto kKillTime = std::chrono::seconds(10);

}  // namespace

ChildNodes::ChildNodes(ChildNodesOptions options)
    : options_(std::move(options)),
      // In the child, /proc/self would be somebody else.
      program_(std::filesystem::canonical(options_.program).string()),
      processes_(options_.arguments.size()) {}

Result<std::unique_ptr<transport::NodeClient>> ChildNodes::open(int node) {
  int pair[2];
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) != 0) {
    return Error{ErrorCode::kUnavailable,
                 fmt::format("cannot make a pair of sockets for it: {}", std::strerror(errno))};
  }
  ChildOptions child;
  child.name = name(node);
  child.silent_stdout = true;
  child.own_process_group = true;  // Ctrl-C: the coordinator needs them to the end
  child.inherited_fd = pair[1];
  child.argv = {program_};
  const std::vector<std::string>& arguments = options_.arguments[static_cast<size_t>(node)];
  child.argv.insert(child.argv.end(), arguments.begin(), arguments.end());
  child.argv.insert(child.argv.end(), {"--control-fd", std::to_string(kInheritedFd)});
  std::string problem;
  try {
    const std::lock_guard lock(mutex_);
    processes_[static_cast<size_t>(node)] = ChildProcess::start(child);
  } catch (const LoadError& error) {
    problem = error.what();
  }
  ::close(pair[1]);
  if (!problem.empty()) {
    ::close(pair[0]);
    return Error{ErrorCode::kUnavailable, problem};
  }
  return transport::control_over(pair[0], name(node), kHelloTimeout);
}

std::string ChildNodes::end(int node) {
  const std::lock_guard lock(mutex_);
  ChildProcess& process = processes_[static_cast<size_t>(node)];
  if (!process.has_child()) return "";
  if (auto by_itself = process.wait(kEndingTime)) return *by_itself;
  process.send_signal(SIGKILL);  // SIGTERM does nothing to a stopped one
  (void)process.wait(kKillTime);
  return "";
}

std::vector<pid_t> ChildNodes::pids() const {
  const std::lock_guard lock(mutex_);
  std::vector<pid_t> pids;
  for (const ChildProcess& process : processes_) pids.push_back(process.pid());
  return pids;
}

}  // namespace atl::coordinator
