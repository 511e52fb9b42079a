// The expert node of this process as a cluster's only one, for `--nodes 0`: control calls are
// function calls.
#pragma once

#include <memory>
#include <string>
#include <utility>

#include "coordinator/cluster/node_source.h"

namespace atl::coordinator {

class LocalNode final : public NodeSource {
 public:
  // Borrowed.
  LocalNode(std::string name, transport::NodeControl& node) : name_(std::move(name)), node_(node) {}

  int num_nodes() const override { return 1; }
  std::string name(int) const override { return name_; }
  Result<std::unique_ptr<transport::NodeClient>> open(int) override {
    return std::unique_ptr<transport::NodeClient>(std::make_unique<Client>(node_));
  }
  std::string end(int) override { return ""; }
  bool reopens() const override { return false; }  // it lives as long as this process

 private:
  class Client final : public transport::NodeClient {
   public:
    explicit Client(transport::NodeControl& node) : node_(node) {}
    Result<transport::HelloReply> hello(const transport::Hello& hello) override {
      return node_.hello(hello);
    }
    Status apply_plan(SessionId session, const transport::Plan& plan) override {
      return node_.apply_plan(session, plan);
    }
    Result<transport::NodeState> state(SessionId session) override { return node_.state(session); }
    Result<transport::NodeStats> stats(SessionId session) override { return node_.stats(session); }
    Result<transport::NodeTrace> trace(SessionId session, const transport::TraceAsk& ask) override {
      return node_.trace(session, ask);
    }
    Status close_session(SessionId session) override {
      node_.close_session(session);
      return {};
    }
    Status stop() override {
      node_.stop();
      return {};
    }
    void send_heartbeats(std::chrono::milliseconds) override {}
    Pulse pulse() const override { return {}; }

   private:
    transport::NodeControl& node_;
  };

  const std::string name_;
  transport::NodeControl& node_;
};

}  // namespace atl::coordinator
