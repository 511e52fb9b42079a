// Thousands of clusters, each from a seed, in which things go wrong (tests/sim/scenario.h).
//
//   sim_cluster_test                     as ctest runs it: kShards x kSeedsPerShard seeds
//   sim_cluster_test --seed N --verbose  one of them, told event by event
//   sim_cluster_test --seeds A..B        those from A to B - 1, with what they went through
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include "base/log.h"
#include "tests/sim/scenario.h"

namespace atl::sim {
namespace {

constexpr uint64_t kShards = 4;
constexpr uint64_t kSeedsPerShard = 2500;
// Failures that are told before the rest is left.
constexpr int kFailuresMax = 5;

char replay[200];

void on_abort(int) { (void)!::write(STDERR_FILENO, replay, std::strlen(replay)); }

// What finds the seed again if a CHECK ends this process, too.
void name_seed(uint64_t seed) {
  std::snprintf(
      replay, sizeof(replay),
      "failed: seed %llu; to replay it: build/tests/sim/sim_cluster_test --seed %llu --verbose\n",
      static_cast<unsigned long long>(seed), static_cast<unsigned long long>(seed));
}

// Seeds [begin, end); how many failed.
int run_seeds(uint64_t begin, uint64_t end, bool verbose) {
  const auto start = std::chrono::steady_clock::now();
  Outcome sum;
  int failures = 0;
  uint64_t slowest = begin;
  uint64_t seed = begin;
  for (; seed < end && failures < kFailuresMax; ++seed) {
    name_seed(seed);
    const Outcome outcome = run_scenario(seed, verbose);
    sum += outcome;
    if (outcome.recovery_s > sum.recovery_s) {
      sum.recovery_s = outcome.recovery_s;
      slowest = seed;
    }
    if (verbose)
      std::fprintf(stderr, "seed %llu: %s\n", static_cast<unsigned long long>(seed),
                   outcome.draw.c_str());
    if (outcome.failure.empty()) continue;
    ++failures;
    std::fprintf(stderr, "%s\n  %s\n%s", outcome.draw.c_str(), outcome.failure.c_str(), replay);
  }
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
  fmt::print(
      "{} seeds in {:.1f} s: {} events, {} requests, {} tokens, {} errors; {} faults, {} "
      "coordinators again, {} losses, {} placements, {} preempted; messages: {} lost, {} doubled, "
      "{} held; reads: {} "
      "failed, {} flipped; longest recovery {:.1f} s (seed {})\n",
      seed - begin, took.count(), sum.events, sum.requests, sum.tokens, sum.errors, sum.faults,
      sum.restarts, sum.losses, sum.replans, sum.preempted, sum.messages_lost, sum.messages_doubled,
      sum.messages_held, sum.reads_failed, sum.reads_flipped, sum.recovery_s, slowest);
  return failures;
}

class Sim : public testing::TestWithParam<uint64_t> {};

TEST_P(Sim, clusters_of_seeds_come_through) {
  const uint64_t begin = GetParam() * kSeedsPerShard;
  EXPECT_EQ(run_seeds(begin, begin + kSeedsPerShard, false), 0);
}
INSTANTIATE_TEST_SUITE_P(shards, Sim, testing::Range<uint64_t>(0, kShards));

TEST(Sim, a_seed_gives_the_same_world_again) {
  for (uint64_t seed = 0; seed < 50; ++seed) {
    name_seed(seed);
    const Outcome first = run_scenario(seed, false), second = run_scenario(seed, false);
    EXPECT_EQ(first.fingerprint, second.fingerprint) << "seed " << seed;
    EXPECT_EQ(first.tokens, second.tokens) << "seed " << seed;
  }
}

}  // namespace
}  // namespace atl::sim

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  signal(SIGABRT, atl::sim::on_abort);
  signal(SIGSEGV, [](int) {
    atl::sim::on_abort(0);
    std::_Exit(139);
  });
  bool verbose = false;
  uint64_t begin = 0, end = 0;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    if (argument == "--verbose") {
      verbose = true;
    } else if (argument == "--seed" && i + 1 < argc) {
      begin = std::strtoull(argv[++i], nullptr, 10);
      end = begin + 1;
    } else if (argument == "--seeds" && i + 1 < argc) {
      char* rest = nullptr;
      begin = std::strtoull(argv[++i], &rest, 10);
      end = std::strtoull(rest + std::strspn(rest, "."), nullptr, 10);
    } else {
      std::fprintf(stderr,
                   "sim_cluster_test: unknown argument %s; --seed N, --seeds A..B, --verbose\n",
                   argv[i]);
      return 2;
    }
  }
  atl::init_log(verbose ? atl::LogLevel::kDebug : atl::LogLevel::kOff, "sim");
  return end > begin ? atl::sim::run_seeds(begin, end, verbose) > 0 : RUN_ALL_TESTS();
}
