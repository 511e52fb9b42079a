// Expert nodes as scripts, for tests of the dispatcher: what they send back for what they are sent,
// on a clock that moves when somebody waits.
#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "coordinator/cluster/dispatcher.h"

namespace atl::coordinator {

using transport::Dispatch;
using transport::Event;
using transport::Partial;
using transport::PeerId;

constexpr uint32_t kRows = 3, kHidden = 40, kTiles = 4;  // 40 outputs: two panels and a half
constexpr auto kDeadline = std::chrono::milliseconds(5000);

struct OwnedMessage final : transport::Message {
  std::vector<std::byte> header_bytes;
  HostBuffer payload_buffer;  // aligned, as the contract asks
  std::span<const std::byte> header() const override { return header_bytes; }
  std::span<const std::byte> payload() const override { return payload_buffer.span(); }
  void set_payload(std::span<const std::byte> bytes) {
    payload_buffer = HostBuffer(bytes.size());
    if (!bytes.empty()) std::memcpy(payload_buffer.data(), bytes.data(), bytes.size());
  }
};

// What tile `tile` contributes to an output of a row, in units of 2^-24: tells its origin.
inline int64_t contribution(int tile, uint32_t row, uint32_t output) {
  return (tile + int64_t{1}) * 1'000'000'000 + row * 1'000 + output;
}
inline float expected_output(uint32_t row, uint32_t output) {
  int64_t sum = 0;
  for (uint32_t tile = 0; tile < kTiles; ++tile) sum += contribution(tile, row, output);
  return static_cast<float>(std::ldexp(static_cast<double>(sum), -24));
}

inline Event message_event(PeerId peer, std::vector<std::byte> header,
                           std::vector<std::byte> payload) {
  auto message = std::make_unique<OwnedMessage>();
  message->header_bytes = std::move(header);
  message->set_payload(payload);
  Event event;
  event.kind = Event::Kind::kMessage;
  event.peer = peer;
  event.message = std::move(message);
  return event;
}

// The rectangle of a node's answer.
inline Event partial_event(PeerId peer, const Dispatch& dispatch, uint32_t row_begin,
                           uint32_t num_rows, uint32_t output_begin, uint32_t num_outputs,
                           std::vector<transport::FailedRow> failed = {}) {
  std::vector<int64_t> values;
  for (uint32_t row = row_begin; row < row_begin + num_rows; ++row) {
    for (uint32_t output = output_begin; output < output_begin + num_outputs; ++output) {
      int64_t sum = 0;
      for (const transport::TileRange& range : dispatch.tiles) {
        for (int tile = range.begin; tile < range.end; ++tile) {
          sum += contribution(tile, row, output);
        }
      }
      values.push_back(sum);
    }
  }
  Partial partial;
  partial.names = dispatch.names;
  partial.row_begin = row_begin;
  partial.num_rows = num_rows;
  partial.output_begin = output_begin;
  partial.num_outputs = num_outputs;
  partial.element_bits = transport::narrowest_element_bits(values);
  partial.failed_rows = std::move(failed);
  std::vector<std::byte> header, payload(values.size() * partial.element_bits / 8);
  transport::encode_partial_header(partial, &header);
  transport::pack_elements(values, partial.element_bits, payload.data());
  return message_event(peer, std::move(header), std::move(payload));
}
inline Event whole_partial(PeerId peer, const Dispatch& dispatch) {
  return partial_event(peer, dispatch, 0, kRows, 0, kHidden);
}
inline Event lost_event(PeerId peer) {
  Event event;
  event.kind = Event::Kind::kPeerLost;
  event.peer = peer;
  event.status = Error{ErrorCode::kUnavailable, "connection reset"};
  return event;
}

// Nodes are scripts: what to send back for a dispatch. Waiting advances the clock.
class ScriptedTransport final : public transport::Transport {
 public:
  using Script = std::function<std::vector<Event>(PeerId, const Dispatch&)>;
  ScriptedTransport(ManualClock& clock, transport::WireLimits limits)
      : clock_(clock), limits_(limits) {}

  std::vector<std::byte> address() const override { return {}; }
  // The address of a node that joins again is the peer that it becomes.
  Result<PeerId> connect(std::span<const std::byte> address, const std::string&) override {
    const PeerId peer{static_cast<uint32_t>(address.front())};
    if (unreachable.contains(peer.value)) return Error{ErrorCode::kUnavailable, "it has ended"};
    return peer;
  }
  void close(PeerId peer) override { closed.push_back(peer.value); }
  Status send(PeerId peer, std::span<const std::byte> header, transport::SharedBuffer payload,
              size_t payload_bytes) override {
    if (unreachable.contains(peer.value)) return Error{ErrorCode::kUnavailable, "no route"};
    OwnedMessage message;
    message.header_bytes.assign(header.begin(), header.end());
    if (payload) message.set_payload(payload->span().first(payload_bytes));
    auto frame = transport::decode_frame(message, limits_);
    EXPECT_TRUE(frame) << (frame ? "" : frame.error().message);
    if (frame->kind == transport::Frame::Kind::kHint) {
      hinted.push_back({peer.value,
                        frame->hint.names,
                        frame->hint.tiles,
                        {frame->hint.experts.begin(), frame->hint.experts.end()}});
      return {};
    }
    if (frame->kind == transport::Frame::Kind::kStepNote) {
      noted.push_back({peer.value, frame->note});
      return {};
    }
    for (Event& event : scripts.at(peer.value)(peer, frame->dispatch)) {
      events.push_back(std::move(event));
    }
    sent.push_back({peer.value, frame->dispatch.tiles});
    return {};
  }
  std::optional<Event> poll() override {
    if (events.empty()) return std::nullopt;
    Event event = std::move(events.front());
    events.pop_front();
    return event;
  }
  void wait(std::chrono::microseconds timeout) override {
    clock_.advance(shorten ? shorten(timeout) : timeout);
    if (on_wait) on_wait();
  }
  void wake() override {}
  std::string selected_links(PeerId) const override { return "scripted"; }

  std::map<uint32_t, Script> scripts;
  std::set<uint32_t> unreachable;
  std::deque<Event> events;
  std::vector<uint32_t> closed;
  std::vector<std::pair<uint32_t, std::vector<transport::TileRange>>> sent;
  struct SentHint {
    uint32_t peer;
    transport::DispatchNames names;
    std::vector<transport::TileRange> tiles;
    std::vector<int32_t> experts;
  };
  std::vector<SentHint> hinted;
  std::vector<std::pair<uint32_t, transport::StepNote>> noted;
  std::function<void()> on_wait;
  // How long a wait really takes; not set: all of it.
  std::function<std::chrono::nanoseconds(std::chrono::nanoseconds)> shorten;

 private:
  ManualClock& clock_;
  transport::WireLimits limits_;
};

// News as the test gives them out.
class ScriptedWatch final : public NodeWatch {
 public:
  std::vector<NodeNews> take_news() override { return std::exchange(news, {}); }
  void given_up(size_t node, uint64_t life, const std::string& why) override {
    losses.push_back({node, life, why});
  }
  bool brings_back() const override { return brings_back_; }
  void add(NodeNews::Kind kind, size_t node) {
    NodeNews one;
    one.kind = kind;
    one.node = node;
    one.why = "no heartbeat";
    news.push_back(one);
  }
  // Joins as this peer.
  void add_joined(size_t node, uint64_t life, uint32_t peer) {
    NodeNews one;
    one.kind = NodeNews::Kind::kJoined;
    one.node = node;
    one.life = life;
    one.data_address = {static_cast<std::byte>(peer)};
    one.session = SessionId{77};
    news.push_back(one);
  }
  void add_plan(std::vector<NodeNews::Owner> plan) {
    NodeNews one;
    one.kind = NodeNews::Kind::kPlan;
    one.plan = std::move(plan);
    news.push_back(one);
  }

  bool brings_back_ = false;
  std::vector<NodeNews> news;
  struct Loss {
    size_t node;
    uint64_t life;
    std::string why;
  };
  std::vector<Loss> losses;
};

class DispatcherTest : public testing::Test {
 protected:
  static transport::WireLimits limits() {
    transport::WireLimits limits;
    limits.rows_max = 8;
    limits.hidden_size = kHidden;
    limits.top_k = 2;
    limits.num_layers = 5;
    limits.n_routed_experts = 6;
    limits.num_tiles = kTiles;
    limits.row_type = transport::WireRowType::kF32;
    return limits;
  }
  DispatcherTest() {
    const auto answer = [](PeerId peer, const Dispatch& dispatch) {
      std::vector<Event> events;
      events.push_back(whole_partial(peer, dispatch));
      return events;
    };
    for (uint32_t peer = 0; peer < 12; ++peer) transport_.scripts[peer] = answer;
  }
  void SetUp() override { make({}); }
  // `standby` [node] tiles.
  void make(std::vector<std::vector<int>> standby, DispatcherOptions options = {}) {
    standby.resize(3);
    options.session = SessionId{77};
    options.limits = limits();
    options.progress_deadline = kDeadline;
    dispatcher_ = std::make_unique<Dispatcher>(
        transport_, team_, clock_, options,
        std::vector<NodeLink>{{"n0", PeerId{0}, {0, 3}, {}, true, standby[0]},
                              {"n1", PeerId{1}, {1}, {}, true, standby[1]},
                              {"n2", PeerId{2}, {2}, {}, true, standby[2]}},
        &watch_);
  }

  Result<std::vector<RowFailure>> step() {
    auto sent = dispatch(3);
    if (!sent) return sent.error();
    return combine(*sent);
  }
  Result<Dispatcher::Ptr> dispatch(int32_t layer) {
    const std::vector<float> rows(kRows * kHidden, 1.0f);
    const std::vector<int32_t> ids = {0, 1, 2, 3, 4, -1};
    const std::vector<float> weights(ids.size(), 0.5f);
    return dispatcher_->dispatch(layer, kRows, rows.data(), ids.data(), weights.data());
  }
  Result<std::vector<RowFailure>> combine(Dispatcher::Ptr& flight) {
    out_.assign(kRows * kHidden, 0.0f);
    return dispatcher_->combine(std::move(flight), out_.data());
  }
  void expect_exact() const {
    for (uint32_t row = 0; row < kRows; ++row) {
      for (uint32_t output = 0; output < kHidden; ++output) {
        ASSERT_EQ(out_[row * kHidden + output], expected_output(row, output))
            << "row " << row << ", output " << output;
      }
    }
  }

  ManualClock clock_;
  ThreadTeam team_{1};
  ScriptedTransport transport_{clock_, limits()};
  ScriptedWatch watch_;
  std::unique_ptr<Dispatcher> dispatcher_;
  std::vector<float> out_;
};

}  // namespace atl::coordinator
