#include "deployment/memory_check.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/units.h"
#include "deployment/deployment.h"
#include "tests/support/golden.h"
#include "tests/support/synthetic_model.h"
#include "tests/support/temp_dir.h"

namespace atl::deployment {
namespace {

using kernels::WeightFormat;
using ::testing::HasSubstr;
using ::testing::Not;
using topology::MemoryBound;
using Of = MemoryBound::Of;

std::vector<MemoryBound> machine_with(uint64_t free_bytes) {
  return {{Of::kMachine, "MemAvailable", 2 * free_bytes, free_bytes}};
}
std::vector<MemoryBound> process_with(uint64_t free_bytes) {
  return {{Of::kMachine, "MemAvailable", UINT64_MAX, UINT64_MAX},
          {Of::kProcess, "ulimit -v", 2 * free_bytes, free_bytes}};
}

// 8 layers' worth of nothing but experts: 100 MB of them in FP8, hardly anything else.
class MemoryCheck : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    dir_ = new test::TempDir;
    test::write_small_model(dir_->path(), 1024, 4096);
    model_ = model::open(dir_->path());
  }
  static void TearDownTestSuite() {
    model_.reset();
    delete dir_;
  }
  static MemoryRequest request(int nodes) {
    MemoryRequest request;
    request.numerics = model_->settle({});
    request.placement = topology::equal_placement(
        kernels::num_tiles(model_->config.moe_intermediate_size), std::max(1, nodes));
    request.local_node = nodes == 0;
    request.rows_max = 16;
    request.cache_tokens = 4096;
    return request;
  }
  static std::string shortage(const MemoryRequest& request,
                              const std::vector<MemoryBound>& bounds) {
    return memory_shortage(*model_, request, {"--kv-cache", ""}, bounds).value_or("fits");
  }

  static inline test::TempDir* dir_ = nullptr;
  static inline std::unique_ptr<model::OpenedModel> model_;
};

TEST_F(MemoryCheck, fits_to_the_byte) {
  for (const int nodes : {0, 3}) {
    const MemoryRequest asked = request(nodes);
    const uint64_t needed = memory_need(*model_, asked).sum().total();
    EXPECT_EQ(shortage(asked, machine_with(needed)), "fits");
    EXPECT_THAT(shortage(asked, machine_with(needed - 1)),
                HasSubstr("not enough memory: " + format_bytes(needed) + " are needed (experts "));
    EXPECT_EQ(shortage(asked, {}), "fits") << "nothing is known";
  }
}

TEST_F(MemoryCheck, all_processes_share_the_machine_and_each_has_its_own_ulimit) {
  const MemoryRequest asked = request(4);
  const DeploymentNeed need = memory_need(*model_, asked);
  ASSERT_EQ(need.nodes.size(), 4u);
  const uint64_t largest = need.nodes[0].total();
  ASSERT_GT(largest, need.coordinator.total());
  EXPECT_GT(need.sum().total(), 4 * largest);
  EXPECT_THAT(shortage(asked, machine_with(4 * largest)), HasSubstr(", in 5 processes), "));
  EXPECT_EQ(shortage(asked, process_with(largest)), "fits");
  EXPECT_THAT(shortage(asked, process_with(largest - 1)),
              HasSubstr("not enough memory for the process of node n0: "));
}

TEST_F(MemoryCheck, names_its_parts_and_the_bound_that_is_broken) {
  MemoryRequest asked = request(0);
  const MemoryNeed need = memory_need(*model_, asked).coordinator;
  std::vector<MemoryBound> bounds = machine_with(kGiB);
  bounds.push_back({Of::kMachine, "memory.max of cgroup /a", 64 * kMiB, 5 * kMiB});
  EXPECT_THAT(
      shortage(asked, bounds),
      HasSubstr(fmt::format("(experts {}, other weights {}, KV cache {}, buffers and program {}), "
                            "5.00 MiB are free (memory.max of cgroup /a of 64.0 MiB); nothing "
                            "smaller fits either",
                            format_bytes(need.experts), format_bytes(need.weights),
                            format_bytes(need.kv_cache), format_bytes(need.buffers))));
}

// What is offered is tried: with the sizes of the message it does fit.
TEST_F(MemoryCheck, offers_int4_a_budget_and_a_smaller_cache_that_fit) {
  for (const int nodes : {0, 3}) {
    MemoryRequest asked = request(nodes);
    const uint64_t needed = memory_need(*model_, asked).sum().total();
    const std::vector<MemoryBound> bounds = machine_with(needed - 20 * kMiB);
    const std::string text = shortage(asked, bounds);
    EXPECT_THAT(text, HasSubstr("what fits: --format int4, or --ram-budget "));
    EXPECT_THAT(text, Not(HasSubstr("--kv-cache"))) << "it is smaller than what is missing";

    MemoryRequest int4 = asked;
    int4.numerics.format = WeightFormat::kInt4;
    EXPECT_EQ(shortage(int4, bounds), "fits");
    MemoryRequest budget = asked;
    const size_t at = text.find("--ram-budget ") + 13;
    budget.memory.ram_budget = *parse_bytes(text.substr(at, text.find(' ', at) - at));
    EXPECT_EQ(shortage(budget, bounds), "fits") << text;
    budget.memory.ram_budget = *budget.memory.ram_budget + 2 * kMiB;
    EXPECT_NE(shortage(budget, bounds), "fits") << "the offer wastes memory: " << text;

    asked.cache_tokens = int64_t{1} << 30;
    const std::string large = shortage(asked, machine_with(needed));
    const size_t cache = large.find("what fits: --kv-cache ");
    ASSERT_NE(cache, std::string::npos) << large;
    const uint64_t bytes = *parse_bytes(
        large.substr(cache + 22, std::min(large.find(',', cache), large.size()) - cache - 22));
    EXPECT_LE(bytes, kv_cache_bytes(*model_, asked.numerics, 4096));
    EXPECT_GE(bytes + 2 * kMiB, kv_cache_bytes(*model_, asked.numerics, 4096));
  }
}

TEST_F(MemoryCheck, a_budget_that_is_too_large_is_answered_with_one_that_fits) {
  MemoryRequest asked = request(2);
  asked.memory.ram_budget = kGiB;  // more than all experts
  const uint64_t needed = memory_need(*model_, asked).sum().total();
  EXPECT_THAT(shortage(asked, machine_with(needed - 40 * kMiB)), HasSubstr("--ram-budget "));
}

TEST_F(MemoryCheck, says_in_words_what_makes_the_cache_smaller_where_no_option_takes_bytes) {
  MemoryRequest asked = request(0);
  asked.cache_tokens = int64_t{1} << 30;
  const auto text = memory_shortage(*model_, asked, {"", "fewer --max-tokens"}, machine_with(kGiB));
  EXPECT_THAT(text.value_or(""), HasSubstr("what fits: fewer --max-tokens"));
}

TEST(MemoryNeed, is_what_the_coordinator_holds_in_every_format) {
  for (const char* name : {"tiny-fp8", "tiny-bf16", "rand-v2", "rand-ragged"}) {
    for (const auto format : {std::optional<WeightFormat>(), std::optional(WeightFormat::kInt4),
                              std::optional(WeightFormat::kF32)}) {
      SCOPED_TRACE(fmt::format("{} {}", name, format ? to_string(*format) : "auto"));
      DeploymentOptions options;
      options.model_dir = test::tests_dir() / "models" / name;
      options.numerics.dense_format = format;
      options.threads = 1;
      options.cache_tokens = 256;
      options.rows_max = 16;
      Deployment deployment(options);
      const auto model = model::open(options.model_dir);
      MemoryRequest request;
      request.numerics = model->settle(options.numerics);
      request.placement =
          topology::equal_placement(kernels::num_tiles(model->config.moe_intermediate_size), 1);
      request.rows_max = 16;
      request.cache_tokens = 256;
      const MemoryNeed need = memory_need(*model, request).coordinator;
      EXPECT_EQ(need.weights, deployment.engine().weights().bytes());
      const coordinator::KvCache& cache = deployment.engine().cache();
      EXPECT_EQ(need.kv_cache, static_cast<uint64_t>(cache.max_blocks()) *
                                   coordinator::KvCache::block_bytes(
                                       model->config.num_hidden_layers, cache.shape()));
      const ExpertCacheStats experts = deployment.node_reports()[0].stats.cache;
      EXPECT_GE(need.experts, experts.slots * experts.slot_bytes);
    }
  }
}

}  // namespace
}  // namespace atl::deployment
