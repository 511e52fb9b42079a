#include "coordinator/cluster/dialled_nodes.h"

#include <chrono>
#include <utility>

#include "base/check.h"

namespace atl::coordinator {
namespace {

// Of connecting and of each call. All are answered by a thread that does nothing else.
constexpr auto kCallTimeout = std::chrono::seconds(5);

}  // namespace

DialledNodes::DialledNodes(std::vector<DialledNode> nodes, transport::ControlSecurity security)
    : security_(std::move(security)), nodes_(std::move(nodes)) {}

void DialledNodes::set(int node, DialledNode dialled) {
  const std::lock_guard lock(mutex_);
  CHECK(node >= 0 && node <= static_cast<int>(nodes_.size()));
  if (node == static_cast<int>(nodes_.size())) nodes_.emplace_back();
  nodes_[static_cast<size_t>(node)] = std::move(dialled);
}

int DialledNodes::num_nodes() const {
  const std::lock_guard lock(mutex_);
  return static_cast<int>(nodes_.size());
}

std::string DialledNodes::name(int node) const {
  const std::lock_guard lock(mutex_);
  return nodes_.at(static_cast<size_t>(node)).name;
}

std::string DialledNodes::address(int node) const {
  const std::lock_guard lock(mutex_);
  return nodes_.at(static_cast<size_t>(node)).address;
}

Result<std::unique_ptr<transport::NodeClient>> DialledNodes::open(int node) {
  const auto given_up = std::make_shared<std::atomic<bool>>(false);
  {
    const std::lock_guard lock(mutex_);
    given_up_[node] = given_up;
  }
  return transport::dial_node(address(node), name(node), security_, kCallTimeout, given_up);
}

std::string DialledNodes::end(int node) {
  const std::lock_guard lock(mutex_);
  const auto begun = given_up_.find(node);
  if (begun != given_up_.end()) *begun->second = true;
  return "";
}

}  // namespace atl::coordinator
