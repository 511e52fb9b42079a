#include "topology/thread_plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

namespace atl::topology {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

// As if the described machine were this one.
Machine machine_of(const std::string& description, const std::vector<int>& allowed = {}) {
  Machine machine = machine_from_synthetic(description, allowed);
  machine.is_this_system = true;
  return machine;
}

constexpr const char* kTwoByFour = "package:2 numa:4 l3:1 core:4 pu:2";  // 8 domains of 4 cores

TEST(ThreadCpus, each_thread_has_a_core_of_its_own) {
  EXPECT_THAT(thread_cpus(machine_of("numa:1 core:4 pu:2"), 4), ElementsAre(0, 2, 4, 6));
}

TEST(ThreadCpus, more_threads_than_cores_are_not_pinned) {
  EXPECT_THAT(thread_cpus(machine_of("numa:1 core:4 pu:2"), 5), IsEmpty());
  EXPECT_THAT(thread_cpus(machine_of(kTwoByFour), 5, 1), IsEmpty());
}

TEST(ThreadCpus, few_threads_stay_in_one_domain) {
  EXPECT_THAT(thread_cpus(machine_of(kTwoByFour), 3), ElementsAre(0, 2, 4));
  // Domain 0 has one core left: the three go to domain 1.
  EXPECT_THAT(thread_cpus(machine_of("numa:2 core:3 pu:1", {2, 3, 4, 5}), 3), ElementsAre(3, 4, 5));
}

TEST(ThreadCpus, many_threads_fill_domain_after_domain) {
  EXPECT_THAT(thread_cpus(machine_of(kTwoByFour), 6), ElementsAre(0, 2, 4, 6, 8, 10));
}

TEST(ThreadCpus, in_a_domain_they_spread_over_the_caches) {
  EXPECT_THAT(thread_cpus(machine_of("numa:1 l3:2 core:4 pu:1"), 4), ElementsAre(0, 4, 1, 5));
}

TEST(ThreadCpus, a_named_domain_gives_only_its_cores) {
  EXPECT_THAT(thread_cpus(machine_of(kTwoByFour), 2, 3), ElementsAre(24, 26));
}

TEST(PlanTeam, takes_all_cores_unless_told_and_pins_them) {
  const TeamPlan plan = plan_team(machine_of("numa:1 core:4 pu:2"), {});
  EXPECT_EQ(plan.num_threads, 4);
  EXPECT_THAT(plan.cpus, ElementsAre(0, 2, 4, 6));
  EXPECT_EQ(describe(plan), "4 threads, on processors 0,2,4,6");
}

TEST(PlanTeam, auto_leaves_fewer_threads_than_cores_to_the_kernel) {
  const TeamPlan plan = plan_team(machine_of("numa:1 core:4 pu:1"), {.num_threads = 3});
  EXPECT_THAT(plan.cpus, IsEmpty());
  EXPECT_EQ(describe(plan),
            "3 threads, not pinned: fewer threads than the 4 cores, which others may use as well");
}

TEST(PlanTeam, on_pins_fewer_threads_than_cores_and_off_nothing) {
  const Machine machine = machine_of("numa:1 core:4 pu:1");
  EXPECT_THAT(plan_team(machine, {.num_threads = 3, .pin = PinMode::kOn}).cpus,
              ElementsAre(0, 1, 2));
  EXPECT_THAT(plan_team(machine, {.num_threads = 4, .pin = PinMode::kOff}).cpus, IsEmpty());
  EXPECT_THAT(plan_team(machine, {.num_threads = 5, .pin = PinMode::kOn}).cpus, IsEmpty());
}

TEST(PlanTeam, a_quota_below_the_cores_bounds_the_threads_and_forbids_auto_pinning) {
  Machine machine = machine_of("numa:1 core:8 pu:1");
  machine.has_quota = true;
  machine.usable_cores = 2;
  const TeamPlan plan = plan_team(machine, {});
  EXPECT_EQ(plan.num_threads, 2);
  EXPECT_THAT(plan.cpus, IsEmpty());
  machine.usable_cores = 8;  // equal to the cores: nobody else is on them
  EXPECT_THAT(plan_team(machine, {.num_threads = 8}).reason, HasSubstr("quota"));
}

TEST(PlanTeam, another_machines_processors_are_never_used) {
  const Machine machine = machine_from_synthetic("numa:1 core:4 pu:1");
  EXPECT_THAT(plan_team(machine, {.pin = PinMode::kOn}).cpus, IsEmpty());
}

TEST(PlanTeam, a_domain_is_planned_like_a_machine) {
  const TeamPlan plan = plan_team(machine_of(kTwoByFour), {.numa_node = 7});
  EXPECT_EQ(plan.num_threads, 4);
  EXPECT_THAT(plan.cpus, ElementsAre(56, 58, 60, 62));
  EXPECT_EQ(plan.numa_node, 7);
  EXPECT_EQ(describe(plan), "4 threads in NUMA domain 7, on processors 56,58,60,62");
}

TEST(PlanTeam, a_domain_that_is_not_there_is_refused_with_those_that_are) {
  try {
    plan_team(machine_of("numa:2 core:2 pu:1"), {.numa_node = 2});
    FAIL() << "accepted";
  } catch (const LoadError& error) {
    EXPECT_STREQ(error.what(), "NUMA domain 2 does not exist; give one of 0, 1");
  }
  try {
    plan_team(machine_of("numa:2 core:2 pu:1", {0, 1}), {.numa_node = 1});
    FAIL() << "accepted";
  } catch (const LoadError& error) {
    EXPECT_STREQ(error.what(),
                 "NUMA domain 1 has no core that this process may use; give one of 0");
  }
}

std::vector<int> threads_of(const SharedPlan& plan) {
  std::vector<int> threads;
  for (const TeamPlan& node : plan.nodes) threads.push_back(node.num_threads);
  return threads;
}

TEST(PlanShared, nodes_of_one_domain_share_its_cores) {
  const SharedPlan plan = plan_shared(machine_of("numa:1 core:8 pu:1"), 3, {});
  EXPECT_THAT(threads_of(plan), ElementsAre(2, 2, 2));
  EXPECT_EQ(plan.nodes[0].numa_node, std::nullopt);
  EXPECT_EQ(plan.coordinator.num_threads, 8);
  EXPECT_FALSE(plan.cores_suffice);
  EXPECT_THAT(plan.nodes[0].cpus, IsEmpty());
}

TEST(PlanShared, each_node_has_a_thread_however_many_there_are) {
  const SharedPlan plan = plan_shared(machine_of("numa:1 core:2 pu:1"), 5, {});
  EXPECT_THAT(threads_of(plan), ElementsAre(1, 1, 1, 1, 1));
}

TEST(PlanShared, nodes_go_round_the_domains) {
  const SharedPlan plan = plan_shared(machine_of(kTwoByFour), 10, {});
  EXPECT_THAT(threads_of(plan), ElementsAre(2, 2, 4, 4, 4, 4, 4, 4, 2, 2));
  EXPECT_EQ(plan.nodes[7].numa_node, 7);
  EXPECT_EQ(plan.nodes[8].numa_node, 0);
}

TEST(PlanShared, domains_without_cores_get_no_node) {
  const SharedPlan plan = plan_shared(machine_of("numa:3 core:2 pu:1", {0, 1, 4, 5}), 2, {});
  EXPECT_EQ(plan.nodes[0].numa_node, 0);
  EXPECT_EQ(plan.nodes[1].numa_node, 2);
}

TEST(PlanShared, where_all_find_a_core_no_two_threads_share_one) {
  const Machine machine = machine_of(kTwoByFour);
  // 6 of 8 domains for nodes, so that 8 cores stay free.
  const SharedPlan plan = plan_shared(machine, 6, {.num_threads = 8, .pin = PinMode::kOn});
  EXPECT_TRUE(plan.cores_suffice);
  std::set<int> seen;
  size_t threads = 0;
  for (const TeamPlan& node : plan.nodes) {
    EXPECT_THAT(node.cpus.size(), node.num_threads);
    threads += node.cpus.size();
    seen.insert(node.cpus.begin(), node.cpus.end());
  }
  EXPECT_EQ(plan.coordinator.cpus.size(), 8);
  seen.insert(plan.coordinator.cpus.begin(), plan.coordinator.cpus.end());
  EXPECT_EQ(seen.size(), threads + 8);
  EXPECT_EQ(plan.nodes[5].cpus[0], 40);  // of domain 5
}

TEST(PlanShared, auto_pins_only_what_fills_the_machine) {
  const Machine machine = machine_of("numa:1 core:8 pu:1");
  EXPECT_THAT(plan_shared(machine, 4, {.num_threads = 1}).nodes[0].cpus, IsEmpty());
  const SharedPlan plan = plan_shared(machine_of("numa:1 core:9 pu:1"), 4, {.num_threads = 1});
  EXPECT_THAT(plan.nodes[3].cpus, ElementsAre(6, 7));
  EXPECT_THAT(plan.coordinator.cpus, ElementsAre(8));
}

}  // namespace
}  // namespace atl::topology
