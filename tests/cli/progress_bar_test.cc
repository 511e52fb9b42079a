#include "cli/progress_bar.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <string>
#include <thread>
#include <vector>

#include "base/units.h"

namespace atl::cli {
namespace {

using namespace std::chrono_literals;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

struct World {
  ManualClock clock;
  std::vector<std::string> draws;
  ProgressBar::Write write = [this](std::string_view text) { draws.emplace_back(text); };
};

constexpr ProgressStyle kPlain{.terminal = false, .colour = false, .columns = 80};
constexpr ProgressStyle kTerminal{.terminal = true, .colour = false, .columns = 100};

TEST(ProgressBar, tells_share_bytes_rate_and_time_left_on_one_redrawn_line) {
  World world;
  ProgressBar bar("loading experts", kTerminal, world.clock, world.write);
  bar.start(100 * kMiB);
  world.clock.advance(1s);
  bar.advance(25 * kMiB);
  ASSERT_EQ(world.draws.size(), 1u);
  EXPECT_EQ(world.draws[0],
            "\rloading experts   25 % [#####---------------] 25.0 MiB of 100 MiB, 26.2 MB/s, "
            "ETA 3.00 s\x1b[K");
}

TEST(ProgressBar, shows_its_parts_below_and_goes_back_up) {
  World world;
  ProgressBar bar("loading", kTerminal, world.clock, world.write);
  bar.start(100 * kMiB);
  bar.set_parts({{"n0", 10 * kMiB, 50 * kMiB}, {"n1", 15 * kMiB, 50 * kMiB}});
  world.clock.advance(1s);
  bar.advance(25 * kMiB);
  bar.finish();
  EXPECT_THAT(world.draws,
              ElementsAre("\rloading   25 % [#####---------------] 25.0 MiB of 100 MiB, 26.2 MB/s, "
                          "ETA 3.00 s\x1b[K"
                          "\n     n0   20 % [####----------------] 10.0 MiB of 50.0 MiB\x1b[K"
                          "\n     n1   30 % [######--------------] 15.0 MiB of 50.0 MiB\x1b[K"
                          "\x1b[2A",
                          HasSubstr("not finished in 1.00 s, 26.2 MB/s\x1b[J\n")));
}

TEST(ProgressBar, shows_the_least_advanced_of_many_parts) {
  World world;
  ProgressBar bar("loading", kTerminal, world.clock, world.write);
  bar.start(1000);
  std::vector<ProgressBar::Part> parts;
  for (uint64_t n = 0; n < 12; ++n) parts.push_back({"n" + std::to_string(n), 100 - n, 100});
  bar.set_parts(parts);
  world.clock.advance(1s);
  bar.advance(1);
  ASSERT_EQ(world.draws.size(), 1u);
  EXPECT_THAT(world.draws[0], Not(HasSubstr("n3 ")));
  EXPECT_THAT(world.draws[0], HasSubstr("\n     n4   96 % "));
  EXPECT_THAT(world.draws[0], HasSubstr("\n    n11   89 % "));
  EXPECT_THAT(world.draws[0], testing::EndsWith("\x1b[8A"));
}

TEST(ProgressBar, names_the_shares_of_its_parts_in_plain_lines) {
  World world;
  ProgressBar bar("loading", kPlain, world.clock, world.write);
  bar.start(1000);
  bar.set_parts({{"n0", 10, 500}, {"n1", 495, 500}});
  world.clock.advance(5s);
  bar.advance(505);
  ASSERT_EQ(world.draws.size(), 1u);
  EXPECT_THAT(world.draws[0], testing::EndsWith("; n0 2 %, n1 99 %\n"));
}

TEST(ProgressBar, redraws_at_most_every_100_ms) {
  World world;
  ProgressBar bar("x", kTerminal, world.clock, world.write);
  bar.start(1000);
  world.clock.advance(99ms);
  bar.advance(1);
  EXPECT_THAT(world.draws, IsEmpty());
  world.clock.advance(1ms);
  bar.advance(1);
  bar.advance(1);
  EXPECT_EQ(world.draws.size(), 1u);
}

TEST(ProgressBar, writes_a_plain_line_every_5_s_and_a_last_one_without_a_terminal) {
  World world;
  ProgressBar bar("x", kPlain, world.clock, world.write);
  bar.start(1000);
  for (int second = 1; second <= 10; ++second) {
    world.clock.advance(1s);
    bar.advance(100);
  }
  EXPECT_THAT(world.draws,
              ElementsAre("x   50 % [##########----------] 500 B of 1000 B, 100 B/s, ETA 5.00 s\n",
                          "x  1000 B in 10.0 s, 100 B/s\n"));
}

TEST(ProgressBar, a_short_load_without_a_terminal_is_one_line_without_escapes) {
  World world;
  ProgressBar bar("x", kPlain, world.clock, world.write);
  bar.start(10);
  world.clock.advance(1s);
  bar.advance(10);
  bar.finish();
  ASSERT_EQ(world.draws.size(), 1u);
  EXPECT_THAT(world.draws[0], Not(HasSubstr("\x1b")));
  EXPECT_THAT(world.draws[0], Not(HasSubstr("\r")));
}

TEST(ProgressBar, says_what_is_missing_when_it_ends_early) {
  World world;
  {
    ProgressBar bar("x", kPlain, world.clock, world.write);
    bar.start(1000);
    world.clock.advance(1s);
    bar.advance(400);
  }
  EXPECT_THAT(world.draws, ElementsAre("x  400 B of 1000 B, not finished in 1.00 s, 400 B/s\n"));
}

TEST(ProgressBar, is_silent_when_nothing_was_started) {
  World world;
  {
    ProgressBar bar("x", kPlain, world.clock, world.write);
    bar.advance(5);
  }
  EXPECT_THAT(world.draws, IsEmpty());
}

TEST(ProgressBar, never_exceeds_the_width_of_the_terminal) {
  for (const int columns : {20, 40, 60, 79}) {
    World world;
    ProgressBar bar("loading experts", {true, false, columns}, world.clock, world.write);
    bar.start(100 * kGiB);
    world.clock.advance(1s);
    bar.advance(kGiB);
    ASSERT_EQ(world.draws.size(), 1u);
    EXPECT_LT(world.draws[0].size(), static_cast<size_t>(columns) + 4) << columns;  // \r and ESC [K
  }
}

TEST(ProgressBar, colours_only_where_asked) {
  for (const bool colour : {false, true}) {
    World world;
    ProgressBar bar("x", {true, colour, 100}, world.clock, world.write);
    bar.start(1000);
    world.clock.advance(1s);
    bar.advance(500);
    EXPECT_EQ(world.draws.at(0).find("\x1b[32m") != std::string::npos, colour);
  }
}

TEST(ProgressBar, counts_every_byte_of_many_threads_and_ends_once) {
  World world;
  ProgressBar bar("x", kPlain, world.clock, world.write);
  constexpr uint64_t kThreads = 4, kSteps = 10'000;
  bar.start(kThreads * kSteps);
  std::vector<std::thread> threads;
  for (uint64_t i = 0; i < kThreads; ++i) {
    threads.emplace_back([&bar] {
      for (uint64_t step = 0; step < kSteps; ++step) bar.advance(1);
    });
  }
  for (std::thread& thread : threads) thread.join();
  ASSERT_EQ(world.draws.size(), 1u);
  EXPECT_THAT(world.draws[0], HasSubstr("39.1 KiB in"));
}

}  // namespace
}  // namespace atl::cli
