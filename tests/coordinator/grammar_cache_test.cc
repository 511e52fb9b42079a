#include "coordinator/api/grammar_cache.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <future>
#include <thread>

namespace atl::coordinator {
namespace {

using Grammar = GrammarCache::Grammar;

class FakeGrammar final : public constrain::ConstraintGrammar {
 public:
  explicit FakeGrammar(size_t bytes) : bytes_(bytes) {}
  std::unique_ptr<constrain::TokenConstraint> make(
      const constrain::ConstraintVocabulary&, const constrain::ConstraintOptions&) const override {
    return nullptr;
  }
  size_t memory_bytes() const override { return bytes_; }

 private:
  const size_t bytes_;
};

GrammarCache::Compile gives(size_t bytes, int* calls) {
  return [=](std::stop_token) -> Result<Grammar> {
    ++*calls;
    return Grammar(std::make_shared<FakeGrammar>(bytes));
  };
}

TEST(GrammarCache, compiles_once_and_remembers_refusals_too) {
  GrammarCache cache(10, 1 << 20);
  int calls = 0;
  EXPECT_FALSE(cache.find("a"));
  const Grammar first = *cache.get("a", {}, gives(100, &calls));
  EXPECT_EQ(*cache.get("a", {}, gives(100, &calls)), first);
  EXPECT_EQ(**cache.find("a"), first);
  EXPECT_EQ(calls, 1);

  const auto refuse = [&](std::stop_token) -> Result<Grammar> {
    ++calls;
    return Error{ErrorCode::kInvalid, "too large"};
  };
  for (int i = 0; i < 3; ++i) {
    EXPECT_EQ(cache.get("b", {}, refuse).error().message, "too large");
  }
  EXPECT_EQ(cache.find("b")->error().message, "too large");
  EXPECT_EQ(calls, 2);
}

TEST(GrammarCache, who_wants_the_same_waits_for_it_and_nobody_else_does) {
  GrammarCache cache(10, 1 << 20);
  std::promise<void> begun, release;
  std::atomic<int> calls{0};
  const GrammarCache::Compile slow = [&](std::stop_token) -> Result<Grammar> {
    if (++calls == 1) begun.set_value();
    release.get_future().wait();
    return Grammar(std::make_shared<FakeGrammar>(1));
  };
  auto first = std::async(std::launch::async, [&] { return *cache.get("a", {}, slow); });
  begun.get_future().wait();
  auto second = std::async(std::launch::async, [&] { return *cache.get("a", {}, slow); });
  EXPECT_FALSE(cache.find("a"));  // does not wait
  int others = 0;
  EXPECT_TRUE(cache.get("b", {}, gives(1, &others)));
  EXPECT_EQ(others, 1);
  release.set_value();
  EXPECT_EQ(first.get(), second.get());
  EXPECT_EQ(calls, 1);
}

TEST(GrammarCache, who_waits_can_be_stopped) {
  GrammarCache cache(10, 1 << 20);
  std::promise<void> begun, release;
  const GrammarCache::Compile slow = [&](std::stop_token) -> Result<Grammar> {
    begun.set_value();
    release.get_future().wait();
    return Grammar(std::make_shared<FakeGrammar>(1));
  };
  auto first = std::async(std::launch::async, [&] { return cache.get("a", {}, slow); });
  begun.get_future().wait();
  std::stop_source gone;
  auto second =
      std::async(std::launch::async, [&] { return cache.get("a", gone.get_token(), slow); });
  gone.request_stop();
  EXPECT_EQ(second.get().error().code, ErrorCode::kUnavailable);
  release.set_value();
  EXPECT_TRUE(first.get());
}

TEST(GrammarCache, what_was_stopped_is_compiled_by_the_next_who_waits) {
  GrammarCache cache(10, 1 << 20);
  std::promise<void> begun;
  std::stop_source gone;
  auto first = std::async(std::launch::async, [&] {
    return cache.get("a", gone.get_token(), [&](std::stop_token stop) -> Result<Grammar> {
      begun.set_value();
      while (!stop.stop_requested()) std::this_thread::yield();
      return Error{ErrorCode::kUnavailable, "stopped"};
    });
  });
  begun.get_future().wait();
  int calls = 0;
  auto second =
      std::async(std::launch::async, [&] { return cache.get("a", {}, gives(1, &calls)); });
  gone.request_stop();
  EXPECT_EQ(first.get().error().code, ErrorCode::kUnavailable);
  EXPECT_TRUE(second.get());
  EXPECT_EQ(calls, 1);
}

TEST(GrammarCache, is_bounded_in_entries_and_bytes_and_forgets_what_was_used_least_lately) {
  GrammarCache few(2, 1 << 20);
  int calls = 0;
  for (const char* key : {"a", "b", "a", "c"}) EXPECT_TRUE(few.get(key, {}, gives(1, &calls)));
  EXPECT_EQ(few.num_entries(), 2u);
  EXPECT_TRUE(few.find("a"));
  EXPECT_FALSE(few.find("b"));
  EXPECT_TRUE(few.find("c"));

  GrammarCache small(100, 10'000);
  for (int i = 0; i < 20; ++i) {
    EXPECT_TRUE(small.get(std::to_string(i), {}, gives(3000, &calls)));
    EXPECT_LE(small.bytes(), 10'000u);
  }
  EXPECT_TRUE(small.find("19"));
  EXPECT_TRUE(small.get("huge", {}, gives(20'000, &calls)));  // used, not kept
  EXPECT_FALSE(small.find("huge"));
  EXPECT_LE(small.bytes(), 10'000u);
}

}  // namespace
}  // namespace atl::coordinator
