#include "coordinator/api/canary.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <vector>

namespace atl::coordinator {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using ::testing::HasSubstr;
using ::testing::SizeIs;

class Backend final : public GenerationBackend {
 public:
  Result<GenerationId> submit(GenerationRequest request) override {
    if (refuse) return Error{ErrorCode::kOverloaded, "the queue is full"};
    requests.push_back(std::move(request));
    return GenerationId{requests.size()};
  }
  void cancel(GenerationId) override {}
  GenerationStats stats() const override { return now; }

  std::vector<GenerationRequest> requests;
  GenerationStats now;
  bool refuse = false;
};

GenerationEvent last_token(uint64_t id) {
  GenerationEvent event;
  event.id = GenerationId{id};
  event.token = 5;
  event.finish = FinishReason::kLength;
  return event;
}

class CanaryTest : public ::testing::Test {
 protected:
  CanaryTest() { clock.advance(seconds(1000)); }

  Backend backend;
  ManualClock clock;
  Canary canary{{.every = seconds(10), .max_age = seconds(30), .prompt = {7}}, backend, clock};
};

TEST_F(CanaryTest, asks_for_one_token_at_once_and_then_when_none_came_for_a_while) {
  canary.tick();
  ASSERT_THAT(backend.requests, SizeIs(1));
  EXPECT_EQ(backend.requests[0].prompt, std::vector<int32_t>{7});
  EXPECT_EQ(backend.requests[0].max_tokens, 1);
  canary.tick();
  EXPECT_THAT(backend.requests, SizeIs(1));  // one at a time
  EXPECT_TRUE(canary.on_event(last_token(1)));
  clock.advance(milliseconds(9999));
  canary.tick();
  EXPECT_THAT(backend.requests, SizeIs(1));
  clock.advance(milliseconds(1));
  canary.tick();
  EXPECT_THAT(backend.requests, SizeIs(2));
}

TEST_F(CanaryTest, tokens_of_others_do_as_well) {
  EXPECT_FALSE(canary.on_event(last_token(99)));
  canary.tick();
  EXPECT_THAT(backend.requests, SizeIs(0));
  EXPECT_EQ(canary.not_ready_because(), std::nullopt);
}

TEST_F(CanaryTest, is_ready_until_the_last_token_is_too_old) {
  EXPECT_EQ(canary.not_ready_because(), "no token was generated yet");
  canary.tick();
  canary.on_event(last_token(1));
  EXPECT_EQ(canary.not_ready_because(), std::nullopt);
  clock.advance(seconds(30));
  EXPECT_EQ(canary.not_ready_because(), std::nullopt);
  clock.advance(milliseconds(1));
  EXPECT_EQ(canary.not_ready_because(), "no token was generated for 30 s");
}

TEST_F(CanaryTest, tells_why_there_was_none) {
  backend.refuse = true;
  canary.tick();
  EXPECT_EQ(canary.not_ready_because(), "no token could be generated: the queue is full");
  backend.refuse = false;
  canary.tick();
  GenerationEvent failed;
  failed.id = GenerationId{1};
  failed.error = Error{ErrorCode::kUnavailable, "no node is left"};
  EXPECT_TRUE(canary.on_event(failed));
  EXPECT_THAT(*canary.not_ready_because(), HasSubstr("no node is left"));
  canary.tick();
  EXPECT_THAT(backend.requests, SizeIs(2));
  canary.on_event(last_token(2));
  EXPECT_EQ(canary.not_ready_because(), std::nullopt);
}

TEST_F(CanaryTest, a_step_without_end_is_not_ready) {
  canary.tick();
  canary.on_event(last_token(1));
  const auto begin_step = [&] {
    backend.now.step_begin = seconds_between(Clock::TimePoint(), clock.now());
  };
  backend.now.steps = 100;
  backend.now.step_seconds = 5;
  begin_step();
  clock.advance(milliseconds(1500));
  EXPECT_EQ(canary.not_ready_because(), std::nullopt);
  clock.advance(milliseconds(100));
  EXPECT_EQ(canary.not_ready_because(), "a step has been under way for 1.6 s, usual are 0.050 s");
  backend.now.step_begin = 0;
  EXPECT_EQ(canary.not_ready_because(), std::nullopt);
  // Where steps take long, one may take longer.
  backend.now.step_seconds = 100;
  begin_step();
  clock.advance(seconds(10));
  EXPECT_EQ(canary.not_ready_because(), std::nullopt);
  clock.advance(seconds(1));
  EXPECT_THAT(*canary.not_ready_because(), HasSubstr("for 11.0 s"));
}

TEST_F(CanaryTest, tries_a_failing_engine_every_time) {
  canary.tick();
  canary.on_event(last_token(1));
  backend.now.failure = "combine: no living node";
  EXPECT_THAT(*canary.not_ready_because(), HasSubstr("combine: no living node"));
  canary.tick();
  canary.on_event(last_token(2));
  canary.tick();
  EXPECT_THAT(backend.requests, SizeIs(3));
}

}  // namespace
}  // namespace atl::coordinator
