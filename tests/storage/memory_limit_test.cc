// Loading a checkpoint several times larger than the memory there is.
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <optional>

#include "base/units.h"
#include "model/config.h"
#include "model/synthetic.h"
#include "model/weights_map.h"
#include "storage/checkpoint/checkpoint.h"
#include "storage/tiles/tile_store.h"
#include "tests/support/temp_dir.h"

namespace atl::storage {
namespace {

using test::TempDir;

constexpr int kThreads = 2;
constexpr uint64_t kWindowBytes = 1 * kMiB;
// Program, stacks, tensor table and what one read has in the page cache at a time.
constexpr uint64_t kOverheadBytes = 32 * kMiB;

bool write_value(const std::filesystem::path& file, const std::string& value) {
  std::ofstream out(file);
  out << value;
  return static_cast<bool>(out.flush());
}

// A memory cgroup of this test's own, version 1 or 2; limits page cache as well as heap.
class MemoryGroup {
 public:
  MemoryGroup() {
    v2_ = std::filesystem::exists("/sys/fs/cgroup/cgroup.controllers");
    const std::filesystem::path root = v2_ ? "/sys/fs/cgroup" : "/sys/fs/cgroup/memory";
    path_ = root / fmt::format("atoll-test-{}", getpid());
    if (mkdir(path_.c_str(), 0755) != 0) {
      reason_ = fmt::format("cannot make {}: {}", path_.string(), std::strerror(errno));
      path_.clear();
    } else if (!std::filesystem::exists(path_ / limit_file())) {
      reason_ = fmt::format("no memory controller in {}", path_.string());
    }
  }
  ~MemoryGroup() {
    if (!path_.empty()) rmdir(path_.c_str());
  }
  MemoryGroup(const MemoryGroup&) = delete;
  MemoryGroup& operator=(const MemoryGroup&) = delete;

  // Why there is none; empty if there is one.
  const std::string& reason() const { return reason_; }

  // Lets nothing of an earlier process count.
  bool set_limit(uint64_t bytes) const {
    if (!v2_) {
      (void)write_value(path_ / "memory.force_empty", "0");
      (void)write_value(path_ / "memory.max_usage_in_bytes", "0");
      (void)write_value(path_ / "memory.swappiness", "0");
    } else {
      (void)write_value(path_ / "memory.swap.max", "0");
    }
    return write_value(path_ / limit_file(), fmt::format("{}", bytes));
  }
  uint64_t peak() const {
    uint64_t bytes = 0;
    std::ifstream(path_ / (v2_ ? "memory.peak" : "memory.max_usage_in_bytes")) >> bytes;
    return bytes;
  }
  void add_this_process() const {
    if (!write_value(path_ / "cgroup.procs", fmt::format("{}", getpid()))) _exit(3);
  }

 private:
  const char* limit_file() const { return v2_ ? "memory.max" : "memory.limit_in_bytes"; }

  bool v2_ = false;
  std::filesystem::path path_;
  std::string reason_;
};

// Runs load_tiles in the group; its wait status.
int run_load_tiles(const MemoryGroup& group, const std::filesystem::path& model_dir, int first_tile,
                   int last_tile) {
  const std::vector<std::string> texts = {ATOLL_LOAD_TILES,           model_dir.string(),
                                          std::to_string(first_tile), std::to_string(last_tile),
                                          std::to_string(kThreads),   std::to_string(kWindowBytes)};
  std::vector<char*> args;
  for (const std::string& text : texts) args.push_back(const_cast<char*>(text.c_str()));
  args.push_back(nullptr);
  const pid_t child = fork();
  if (child == 0) {
    group.add_this_process();
    execv(args[0], args.data());
    _exit(4);
  }
  int status = 0;
  while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  return status;
}

// 96 experts of 16 tiles: 302 MB of FP8, of which a node with one tile keeps 20 MB.
model::SyntheticSpec large_spec() {
  model::SyntheticSpec spec;
  model::ModelConfig& c = spec.config;
  c.vocab_size = 64;
  c.hidden_size = 512;
  c.intermediate_size = 512;
  c.moe_intermediate_size = 2048;
  c.num_hidden_layers = 2;
  c.num_attention_heads = 2;
  c.kv_lora_rank = 64;
  c.qk_nope_head_dim = 32;
  c.qk_rope_head_dim = 16;
  c.v_head_dim = 32;
  c.n_routed_experts = 48;
  c.num_experts_per_tok = 4;
  c.max_position_embeddings = 128;
  spec.shard_bytes = 64 * kMiB;
  spec.num_threads = 2;
  return spec;
}

TEST(MemoryLimit, a_node_loads_a_checkpoint_several_times_its_memory) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "a sanitizer's own memory would count";
#endif
  const MemoryGroup group;
  if (!group.reason().empty()) GTEST_SKIP() << group.reason();
  TempDir dir;
  write_synthetic_checkpoint(dir.path(), large_spec());

  const model::ModelConfig config = model::load_config(dir.path());
  const Checkpoint checkpoint = Checkpoint::open(dir.path());
  const ExpertCatalog catalog = model::map_experts(config, checkpoint);
  const TileStore store(checkpoint, catalog);
  uint64_t checkpoint_bytes = 0;
  for (const Shard& shard : checkpoint.shards()) checkpoint_bytes += shard.file_bytes;
  const uint64_t bound =
      store.resident_bytes(std::vector<int>{5}) + kThreads * kWindowBytes + kOverheadBytes;
  ASSERT_GT(checkpoint_bytes, 5 * bound);

  // Under the limit it works.
  ASSERT_TRUE(group.set_limit(bound));
  const int status = run_load_tiles(group, dir.path(), 5, 5);
  ASSERT_TRUE(WIFEXITED(status)) << "signal " << WTERMSIG(status);
  ASSERT_EQ(WEXITSTATUS(status), 0);
  const uint64_t limited_peak = group.peak();

  // With room to spare it uses no more: neither heap nor page cache.
  ASSERT_TRUE(group.set_limit(uint64_t{4} << 30));
  ASSERT_EQ(run_load_tiles(group, dir.path(), 5, 5), 0);
  const uint64_t free_peak = group.peak();
  EXPECT_LE(free_peak, bound);  // 0 on a kernel without memory.peak

  // The limit is a real one: all 16 tiles do not fit.
  ASSERT_TRUE(group.set_limit(bound));
  const int all_tiles = run_load_tiles(group, dir.path(), 0, 15);
  ASSERT_TRUE(WIFSIGNALED(all_tiles));
  EXPECT_EQ(WTERMSIG(all_tiles), SIGKILL);

  std::printf("checkpoint %s, limit %s, peak %s under the limit, %s without\n",
              format_bytes(checkpoint_bytes).c_str(), format_bytes(bound).c_str(),
              format_bytes(limited_peak).c_str(), format_bytes(free_peak).c_str());
}

}  // namespace
}  // namespace atl::storage
