// An expert node on an in-process transport: what it accepts, what it refuses and how.
#include "expert_node/serve.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <deque>
#include <limits>
#include <map>
#include <set>
#include <thread>

#include "model/weights_map.h"
#include "storage/checkpoint/checkpoint.h"
#include "tests/support/manual_tiles.h"
#include "tests/support/synthetic_model.h"
#include "tests/support/temp_dir.h"

namespace atl::expert_node {
namespace {

using testing::HasSubstr;
using transport::Frame;

constexpr uint32_t kHidden = 320;
constexpr uint32_t kTopK = 3;
constexpr SessionId kSession{0xabcdef};

// A node of the store that the case opens.
class NodeTest : public testing::Test {
 protected:
  void start_node() {
    transport::InProcessPair pair = transport::make_in_process_pair();
    near_ = std::move(pair.near_end);
    far_ = std::move(pair.far_end);
    start_node_on(*far_);
    transport::set_in_process_pump(*near_, [this] { node_->serve_some(); });
  }
  void start_node_on(transport::Transport& transport) {
    NodeOptions options;
    options.name = "n7";
    options.identity = {"model a", "fingerprint a", "profile a"};
    options.row_type = transport::WireRowType::kF32;
    node_.emplace(options, team_, *tiles_, transport);
  }

  transport::Hello hello() {
    transport::Hello hello;
    hello.coordinator = "c0";
    hello.identity = {"model a", "fingerprint a", "profile a"};
    hello.session = kSession;
    hello.data_address = near_->address();
    hello.limits.rows_max = 4;
    hello.limits.hidden_size = static_cast<uint32_t>(tiles_->catalog().hidden_size);
    hello.limits.top_k = kTopK;
    hello.limits.num_layers = 2;
    hello.limits.n_routed_experts = static_cast<uint32_t>(tiles_->catalog().n_routed_experts);
    hello.limits.num_tiles = static_cast<uint32_t>(tiles_->num_tiles());
    hello.limits.row_type = transport::WireRowType::kF32;
    return hello;
  }
  void open_session() {
    auto reply = node_->hello(hello());
    ASSERT_TRUE(reply) << reply.error().message;
    auto peer = near_->connect(reply->data_address, reply->node);
    ASSERT_TRUE(peer);
    peer_ = *peer;
    EXPECT_FALSE(near_->poll());  // the node's data plane takes the session up
  }
  void load_plan_without_serving(std::vector<transport::TileRange> tiles) {
    ASSERT_TRUE(node_->apply_plan(kSession, {Epoch{1}, std::move(tiles)}));
    while (node_->state(kSession).resident_bytes == 0) std::this_thread::yield();
  }
  void load_plan(std::vector<transport::TileRange> tiles) {
    ASSERT_TRUE(node_->apply_plan(kSession, {Epoch{1}, std::move(tiles)}));
    while (node_->state(kSession).phase == transport::NodeState::Phase::kLoading) {
      std::this_thread::yield();
    }
    ASSERT_EQ(node_->state(kSession).phase, transport::NodeState::Phase::kReady)
        << node_->state(kSession).error;
  }

  void send_dispatch(SessionId session, uint64_t id) {
    transport::SharedBuffer payload;
    const std::vector<std::byte> header = dispatch_header(session, id, &payload);
    ASSERT_TRUE(near_->send(peer_, header, payload, payload->size()));
  }
  std::vector<std::byte> dispatch_header(SessionId session, uint64_t id,
                                         transport::SharedBuffer* payload_out) {
    const uint32_t hidden = hello().limits.hidden_size;
    transport::Dispatch dispatch;
    dispatch.names = {session, DispatchId{id}, Epoch{1}, 1};
    dispatch.row_type = transport::WireRowType::kF32;
    dispatch.num_rows = 1;
    dispatch.hidden_size = hidden;
    dispatch.top_k = kTopK;
    dispatch.tiles = {{0, static_cast<uint16_t>(tiles_->num_tiles())}};
    const auto layout = transport::dispatch_payload_layout(1, hidden, kTopK, dispatch.row_type);
    auto payload = std::make_shared<HostBuffer>(layout.bytes);
    const int32_t ids[kTopK] = {0, 3, 5};
    const float weights[kTopK] = {1, 1, 1};
    std::memcpy(payload->data() + layout.ids, ids, sizeof(ids));
    std::memcpy(payload->data() + layout.weights, weights, sizeof(weights));
    std::vector<std::byte> header;
    transport::encode_dispatch_header(dispatch, &header);
    *payload_out = std::move(payload);
    return header;
  }
  // The node's next answer. The message must outlive the frame's spans.
  Frame receive() {
    for (int i = 0; i < 100; ++i) {
      auto event = near_->poll();
      if (!event) continue;
      EXPECT_EQ(event->kind, transport::Event::Kind::kMessage);
      message_ = std::move(event->message);
      auto frame = transport::decode_frame(*message_, hello().limits);
      EXPECT_TRUE(frame) << (frame ? "" : frame.error().message);
      return *frame;
    }
    ADD_FAILURE() << "the node did not answer";
    return {};
  }

  std::optional<storage::TileStore> tiles_;
  ThreadTeam team_{1};
  std::unique_ptr<transport::Transport> near_, far_;
  std::optional<ExpertNode> node_;
  transport::PeerId peer_;
  std::unique_ptr<transport::Message> message_;
};

// Of a checkpoint.
class ServeTest : public NodeTest {
 protected:
  ServeTest() {
    test::write_small_model(dir_.path(), kHidden, 512);
    config_.emplace(model::load_config(dir_.path()));
    checkpoint_.emplace(storage::Checkpoint::open(dir_.path()));
    catalog_.emplace(model::map_experts(*config_, *checkpoint_));
    tiles_.emplace(*checkpoint_, *catalog_);
    start_node();
  }
  ~ServeTest() override {
    node_.reset();
    tiles_.reset();
  }

  test::TempDir dir_;
  std::optional<model::ModelConfig> config_;
  std::optional<storage::Checkpoint> checkpoint_;
  std::optional<storage::ExpertCatalog> catalog_;
};

TEST_F(ServeTest, another_model_checkpoint_or_profile_is_refused_with_both_values) {
  for (std::string transport::ModelIdentity::*field :
       {&transport::ModelIdentity::model, &transport::ModelIdentity::checkpoint_fingerprint,
        &transport::ModelIdentity::profile}) {
    transport::Hello other = hello();
    const std::string ours = other.identity.*field;
    other.identity.*field = "something else";
    auto reply = node_->hello(other);
    ASSERT_FALSE(reply);
    EXPECT_EQ(reply.error().code, ErrorCode::kInvalid);
    EXPECT_THAT(reply.error().message, HasSubstr(ours));
    EXPECT_THAT(reply.error().message, HasSubstr("something else"));
  }
}

TEST_F(ServeTest, other_shapes_are_refused_with_both_values) {
  transport::Hello other = hello();
  other.limits.hidden_size = 256;
  auto reply = node_->hello(other);
  ASSERT_FALSE(reply);
  EXPECT_EQ(reply.error().message, "hidden_size differs: n7 has 320, the coordinator 256");
  other = hello();
  other.limits.rows_max = 8193;
  reply = node_->hello(other);
  ASSERT_FALSE(reply);
  EXPECT_EQ(reply.error().message, "dispatches of up to 8193 rows: n7 takes 1 to 512");
  other = hello();
  other.limits.num_tiles = 16;
  reply = node_->hello(other);
  ASSERT_FALSE(reply);
  EXPECT_EQ(reply.error().message, "number of tiles differs: n7 has 4, the coordinator 16");
}

TEST_F(ServeTest, says_what_is_missing_to_a_coordinator_that_drafts_with_the_next_token_layer) {
  transport::Hello hello = this->hello();
  hello.limits.num_layers = 3;
  auto reply = node_->hello(hello);
  ASSERT_FALSE(reply);
  EXPECT_EQ(reply.error().message,
            "the coordinator drafts with the next-token layer (--draft mtp or auto), which n7 "
            "doesn't hold: start it with --mtp, or with a cluster file that has this `draft`, on a "
            "checkpoint or pack with that layer");
  hello.limits.num_layers = 1;
  reply = node_->hello(hello);
  ASSERT_FALSE(reply);
  EXPECT_EQ(reply.error().message, "num_hidden_layers differs: n7 has 2, the coordinator 1");
}

TEST_F(ServeTest, is_ready_only_when_its_data_plane_knows_the_coordinator) {
  ASSERT_TRUE(node_->hello(hello()));
  load_plan_without_serving({{0, 4}});
  EXPECT_EQ(node_->state(kSession).phase, transport::NodeState::Phase::kLoading);
  node_->serve_some();
  EXPECT_EQ(node_->state(kSession).phase, transport::NodeState::Phase::kReady);
}

TEST_F(ServeTest, a_session_key_is_used_once) {
  ASSERT_TRUE(node_->hello(hello()));
  auto again = node_->hello(hello());
  ASSERT_FALSE(again);
  EXPECT_THAT(again.error().message, HasSubstr("is already open at n7"));
}

// After a partition, say: it has not been told of the end of the first session. Whichever of the
// two ids is smaller. Found by tests/sim.
TEST_F(ServeTest, a_coordinator_that_dials_again_takes_the_place_of_what_it_was) {
  open_session();
  load_plan({{0, 4}});
  for (const uint64_t id : {kSession.value + 1, kSession.value - 1}) {
    transport::Hello again = hello();
    again.session = SessionId{id};
    auto reply = node_->hello(again);
    ASSERT_TRUE(reply) << reply.error().message;
    node_->serve_some();
    ASSERT_EQ(node_->state(again.session).phase, transport::NodeState::Phase::kReady);
    const auto lost = near_->poll();
    ASSERT_TRUE(lost);
    EXPECT_EQ(lost->kind, transport::Event::Kind::kPeerLost);
    peer_ = *near_->connect(reply->data_address, reply->node);
    send_dispatch(again.session, 7);
    EXPECT_EQ(receive().kind, Frame::Kind::kPartial);
  }
}

TEST_F(ServeTest, plans_that_make_no_sense_are_refused) {
  open_session();
  const auto refused = [&](std::vector<transport::TileRange> tiles) {
    const Status status = node_->apply_plan(kSession, {Epoch{1}, std::move(tiles)});
    return status ? std::string("accepted") : status.error().message;
  };
  EXPECT_EQ(refused({{0, 5}}), "plan names tiles 0..5, an expert of this model has 4");
  EXPECT_EQ(refused({{2, 2}}), "plan names tiles 2..2, an expert of this model has 4");
  EXPECT_EQ(refused({{0, 2}, {1, 3}}), "plan's tile ranges overlap or do not ascend");
  EXPECT_EQ(refused({{2, 3}, {0, 1}}), "plan's tile ranges overlap or do not ascend");
  const Status unknown = node_->apply_plan(SessionId{1}, {Epoch{1}, {{0, 1}}});
  ASSERT_FALSE(unknown);
  EXPECT_THAT(unknown.error().message, HasSubstr("0000000000000001 is not open"));
}

TEST_F(ServeTest, a_dispatch_before_the_plan_is_loaded_is_refused_and_one_after_it_answered) {
  open_session();
  send_dispatch(kSession, 1);
  const Frame early = receive();
  ASSERT_EQ(early.kind, Frame::Kind::kRefusal);
  EXPECT_EQ(early.refusal.error.code, ErrorCode::kUnavailable);
  EXPECT_EQ(early.refusal.names.dispatch, DispatchId{1});

  load_plan({{0, 4}});
  send_dispatch(kSession, 2);
  const Frame answer = receive();
  ASSERT_EQ(answer.kind, Frame::Kind::kPartial);
  EXPECT_EQ(answer.partial.names, (transport::DispatchNames{kSession, DispatchId{2}, Epoch{1}, 1}));
  EXPECT_EQ(answer.partial.num_outputs, kHidden);
  const transport::NodeStats stats = node_->stats(kSession);
  EXPECT_EQ(stats.dispatches, 1u);
  EXPECT_EQ(stats.expert_rows, 3u);
  EXPECT_EQ(stats.tiles_computed, 12u);
  EXPECT_EQ(stats.refused, 1u);
  EXPECT_EQ(stats.bytes_out, kHidden * 6u);
}

TEST_F(ServeTest, traces_what_it_does_with_a_dispatch_while_it_is_asked_to) {
  using transport::NodeWork;
  open_session();
  load_plan({{0, 4}});
  send_dispatch(kSession, 2);
  (void)receive();
  auto trace = node_->trace(kSession, {.on = true, .events_max = 100});
  ASSERT_TRUE(trace);
  EXPECT_TRUE(trace->events.empty());  // it was off
  const int64_t before = trace->now_ns;
  send_dispatch(kSession, 3);
  (void)receive();
  trace = node_->trace(kSession, {.on = false, .events_max = 100});
  ASSERT_TRUE(trace);
  std::map<NodeWork, int64_t> seconds;
  int64_t whole = 0, within = 0;
  for (const TraceEvent& event : trace->events) {
    EXPECT_EQ(event.id, 3u);
    EXPECT_EQ(event.layer, 1);
    EXPECT_EQ(event.rows, 1u);
    EXPECT_GE(event.begin_ns, before);
    EXPECT_LE(event.end_ns, trace->now_ns);
    const auto work = static_cast<NodeWork>(event.kind);
    seconds[work] += event.end_ns - event.begin_ns;
    if (work == NodeWork::kDispatch) whole += event.end_ns - event.begin_ns;
    if (work != NodeWork::kDispatch && work != NodeWork::kQueue) {
      within += event.end_ns - event.begin_ns;
    }
  }
  EXPECT_EQ(seconds.size(), transport::kNumNodeWorks);
  EXPECT_LE(within, whole);
  send_dispatch(kSession, 4);
  (void)receive();
  EXPECT_TRUE(node_->trace(kSession, {.on = false, .events_max = 100})->events.empty());
}

TEST_F(ServeTest, log_lines_of_a_dispatch_name_the_requests_that_it_was_for) {
  open_session();
  std::vector<std::byte> header;
  transport::encode_step_note({{kSession, DispatchId{5}, Epoch{1}, 0}, "req-1 req-2"}, &header);
  ASSERT_TRUE(near_->send(peer_, header, nullptr, 0));
  testing::internal::CaptureStderr();
  send_dispatch(kSession, 5);
  EXPECT_EQ(receive().kind, Frame::Kind::kRefusal);  // nothing is loaded yet
  EXPECT_THAT(testing::internal::GetCapturedStderr(),
              HasSubstr("dispatch 5 of c0 for requests req-1 req-2 refused"));
}

TEST_F(ServeTest, a_node_without_tiles_of_its_own_computes_what_it_is_asked) {
  open_session();
  load_plan({});
  send_dispatch(kSession, 1);
  EXPECT_EQ(receive().kind, Frame::Kind::kPartial);
  EXPECT_EQ(node_->stats(kSession).cache.misses, 3u);
}

TEST_F(ServeTest, a_dispatch_of_another_session_is_refused_with_both_keys) {
  open_session();
  load_plan({{0, 4}});
  send_dispatch(SessionId{5}, 1);
  const Frame answer = receive();
  ASSERT_EQ(answer.kind, Frame::Kind::kRefusal);
  EXPECT_EQ(answer.refusal.error.message,
            "session 0000000000000005 is not open at n7, which has 0000000000abcdef");
}

TEST_F(ServeTest, a_frame_that_cannot_be_read_is_refused_at_once_and_the_next_one_answered) {
  open_session();
  load_plan({{0, 4}});
  const std::vector<std::byte> garbage(48, std::byte{0x5a});
  ASSERT_TRUE(near_->send(peer_, garbage, nullptr, 0));
  const Frame answer = receive();
  ASSERT_EQ(answer.kind, Frame::Kind::kRefusal);
  EXPECT_EQ(answer.refusal.names.dispatch, transport::kUnreadableDispatch);
  send_dispatch(kSession, 1);
  EXPECT_EQ(receive().kind, Frame::Kind::kPartial);
}

// Peers are 1, 2 and so on in the order of their connections; those in `choked` take nothing.
class ChokingTransport final : public transport::Transport {
 public:
  std::vector<std::byte> address() const override { return {std::byte{1}}; }
  Result<transport::PeerId> connect(std::span<const std::byte>, const std::string&) override {
    return transport::PeerId{++num_peers_};
  }
  void close(transport::PeerId peer) override { closed.push_back(peer.value); }
  Status send(transport::PeerId peer, std::span<const std::byte>, transport::SharedBuffer,
              size_t payload_bytes) override {
    if (choked.contains(peer.value)) return Error{ErrorCode::kOverloaded, "no room"};
    bytes[peer.value] += payload_bytes;
    return {};
  }
  std::optional<transport::Event> poll() override {
    if (events.empty()) return std::nullopt;
    transport::Event event = std::move(events.front());
    events.pop_front();
    return event;
  }
  void wait(std::chrono::microseconds) override { ADD_FAILURE() << "the node waits"; }
  void wake() override {}
  std::string selected_links(transport::PeerId) const override { return "choking"; }

  std::set<uint32_t> choked;
  std::map<uint32_t, size_t> bytes;  // sent to each
  std::vector<uint32_t> closed;
  std::deque<transport::Event> events;

 private:
  uint32_t num_peers_ = 0;
};

struct OwnedMessage final : transport::Message {
  std::vector<std::byte> header_bytes;
  transport::SharedBuffer buffer;
  std::span<const std::byte> header() const override { return header_bytes; }
  std::span<const std::byte> payload() const override { return buffer->span(); }
};

// Two coordinators, peers 1 and 2.
class ChokedServeTest : public ServeTest {
 protected:
  void SetUp() override {
    node_.reset();
    start_node_on(choking_);
    for (const uint64_t session : {1, 2}) {
      transport::Hello one = hello();
      one.session = SessionId(session);
      one.data_address.push_back(static_cast<std::byte>(session));  // of another end each
      ASSERT_TRUE(node_->hello(one));
      node_->serve_some();
    }
    ASSERT_TRUE(node_->apply_plan(SessionId(1), {Epoch{1}, {{0, 4}}}));
    while (node_->state(SessionId(1)).phase == transport::NodeState::Phase::kLoading) {
      std::this_thread::yield();
    }
  }
  ~ChokedServeTest() override { node_.reset(); }
  void ask(uint32_t peer, uint64_t id) {
    auto message = std::make_unique<OwnedMessage>();
    message->header_bytes = dispatch_header(SessionId(peer), id, &message->buffer);
    transport::Event event;
    event.peer = transport::PeerId{peer};
    event.message = std::move(message);
    choking_.events.push_back(std::move(event));
  }

  ChokingTransport choking_;
};

TEST_F(ChokedServeTest, a_coordinator_that_does_not_read_holds_up_nobody_and_gets_it_all_later) {
  choking_.choked = {1};
  ask(1, 1);
  ask(2, 2);
  node_->serve_some();
  EXPECT_EQ(choking_.bytes[1], 0u);
  EXPECT_GT(choking_.bytes[2], 0u);
  choking_.choked.clear();
  node_->serve_some();
  EXPECT_EQ(choking_.bytes[1], choking_.bytes[2]);
  EXPECT_TRUE(choking_.closed.empty());
}

TEST_F(ChokedServeTest, a_coordinator_that_asks_on_without_reading_is_given_up) {
  choking_.choked = {1};
  uint64_t id = 1;
  for (; choking_.closed.empty(); ++id) {
    ASSERT_LT(id, 1000u);
    ask(1, id);
    node_->serve_some();
  }
  EXPECT_EQ(choking_.closed, std::vector<uint32_t>{1});
  ask(1, id);
  ask(2, id + 1);
  node_->serve_some();
  EXPECT_EQ(choking_.bytes[1], 0u);
  EXPECT_GT(choking_.bytes[2], 0u);
}

TEST_F(ServeTest, a_later_plan_is_read_into_free_memory_and_what_is_here_stays) {
  open_session();
  load_plan({{0, 1}});
  const uint64_t before = node_->state(kSession).resident_bytes;
  ASSERT_TRUE(node_->apply_plan(kSession, {Epoch{2}, {{0, 3}}}));
  while (true) {
    const transport::NodeState state = node_->state(kSession);
    ASSERT_EQ(state.phase, transport::NodeState::Phase::kReady) << "it goes on serving";
    if (state.bytes_loaded >= state.bytes_total) break;
    std::this_thread::yield();
  }
  EXPECT_EQ(node_->state(kSession).epoch, Epoch{2});
  EXPECT_EQ(node_->state(kSession).resident_bytes, 3 * before);
  // Nothing is read for a plan that asks for less, nor for one that asks for the same again.
  const uint64_t read = node_->stats(kSession).cache.bytes_read;
  ASSERT_TRUE(node_->apply_plan(kSession, {Epoch{3}, {{0, 1}}}));
  while (!node_->apply_plan(kSession, {Epoch{4}, {{0, 3}}})) std::this_thread::yield();
  while (node_->state(kSession).bytes_loaded < node_->state(kSession).bytes_total) {
    std::this_thread::yield();
  }
  EXPECT_EQ(node_->stats(kSession).cache.bytes_read, read);
  send_dispatch(kSession, 9);
  EXPECT_EQ(receive().kind, Frame::Kind::kPartial);
}

// A coordinator that is started again finds its tiles where they were.
TEST_F(ServeTest, another_session_finds_the_tiles_that_are_here) {
  open_session();
  load_plan({{0, 2}});
  const uint64_t read = node_->stats(kSession).cache.bytes_read;
  node_->close_session(kSession);
  while (near_->poll()) {
  }
  open_session();
  load_plan({{0, 2}});
  EXPECT_EQ(node_->stats(kSession).cache.bytes_read, read);
}

TEST_F(ServeTest, two_coordinators_of_one_plan_wait_for_the_same_load) {
  constexpr SessionId kOther{0x1234};
  open_session();
  transport::Hello other = hello();
  other.coordinator = "c1";
  other.session = kOther;
  ASSERT_TRUE(node_->hello(other));
  ASSERT_TRUE(node_->apply_plan(kSession, {Epoch{1}, {{0, 2}}}));
  const Status same = node_->apply_plan(kOther, {Epoch{7}, {{0, 2}}});
  ASSERT_TRUE(same) << same.error().message;
  while (node_->state(kSession).phase == transport::NodeState::Phase::kLoading) {
    std::this_thread::yield();
  }
  EXPECT_EQ(node_->state(kSession).phase, transport::NodeState::Phase::kReady);
  EXPECT_EQ(node_->state(kSession).epoch, Epoch{1});
  EXPECT_EQ(node_->state(kOther).epoch, Epoch{7});
}

TEST_F(ServeTest, who_asks_for_more_than_it_takes_is_refused_and_the_rest_answered) {
  open_session();
  load_plan({{0, 4}});
  constexpr int kAsked = 70;
  for (int id = 0; id < kAsked; ++id) send_dispatch(kSession, id);
  int answered = 0, refused = 0;
  for (int i = 0; i < kAsked; ++i) {
    const Frame frame = receive();
    if (frame.kind == Frame::Kind::kPartial) ++answered;
    if (frame.kind != Frame::Kind::kRefusal) continue;
    ++refused;
    EXPECT_THAT(frame.refusal.error.message, HasSubstr("64 dispatches of this coordinator"));
  }
  EXPECT_EQ(answered + refused, kAsked);
  EXPECT_EQ(answered, 64 + 1);
}

TEST_F(ServeTest, a_closed_session_is_gone_and_its_key_free_again) {
  open_session();
  node_->close_session(kSession);
  node_->serve_some();
  EXPECT_EQ(node_->stats(kSession).dispatches, 0u);
  EXPECT_TRUE(node_->hello(hello()));
}

TEST_F(ServeTest, a_checkpoint_that_cannot_be_loaded_fails_the_plan_with_the_reason) {
  test::patch_tensor(dir_.path(), "model.layers.1.mlp.experts.4.up_proj.weight_scale_inv", 0, 1,
                     std::numeric_limits<float>::infinity());
  open_session();
  ASSERT_TRUE(node_->apply_plan(kSession, {Epoch{1}, {{0, 4}}}));
  while (node_->state(kSession).phase == transport::NodeState::Phase::kLoading) {
    std::this_thread::yield();
  }
  const transport::NodeState state = node_->state(kSession);
  EXPECT_EQ(state.phase, transport::NodeState::Phase::kFailed);
  EXPECT_THAT(state.error, HasSubstr("experts.4.up_proj"));
}

// Of a source that reads tile by tile, as packs do; the case ends the reads.
class ColdServeTest : public NodeTest {
 protected:
  ColdServeTest() {
    tiles_.emplace(std::make_unique<test::ManualTiles>(drive_, catalog_), catalog_,
                   storage::TileStoreOptions{});
    start_node();
  }
  ~ColdServeTest() override {
    drive_.finish_all();  // the loader waits for what it has begun
    node_.reset();
    tiles_.reset();
  }

  const storage::ExpertCatalog catalog_ = test::ManualTiles::catalog();
  test::ManualDrive drive_;
};

TEST_F(ColdServeTest, is_ready_and_answers_before_what_it_keeps_is_in_ram) {
  open_session();
  ASSERT_TRUE(node_->apply_plan(kSession, {Epoch{1}, {{0, test::kManualTiles}}}));
  drive_.wait_for(3);  // the fourth of the four that are loaded at a time
  transport::NodeState state = node_->state(kSession);
  EXPECT_EQ(state.phase, transport::NodeState::Phase::kReady) << state.error;
  EXPECT_EQ(state.bytes_loaded, 0u);
  const uint64_t expert_bytes = test::kManualTiles * tiles_->layout(0).bytes;
  EXPECT_EQ(state.bytes_total, test::kManualExperts * expert_bytes);

  send_dispatch(kSession, 1);  // experts 0, 3 and 5
  std::thread drive([this] {
    drive_.wait_for(5);
    for (const int64_t expert : {5, 3, 0}) drive_.finish(expert);
  });
  const Frame answer = receive();
  drive.join();
  EXPECT_EQ(answer.kind, Frame::Kind::kPartial);
  EXPECT_EQ(answer.partial.names.dispatch, DispatchId{1});
  const ExpertCacheStats cache = node_->stats(kSession).cache;
  EXPECT_EQ(cache.misses, 3u);
  EXPECT_EQ(cache.late, 2u);
  state = node_->state(kSession);
  EXPECT_EQ(state.phase, transport::NodeState::Phase::kReady) << state.error;
  EXPECT_LT(state.bytes_loaded, state.bytes_total);

  drive_.finish_all();
  while (node_->state(kSession).bytes_loaded < state.bytes_total) std::this_thread::yield();
  EXPECT_EQ(node_->state(kSession).resident_bytes, state.bytes_total);
}

}  // namespace
}  // namespace atl::expert_node
