// When a deployment of an expert pack starts, and what its nodes have in RAM then.
#include "deployment/deployment.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include "base/child_process.h"
#include "tests/support/command.h"
#include "tests/support/golden.h"
#include "tests/support/synthetic_model.h"
#include "tests/support/temp_dir.h"

namespace atl::deployment {
namespace {

using ::testing::HasSubstr;

// A pack that all cases share.
class PackDeployment : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    dir_ = new test::TempDir;
    const test::CommandResult packed =
        test::run_command({ATOLL_BINARY, "pack", (test::tests_dir() / "models/tiny-fp8").string(),
                           "--out", pack().string()});
    ASSERT_EQ(packed.exit_code, 0) << packed.err;
  }
  static void TearDownTestSuite() { delete dir_; }
  static std::filesystem::path pack() { return *dir_ / "pack"; }
  static DeploymentOptions options(int nodes) {
    DeploymentOptions options;
    options.model_dir = pack();
    options.nodes = nodes;
    options.threads = 1;
    options.cache_tokens = 256;
    options.rows_max = 16;
    options.node_program = ATOLL_BINARY;
    return options;
  }

  static inline test::TempDir* dir_ = nullptr;
};

// 5 layers of 32 experts of 4 tiles.
constexpr uint64_t kAllTiles = 5 * 32 * 4;

// 100 MB of experts and hardly anything else, so that nodes are ready long before they are warm.
TEST(LargePackDeployment, is_warm_when_every_expert_was_read_once) {
  const test::TempDir dir;
  test::write_small_model(dir / "model", 1024, 4096);
  const test::CommandResult packed = test::run_command(
      {ATOLL_BINARY, "pack", (dir / "model").string(), "--out", (dir / "pack").string()});
  ASSERT_EQ(packed.exit_code, 0) << packed.err;
  for (const int nodes : {0, 2}) {
    DeploymentOptions options;
    options.model_dir = dir / "pack";
    options.nodes = nodes;
    options.threads = 1;
    options.cache_tokens = 64;
    options.rows_max = 16;
    options.node_program = ATOLL_BINARY;
    Deployment deployment(options);
    deployment.wait_until_warm();
    uint64_t used = 0, read = 0;
    for (const Deployment::NodeReport& node : deployment.node_reports()) {
      const ExpertCacheStats& cache = node.stats.cache;
      used += cache.slots_used;
      read += cache.bytes_read;
      EXPECT_EQ(cache.misses, 0u);
      EXPECT_EQ(cache.bytes_read, cache.slots_used * cache.slot_bytes) << nodes;
    }
    EXPECT_EQ(used, 8u * 32) << nodes;  // experts, tiles of each
    deployment.wait_until_warm();       // stays so
    for (const Deployment::NodeReport& node : deployment.node_reports()) {
      read -= node.stats.cache.bytes_read;
    }
    EXPECT_EQ(read, 0u);
  }
}

// Logits of two sequences over some steps, and the counts of the node with the most misses.
struct Outcome {
  std::vector<float> logits;
  ExpertCacheStats cache;
  coordinator::HintStats hints;
};

Outcome decode(const DeploymentOptions& options) {
  Deployment deployment(options);
  deployment.wait_until_warm();
  Outcome outcome;
  coordinator::Sequence sequences[2];
  for (int32_t at = 0; at < 20; ++at) {
    const std::vector<int32_t> tokens[2] = {{(at * 977) % 3328}, {(at * 389 + 5) % 3328}};
    const coordinator::SequenceRows rows[2] = {
        {&sequences[0], tokens[0], coordinator::WantLogits::kLast},
        {&sequences[1], tokens[1], coordinator::WantLogits::kLast}};
    std::optional<Error> errors[2];
    const Status status = deployment.engine().step(
        rows,
        [&](size_t, size_t, std::span<const float> row) {
          outcome.logits.insert(outcome.logits.end(), row.begin(), row.end());
        },
        errors);
    EXPECT_TRUE(status.ok()) << status.error().message;
    EXPECT_FALSE(errors[0] || errors[1]);
  }
  for (const Deployment::NodeReport& node : deployment.node_reports()) {
    if (node.stats.cache.misses >= outcome.cache.misses) outcome.cache = node.stats.cache;
  }
  outcome.hints = deployment.engine().hint_stats();
  return outcome;
}

// RAM of a node for this share of the tiles that it owns but two at least, beside what it needs for
// a step.
uint64_t budget_for(const DeploymentOptions& options, double share) {
  const auto model = model::open(options.model_dir);
  expert_node::NodeOptions node;
  node.rows_max = static_cast<uint32_t>(options.rows_max);
  const uint64_t reserved = expert_node::node_buffer_bytes(node, model->catalog, 1);
  const auto tiles = open_tiles(*model, model->settle(options.numerics), {});
  const uint64_t of_node = kAllTiles * tiles->layout(0).bytes / std::max(1, options.nodes);
  const uint64_t two = 2 * tiles->layout(0).bytes;
  return reserved + tiles->ram_bytes_min() - two +
         std::max(two, static_cast<uint64_t>(share * static_cast<double>(of_node)));
}

TEST_F(PackDeployment, gives_the_same_bits_within_any_budget) {
  const Outcome all = decode(options(0));
  EXPECT_EQ(all.cache.misses, 0u);
  for (const int nodes : {0, 2}) {
    const auto owned = static_cast<double>(kAllTiles) / std::max(1, nodes);
    for (const double share : {0.25, 0.03, 0.0}) {
      for (const Evict evict : {Evict::kLru, Evict::kLfu}) {
        DeploymentOptions cold = options(nodes);
        cold.memory.ram_budget = budget_for(cold, share);
        cold.memory.evict = evict;
        const Outcome outcome = decode(cold);
        EXPECT_EQ(outcome.logits, all.logits) << nodes << " nodes, share " << share;
        EXPECT_GT(outcome.cache.misses, 0u);
        EXPECT_GT(outcome.cache.evictions, 0u);
        EXPECT_LE(static_cast<double>(outcome.cache.slots), std::max(2.0, share * owned));
        EXPECT_GE(static_cast<double>(outcome.cache.slots), 0.8 * share * owned);
      }
    }
  }
}

TEST_F(PackDeployment, gives_the_same_bits_with_experts_read_ahead) {
  const Outcome all = decode(options(0));
  for (const int nodes : {0, 2}) {
    DeploymentOptions cold = options(nodes);
    cold.memory.ram_budget = budget_for(cold, 0.25);
    cold.prefetch = coordinator::Prefetch::kNextLayer;
    const Outcome outcome = decode(cold);
    EXPECT_EQ(outcome.logits, all.logits) << nodes;
    EXPECT_GT(outcome.cache.hinted, 0u) << nodes;
    EXPECT_GT(outcome.cache.hints_used, 0u) << nodes;
    EXPECT_GT(outcome.hints.recall(), 0.4) << nodes;
  }
}

TEST_F(PackDeployment, reads_from_two_packs_and_by_threads_with_the_same_bits) {
  const Outcome all = decode(options(0));
  std::filesystem::copy(pack(), *dir_ / "stripe");
  for (const int nodes : {0, 2}) {
    DeploymentOptions striped = options(nodes);
    striped.memory.ram_budget = budget_for(striped, 0.25);
    striped.memory.stripes = {*dir_ / "stripe"};
    EXPECT_EQ(decode(striped).logits, all.logits) << nodes;
    striped.memory.io = storage::PackIo::kThreads;
    EXPECT_EQ(decode(striped).logits, all.logits) << nodes;
  }
}

template <typename Change>
std::string start_error(DeploymentOptions options, Change change) {
  change(options);
  try {
    Deployment deployment(options);
  } catch (const LoadError& error) {
    return error.what();
  }
  return "no error";
}

TEST_F(PackDeployment, reads_to_registered_memory_with_the_same_bits) {
  const Outcome all = decode(options(0));
  for (const int nodes : {0, 2}) {
    DeploymentOptions registered = options(nodes);
    registered.memory.ram_budget = budget_for(registered, 0.25);
    registered.memory.io = storage::PackIo::kRegistered;
    const std::string error = start_error(registered, [](DeploymentOptions&) {});
    if (error.find("regist") != std::string::npos) GTEST_SKIP() << error;
    const Outcome outcome = decode(registered);
    EXPECT_EQ(outcome.logits, all.logits) << nodes;
    EXPECT_GT(outcome.cache.misses, 0u);
  }
}

TEST_F(PackDeployment, refuses_more_memory_than_there_is_unless_it_is_forced) {
  const auto bound =
      topology::tightest(topology::memory_bounds(), topology::MemoryBound::Of::kMachine);
  ASSERT_TRUE(bound);
  for (const int nodes : {0, 2}) {
    DeploymentOptions large = options(nodes);
    const auto model = model::open(large.model_dir);
    const uint64_t block = kv_cache_bytes(*model, model->settle({}), 0);
    large.cache_tokens =
        static_cast<int64_t>(bound->limit_bytes / block * 2) * kernels::kAttentionBlock;
    EXPECT_THAT(start_error(large, [](DeploymentOptions&) {}),
                AllOf(HasSubstr("not enough memory: "), HasSubstr(bound->name)));
    EXPECT_EQ(start_error(large, [](DeploymentOptions& o) { o.force = true; }), "no error");
  }
}

TEST_F(PackDeployment, refuses_a_budget_that_is_too_small_and_names_the_least) {
  const auto budget = [](uint64_t bytes) {
    return [bytes](DeploymentOptions& options) { options.memory.ram_budget = bytes; };
  };
  for (const int nodes : {0, 2}) {  // before a node is started
    EXPECT_THAT(start_error(options(nodes), budget(1000)),
                testing::StartsWith("RAM budget of 1000 B (--ram-budget, or `ram` of the cluster "
                                    "file): expected at least "));
  }
  const uint64_t least = budget_for(options(0), 0);
  EXPECT_THAT(start_error(options(0), budget(least - 1)), HasSubstr("--ram-budget"));
  EXPECT_EQ(start_error(options(0), budget(least)), "no error");
}

TEST_F(PackDeployment, refuses_stripes_that_do_not_belong_to_it) {
  const std::filesystem::path checkpoint = test::tests_dir() / "models/tiny-fp8";
  EXPECT_THAT(
      start_error(options(0), [&](DeploymentOptions& o) { o.memory.stripes = {checkpoint}; }),
      HasSubstr("tiny-fp8"));
  EXPECT_THAT(start_error(options(0),
                          [&](DeploymentOptions& o) {
                            o.model_dir = checkpoint;
                            o.memory.stripes = {pack()};
                          }),
              HasSubstr("not an expert pack: --stripe adds packs to a pack"));
}

TEST_F(PackDeployment, saves_what_was_used_and_begins_with_it) {
  for (const int nodes : {0, 2}) {
    const std::filesystem::path file = *dir_ / ("usage" + std::to_string(nodes));
    DeploymentOptions cold = options(nodes);
    cold.memory.ram_budget = budget_for(cold, 0.25);
    cold.memory.usage_file = file;
    const Outcome first = decode(cold);
    const std::vector<std::string> suffixes =
        nodes == 0 ? std::vector<std::string>{""} : std::vector<std::string>{".n0", ".n1"};
    for (const std::string& suffix : suffixes) {
      EXPECT_TRUE(std::filesystem::exists(file.string() + suffix)) << file << suffix;
    }
    const Outcome second = decode(cold);  // the same tokens: its experts are there from the start
    EXPECT_EQ(second.logits, first.logits);
    EXPECT_LT(second.cache.misses, first.cache.misses) << nodes;
  }
}

TEST_F(PackDeployment, refuses_a_usage_file_of_another_model) {
  const std::filesystem::path file = *dir_ / "usage-of-another";
  test::write_file(file, R"({"atoll_expert_usage": 1, "checkpoint": "other", "layers": []})");
  EXPECT_THAT(start_error(options(0), [&](DeploymentOptions& o) { o.memory.usage_file = file; }),
              HasSubstr("usage-of-another"));
}

TEST_F(PackDeployment, names_a_child_node_that_ends_at_once_and_how_it_ended) {
  EXPECT_THAT(start_error(options(2), [](DeploymentOptions& o) { o.node_program = "/bin/false"; }),
              HasSubstr("expert node n0: it did not start: exit code 1"));
}

TEST_F(PackDeployment, a_node_takes_sigterm_and_sigint_as_a_request_to_stop) {
  for (const int signal : {SIGTERM, SIGINT}) {
    ChildOptions child;
    child.argv = {ATOLL_BINARY, "node", pack().string(), "--listen", "127.0.0.1:0"};
    child.pipe_stdout = true;
    ChildProcess node = ChildProcess::start(child);
    const auto line = node.read_line(std::chrono::seconds(30));
    ASSERT_TRUE(line) << line.error().message;
    node.send_signal(signal);
    const auto end = node.wait(std::chrono::seconds(30));
    ASSERT_TRUE(end) << end.error().message;
    EXPECT_EQ(*end, "exit code 0");
  }
}

}  // namespace
}  // namespace atl::deployment
