// When a deployment of an expert pack starts, and what its nodes have in RAM then.
#include "cli/deployment.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/support/command.h"
#include "tests/support/golden.h"
#include "tests/support/temp_dir.h"

namespace atl::cli {
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
    options.chunk = 16;
    options.progress = false;
    options.node_program = ATOLL_BINARY;
    return options;
  }

  static inline test::TempDir* dir_ = nullptr;
};

// 5 layers of 32 experts of 4 tiles.
constexpr uint64_t kAllTiles = 5 * 32 * 4;

TEST_F(PackDeployment, is_warm_when_every_expert_was_read_once) {
  for (const int nodes : {0, 2}) {
    Deployment deployment(options(nodes));
    deployment.wait_until_warm();
    uint64_t used = 0, read = 0;
    for (const Deployment::NodeReport& node : deployment.node_reports()) {
      const ExpertCacheStats& cache = node.stats.cache;
      used += cache.slots_used;
      read += cache.bytes_read;
      EXPECT_EQ(cache.misses, 0u);
      EXPECT_EQ(cache.bytes_read, cache.slots_used * cache.slot_bytes) << nodes;
    }
    EXPECT_EQ(used, kAllTiles) << nodes;
    deployment.wait_until_warm();  // stays so
    for (const Deployment::NodeReport& node : deployment.node_reports()) {
      read -= node.stats.cache.bytes_read;
    }
    EXPECT_EQ(read, 0u);
  }
}

}  // namespace
}  // namespace atl::cli
