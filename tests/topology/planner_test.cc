// The plan for machines that nobody has here: shares, refusals, advice. What it costs is compared
// with trying everything.
#include "topology/planner/planner.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <numeric>

#include "base/rng.h"
#include "base/units.h"

namespace atl::topology {
namespace {

using ::testing::AnyOf;
using ::testing::Contains;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

// DeepSeek-V3's sizes in FP8, with fewer tiles where everything is tried.
ModelShape v3(int num_tiles = 16) {
  ModelShape model;
  const auto fp8 = [](double weights) { return Work{weights, weights * 1.0002, Kernel::kFp8}; };
  model.dense_layers = 3;
  model.moe_layers = 58;
  model.projections = fp8(1536.0 * (7168 + 24576) + 576 * 7168 + 7168 * 16384);
  model.absorbed = fp8(512.0 * 32768);
  model.router = {256 * 7168, 256 * 7168 * 2, Kernel::kBf16};
  model.shared = model.expert = fp8(3.0 * 7168 * 2048);
  model.dense_ffn = fp8(3.0 * 7168 * 18432);
  model.head = {7168.0 * 129280, 7168.0 * 129280 * 2, Kernel::kBf16};
  model.heads = 128;
  model.kv_lora_rank = 512;
  model.rope_dim = 64;
  model.cache_entry_bytes = 1152;
  model.hidden = 7168;
  model.n_routed_experts = 256;
  model.num_experts_per_tok = 8;
  model.num_tiles = num_tiles;
  model.tile_bytes = model.expert.bytes / num_tiles;
  const double all_experts = 58.0 * 256 * model.expert.bytes;
  for (int tiles = 0; tiles <= num_tiles; ++tiles) {
    const auto bytes = static_cast<uint64_t>(all_experts * tiles / num_tiles);
    model.node_bytes.push_back(bytes + kGiB);
    model.node_read_bytes.push_back(bytes);
  }
  model.node_bytes_min = kGiB + kGiB / 4;
  model.program_bytes = 96 * kMiB;
  model.coordinator_bytes = 20 * kGiB;
  model.coordinator_read_bytes = 17 * kGiB;
  model.device_bytes = 19 * kGiB;
  return model;
}

PlannedMachine machine(const std::string& name, double read, int cores, uint64_t ram,
                       std::vector<double> drives = {}, double nic = 12.5e9) {
  return {name, "", described_machine(read, cores), 0, ram, std::move(drives), nic};
}

PlanRequest request_of(ModelShape model, std::vector<PlannedMachine> nodes) {
  PlanRequest request;
  request.cluster.model = std::move(model);
  request.cluster.nodes = std::move(nodes);
  PlannedCoordinator& coordinator = request.cluster.coordinator;
  coordinator.rates = described_machine(250e9, 32);
  coordinator.nic_bytes_per_second = 12.5e9;
  coordinator.drive_bytes_per_second = 6e9;
  return request;
}

std::vector<int> tiles_of(const Plan& plan) {
  std::vector<int> tiles;
  for (const NodePlan& node : plan.nodes) tiles.push_back(node.share.tiles);
  return tiles;
}

TEST(Planner, equal_nodes_get_equal_shares) {
  std::vector<PlannedMachine> nodes;
  for (int n = 0; n < 4; ++n) nodes.push_back(machine("n", 250e9, 32, 256 * kGiB, {6e9}));
  const Plan plan = plan_shares(request_of(v3(), nodes));
  EXPECT_TRUE(plan.fits) << plan.why_not;
  EXPECT_EQ(tiles_of(plan), (std::vector<int>{4, 4, 4, 4}));
  EXPECT_EQ(plan.nodes[0].ram_bytes, v3().node_bytes[4] + v3().program_bytes);
  // A token reads 20 GB of experts on four machines and 17 GB on one.
  EXPECT_GT(plan.predicted.decode[0].tokens_per_second, 4);
  EXPECT_LT(plan.predicted.decode[0].tokens_per_second, 250e9 / (5e9 + 17e9));
  EXPECT_NEAR(plan.predicted.load_seconds, 163e9 / 6e9, 2);
}

TEST(Planner, a_node_of_twice_the_rate_gets_twice_the_tiles) {
  const Plan plan = plan_shares(
      request_of(v3(12), {machine("slow", 60e9, 64, 0), machine("fast", 120e9, 64, 0)}));
  EXPECT_EQ(tiles_of(plan), (std::vector<int>{4, 8}));
}

TEST(Planner, a_node_that_all_would_wait_for_gets_nothing) {
  PlanRequest request =
      request_of(v3(4), {machine("a", 250e9, 32, 0), machine("far", 250e9, 32, 0, {}, 1e3)});
  EXPECT_EQ(tiles_of(plan_shares(request)), (std::vector<int>{4, 0}));
}

TEST(Planner, shares_keep_to_ram_unless_drives_hold_the_rest) {
  const uint64_t room = v3().node_bytes[5];
  PlanRequest request =
      request_of(v3(), {machine("fast", 500e9, 64, room), machine("slow", 100e9, 64, 600 * kGiB)});
  EXPECT_EQ(tiles_of(plan_shares(request)), (std::vector<int>{5, 11}));
  EXPECT_EQ(plan_shares(request).nodes[0].share.resident, 1);
  request.cluster.nodes[0].drive_bytes_per_second = {1e14};
  const Plan plan = plan_shares(request);
  EXPECT_GT(plan.nodes[0].share.tiles, 5);
  EXPECT_LT(plan.nodes[0].share.resident, 1);
  EXPECT_LT(plan.nodes[0].hit_rate, 1);
  EXPECT_EQ(plan.nodes[0].ram_bytes, room + v3().program_bytes);
}

// All ways to give `left` tiles to nodes from `node` on.
void for_all_shares(const PlanRequest& request, std::vector<Share>* shares, size_t node, int left,
                    const std::function<void(const std::vector<Share>&)>& visit) {
  const ModelShape& model = request.cluster.model;
  if (node == shares->size()) {
    if (left == 0) visit(*shares);
    return;
  }
  const PlannedMachine& machine = request.cluster.nodes[node];
  for (int tiles = 0; tiles <= left; ++tiles) {
    const uint64_t needs = model.node_bytes[static_cast<size_t>(tiles)];
    const bool in_ram = machine.ram_bytes == 0 || needs <= machine.ram_bytes;
    if (!in_ram && machine.drive_bytes_per_second.empty()) break;
    const double resident = in_ram ? 1
                                   : static_cast<double>(machine.ram_bytes - model.node_bytes[0]) /
                                         static_cast<double>(needs - model.node_bytes[0]);
    (*shares)[node] = {tiles, 0, resident};
    for_all_shares(request, shares, node + 1, left - tiles, visit);
  }
  (*shares)[node] = {};
}

TEST(Planner, is_as_good_as_trying_everything) {
  double worst = 1;
  int cases = 0;
  for (uint64_t seed = 0; seed < 120; ++seed) {
    uint64_t draws = 0;
    const auto random = [&](double low, double high) {
      return low *
             std::pow(high / low, uniform_f64(seed, {.sample_index = 0, .position = draws++}));
    };
    std::vector<PlannedMachine> nodes;
    const int num_nodes = 2 + static_cast<int>(seed % 3),
              num_tiles = 4 + static_cast<int>(seed % 5);
    for (int n = 0; n < num_nodes; ++n) {
      nodes.push_back(machine("n", random(30e9, 500e9), static_cast<int>(random(4, 128)), 0, {},
                              random(0.1e9, 25e9)));
      if (random(1, 3) > 2) nodes[n].ram_bytes = static_cast<uint64_t>(random(100, 900)) * kGiB;
      if (random(1, 3) > 2) nodes[n].drive_bytes_per_second = {random(1e9, 12e9)};
      if (seed % 7 == 0) nodes[n].host = n % 2 == 0 ? "a" : "b";
    }
    PlanRequest request = request_of(v3(num_tiles), nodes);
    request.aim = seed % 2 == 0 ? Aim::kLatency : Aim::kThroughput;
    request.sequences = 16;
    const StepRows rows = aim_rows(request);
    double best = INFINITY;
    std::vector<Share> shares(nodes.size());
    for_all_shares(request, &shares, 0, num_tiles, [&](const std::vector<Share>& one) {
      best = std::min(best, step_time(request.cluster, one, rows).total);
    });
    const Plan plan = plan_shares(request);
    EXPECT_EQ(plan.fits, std::isfinite(best)) << "seed " << seed << ": " << plan.why_not;
    if (!plan.fits) continue;
    ++cases;
    const double share = best / plan.predicted.aim.total;
    EXPECT_GE(share, 0.98) << "seed " << seed;
    worst = std::min(worst, share);
  }
  EXPECT_GT(cases, 60);
  RecordProperty("worst", std::to_string(worst));
  EXPECT_GE(worst, 1 - 1e-9);
}

TEST(Planner, what_does_not_fit_is_refused_with_the_smallest_change) {
  PlanRequest request =
      request_of(v3(), {machine("a", 250e9, 32, 256 * kGiB), machine("b", 250e9, 32, 256 * kGiB)});
  const Plan plan = make_plan(request, {});
  EXPECT_FALSE(plan.fits);
  EXPECT_THAT(plan.why_not, HasSubstr("the nodes' RAM holds 12 of the 16 tiles"));
  ASSERT_FALSE(plan.ways.empty());
  EXPECT_THAT(plan.ways, Contains(HasSubstr("1 more node like a")));
  EXPECT_THAT(plan.ways, Contains(HasSubstr("drives with the experts")));
  // The figure that it names is the least.
  uint64_t gib = 0;
  ASSERT_EQ(sscanf(plan.ways[0].c_str(), "ram %luGiB in a", &gib), 1) << plan.ways[0];
  request.cluster.nodes[0].ram_bytes = gib * kGiB;
  EXPECT_TRUE(plan_shares(request).fits);
  request.cluster.nodes[0].ram_bytes = (gib - 1) * kGiB;
  EXPECT_FALSE(plan_shares(request).fits);
}

TEST(Planner, a_coordinator_without_room_is_refused) {
  PlanRequest request = request_of(v3(), {machine("a", 250e9, 32, 0)});
  request.cluster.coordinator.ram_bytes = 12 * kGiB;
  const Plan plan = make_plan(request, {});
  EXPECT_FALSE(plan.fits);
  EXPECT_THAT(plan.why_not, HasSubstr("the coordinator needs 20.0 GiB of RAM, it has 12.0 GiB"));
  EXPECT_THAT(plan.ways, Contains("coordinator.ram 20GiB"));
}

TEST(Planner, another_format_is_a_way_out) {
  ModelShape half = v3();
  for (uint64_t& bytes : half.node_bytes) bytes /= 2;
  const PlanRequest request = request_of(v3(), {machine("a", 250e9, 32, 400 * kGiB)});
  EXPECT_THAT(make_plan(request, {{"numerics.format int4", half}}).ways,
              Contains("numerics.format int4"));
}

TEST(Planner, redundancy_takes_ram_at_another_node) {
  const uint64_t room = v3().node_bytes[8];
  std::vector<PlannedMachine> nodes;
  for (int n = 0; n < 4; ++n) nodes.push_back(machine(std::string(1, 'a' + n), 250e9, 32, room));
  PlanRequest request = request_of(v3(), nodes);
  request.redundancy = 2;
  Plan plan = make_plan(request, {});
  ASSERT_TRUE(plan.fits) << plan.why_not;
  for (const NodePlan& node : plan.nodes) {
    EXPECT_EQ(node.share.tiles, 4);
    EXPECT_EQ(node.share.standby, 4);
    EXPECT_EQ(node.ram_bytes, room + v3().program_bytes);
  }
  request.redundancy = 3;
  plan = make_plan(request, {});
  EXPECT_FALSE(plan.fits);
  EXPECT_THAT(plan.why_not, HasSubstr("redundancy 3: RAM for 16 more tiles"));
  EXPECT_THAT(plan.ways, Contains("redundancy 2"));
  request.redundancy = 5;
  EXPECT_THAT(make_plan(request, {}).why_not, HasSubstr("needs as many nodes, there are 4"));
}

// Copies of a tile lie at nodes that own tiles, however much one of them would do better alone.
TEST(Planner, redundancy_needs_as_many_owners) {
  for (const int redundancy : {1, 2, 3}) {
    PlanRequest request = request_of(
        v3(4), {machine("fast", 400e9, 32, 900 * kGiB), machine("slow", 4e9, 2, 900 * kGiB),
                machine("slower", 3e9, 2, 900 * kGiB)});
    request.redundancy = redundancy;
    const Plan plan = make_plan(request, {});
    EXPECT_TRUE(plan.fits) << plan.why_not;
    int owners = 0, copies = 0;
    for (const NodePlan& node : plan.nodes) {
      owners += node.share.tiles > 0;
      copies += node.share.tiles + node.share.standby;
    }
    EXPECT_EQ(owners, redundancy);
    EXPECT_EQ(copies, 4 * redundancy);
  }
}

TEST(Planner, names_what_holds_a_step_up_and_what_helps_most) {
  std::vector<PlannedMachine> nodes;
  for (int n = 0; n < 4; ++n) {
    nodes.push_back(machine(fmt::format("n{}", n), 250e9, 64, 256 * kGiB, {6e9}));
  }
  nodes[2].ram_bytes = 60 * kGiB;
  PlanRequest request = request_of(v3(), nodes);
  request.fixed_tiles = {4, 4, 4, 4};
  const Plan plan = make_plan(request, {});
  EXPECT_EQ(plan.bottleneck, "n2: drives");
  EXPECT_GT(plan.bottleneck_share, 0.5);
  ASSERT_GE(plan.changes.size(), 2u);
  EXPECT_THAT(plan.changes[0].what, HasSubstr("in n2 (has 60.0 GiB)"));
  EXPECT_THAT(plan.changes[1].what, HasSubstr("drive"));
  EXPECT_GT(plan.changes[0].after, plan.changes[1].after);
  // The effect is the one of a plan with the change.
  request.cluster.nodes[2].ram_bytes = 256 * kGiB;
  EXPECT_NEAR(plan.changes[0].after, plan_shares(request).predicted.decode[0].tokens_per_second,
              1e-9);
}

TEST(Planner, a_coordinator_that_is_behind_is_told_to_take_a_gpu) {
  std::vector<PlannedMachine> nodes;
  for (int n = 0; n < 8; ++n) nodes.push_back(machine(fmt::format("n{}", n), 250e9, 64, 0));
  PlanRequest request = request_of(v3(), nodes);
  request.cluster.coordinator.rates = described_machine(50e9, 8);
  const Plan plan = make_plan(request, {});
  EXPECT_EQ(plan.bottleneck, "coordinator: memory rate");
  ASSERT_FALSE(plan.changes.empty());
  EXPECT_THAT(plan.changes[0].what, HasSubstr("a GPU of 24GiB"));
  // With one it computes there, if it has room.
  request.cluster.coordinator.device_name = "gpu";
  request.cluster.coordinator.device = described_device(1000e9);
  request.cluster.coordinator.device_memory_bytes = 24 * kGiB;
  EXPECT_EQ(plan_shares(request).device_bytes, v3().device_bytes);
  request.cluster.coordinator.device_memory_bytes = 16 * kGiB;
  EXPECT_EQ(plan_shares(request).device_bytes, 0u);
  EXPECT_THAT(plan_shares(request).device_note, HasSubstr("19.0 GiB of its memory are needed"));
}

TEST(Planner, distinct_experts_follow_from_how_often_each_is_chosen) {
  ModelShape model = v3();
  EXPECT_NEAR(distinct_experts(model, 1, 1).all, 8, 1e-9);
  EXPECT_NEAR(distinct_experts(model, 16, 1).all, 256 * (1 - std::pow(31.0 / 32, 16)), 1e-9);
  EXPECT_NEAR(distinct_experts(model, 1, 0.25).hit_rate(), 0.25, 1e-9);
  // A quarter of the experts is chosen by half of the choices: kept in RAM, they are half the hits.
  const double pairs = 58 * 256;
  model.classes = {{4.0 / 192, pairs * 3 / 4}, {4.0 / 64, pairs / 4}};
  EXPECT_NEAR(distinct_experts(model, 1, 1).all, 8, 1e-9);
  EXPECT_NEAR(distinct_experts(model, 1, 0.25).hit_rate(), 0.5, 1e-9);
  EXPECT_LT(distinct_experts(model, 16, 1).all, distinct_experts(v3(), 16, 1).all);
}

TEST(Planner, the_last_layer_of_a_prompt_computes_only_what_gets_logits) {
  ModelShape model = v3();
  model.kv_a = {576.0 * 7168, 576.0 * 7168, Kernel::kFp8};
  PlanRequest request = request_of(model, {machine("a", 250e9, 32, 0)});
  const std::vector<Share> shares = {{16, 0, 1}};
  const auto prompt = [&](int moe_layers) {
    request.cluster.model.moe_layers = moe_layers;
    return step_time(request.cluster, shares, prompt_rows(0, 512, false));
  };
  // 58 layers cost what 57 whole ones do, and one token's cache entries.
  EXPECT_NEAR(prompt(58).experts / prompt(59).experts, 57.0 / 58, 1e-9);
  EXPECT_NEAR(prompt(2).dense / prompt(58).dense, 1, 1e-9);
  EXPECT_EQ(prompt(1).experts, 0);
  // Of the chunk that ends one row goes on.
  request.cluster.model.moe_layers = 1;
  const StepTime ends = step_time(request.cluster, shares, prompt_rows(0, 512, true));
  const StepTime one = step_time(request.cluster, shares, decode_rows(1, 511));
  EXPECT_NEAR(ends.experts, one.experts, 1e-9);
}

TEST(Planner, more_of_anything_never_makes_it_slower) {
  const PlanRequest request = request_of(v3(), {machine("a", 100e9, 16, 200 * kGiB, {3e9}),
                                                machine("b", 200e9, 32, 300 * kGiB, {6e9})});
  const auto rate = [](const PlanRequest& r) {
    return plan_shares(r).predicted.decode[0].tokens_per_second;
  };
  const double before = rate(request);
  PlanRequest more = request;
  more.cluster.nodes[0].ram_bytes *= 2;
  EXPECT_GE(rate(more), before);
  more = request;
  more.cluster.nodes[1].drive_bytes_per_second.push_back(6e9);
  EXPECT_GT(rate(more), before);
  more = request;
  more.cluster.nodes.push_back(more.cluster.nodes[0]);
  EXPECT_GE(rate(more), before);
}

TEST(Planner, measured_kernels_take_the_place_of_constants) {
  MachineRates rates = described_machine(100e9, 16);
  const Work work{1e9, 1e9, Kernel::kFp8};
  EXPECT_NEAR(seconds_of(rates, work, 1), 0.01 / kShareOfRead, 1e-9);
  rates.measured[static_cast<size_t>(Kernel::kFp8)] = {{1, 2e-11}, {16, 8e-11}};
  EXPECT_DOUBLE_EQ(seconds_of(rates, work, 1), 0.02);
  EXPECT_DOUBLE_EQ(seconds_of(rates, work, 8.5), 0.05);
  EXPECT_DOUBLE_EQ(seconds_of(rates, work, 32), 0.16);
}

}  // namespace
}  // namespace atl::topology
