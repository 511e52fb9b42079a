#include "http/helper_pool.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <future>
#include <latch>

namespace atl::http {
namespace {

using testing::ElementsAre;

HttpWork work_of(const std::string& client, const std::string& name,
                 std::vector<std::string>* done) {
  return {.client = client, .run = [=](std::stop_token) { done->push_back(name); }};
}

class TurnQueueTest : public testing::Test {
 protected:
  void push(const std::string& client, const std::string& name) {
    queue.push(client, work_of(client, name, &done));
  }
  std::vector<std::string> run_all() {
    while (auto work = queue.pop()) work->run({});
    return done;
  }

  TurnQueue<HttpWork> queue;
  std::vector<std::string> done;
};

TEST_F(TurnQueueTest, clients_take_turns_and_each_has_its_order) {
  for (const char* name : {"a1", "a2", "a3", "a4"}) push("a", name);
  push("b", "b1");
  push("c", "c1");
  push("c", "c2");
  EXPECT_EQ(queue.size(), 7u);
  EXPECT_THAT(run_all(), ElementsAre("a1", "b1", "c1", "a2", "c2", "a3", "a4"));
  EXPECT_EQ(queue.size(), 0u);
}

TEST_F(TurnQueueTest, a_client_that_comes_back_is_last) {
  push("a", "a1");
  push("a", "a2");
  queue.pop()->run({});
  push("b", "b1");
  EXPECT_THAT(run_all(), ElementsAre("a1", "a2", "b1"));
}

TEST_F(TurnQueueTest, the_newest_of_who_has_most_is_dropped) {
  for (const char* name : {"a1", "a2", "a3"}) push("a", name);
  push("b", "b1");
  push("b", "b2");
  queue.drop_from_longest().run({});
  EXPECT_THAT(done, ElementsAre("a3"));
  done.clear();
  EXPECT_THAT(run_all(), ElementsAre("a1", "b1", "a2", "b2"));
  push("b", "b3");
  queue.drop_from_longest();
  EXPECT_FALSE(queue.pop());
}

TEST(HelperPool, short_work_never_waits_for_long_work) {
  HelperPool pool(3, 100);
  pool.start();
  std::promise<void> release;
  const std::shared_future<void> released = release.get_future().share();
  std::latch long_ones(2);
  for (int i = 0; i < 20; ++i) {
    pool.add({.client = std::to_string(i),
              .length = WorkLength::kLong,
              .run = [&, i, released](std::stop_token) {
                if (i < 2) long_ones.count_down();
                released.wait();
              }});
  }
  long_ones.wait();  // as many as may run at once
  std::promise<void> done;
  pool.add({.client = "late", .run = [&](std::stop_token) { done.set_value(); }});
  done.get_future().wait();
  release.set_value();
}

TEST(HelperPool, what_does_not_fit_comes_back) {
  HelperPool pool(2, 2);  // not started: all of it waits
  std::vector<std::string> done;
  EXPECT_FALSE(pool.add(work_of("greedy", "g1", &done)));
  EXPECT_FALSE(pool.add(work_of("greedy", "g2", &done)));
  const auto left_out = pool.add(work_of("modest", "m1", &done));
  ASSERT_TRUE(left_out);
  left_out->run({});
  EXPECT_THAT(done, ElementsAre("g2"));
  // Long work has a queue of its own.
  EXPECT_FALSE(pool.add({.client = "greedy", .length = WorkLength::kLong, .run = [](auto) {}}));
}

TEST(HelperPool, stop_asks_what_runs_to_end_and_drops_the_rest) {
  HelperPool pool(2, 100);
  pool.start();
  std::latch running(2);
  std::atomic<int> begun{0};
  for (int i = 0; i < 10; ++i) {
    pool.add({.client = "a", .run = [&](std::stop_token stop) {
                ++begun;
                running.count_down();
                while (!stop.stop_requested()) std::this_thread::yield();
              }});
  }
  running.wait();
  pool.stop();
  EXPECT_EQ(begun, 2);
}

TEST(HelperPool, work_that_throws_harms_nobody) {
  HelperPool pool(2, 100);
  pool.start();
  for (int i = 0; i < 4; ++i) {
    pool.add({.client = "a", .run = [](std::stop_token) { throw std::runtime_error("broken"); }});
  }
  std::promise<void> done;
  pool.add({.client = "a", .run = [&](std::stop_token) { done.set_value(); }});
  done.get_future().wait();
}

}  // namespace
}  // namespace atl::http
