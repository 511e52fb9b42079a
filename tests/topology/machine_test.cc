#include "topology/machine.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sched.h>

#include <thread>

#include "base/thread_team.h"
#include "base/units.h"

namespace atl::topology {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

// Two sockets with a NUMA domain each, two cores of two hardware threads in a socket, numbered as
// Linux often does: 0 and 4 are one core. A disk and an InfiniBand card at socket 0, a disk and a
// GPU at socket 1, as lstopo writes them. (hwloc's own XML parser takes no comments in the file.)
const std::string kTwoSockets = std::string(ATOLL_SOURCE_DIR) + "/tests/topology/two_sockets.xml";

std::vector<int> cpus_of(const Machine& machine) {
  std::vector<int> cpus;
  for (const Core& core : machine.cores) cpus.push_back(core.cpu);
  return cpus;
}

TEST(Machine, one_socket_is_one_domain_of_cores) {
  const Machine machine = machine_from_synthetic("numa:1(memory=1073741824) l3:1 core:8 pu:1");
  EXPECT_THAT(cpus_of(machine), ElementsAre(0, 1, 2, 3, 4, 5, 6, 7));
  EXPECT_EQ(machine.numa_nodes, (std::vector<NumaNode>{{0, kGiB, 8}}));
  EXPECT_EQ(machine.usable_cores, 8);
  EXPECT_FALSE(machine.is_this_system);
}

TEST(Machine, hardware_threads_of_a_core_count_once) {
  const Machine machine = machine_from_synthetic("package:2 numa:4 core:4 pu:2");
  EXPECT_EQ(machine.num_packages, 2);
  EXPECT_EQ(machine.numa_nodes.size(), 8);
  EXPECT_EQ(machine.usable_cores, 32);
  EXPECT_EQ(machine.cores[1], (Core{.cpu = 2, .num_cpus = 2}));
  EXPECT_EQ(machine.cores[31].cpu, 62);
  EXPECT_EQ(machine.cores[31].package, 1);
  EXPECT_EQ(machine.cores[31].numa_node, 7);
}

TEST(Machine, of_a_restricted_core_the_allowed_thread_is_used) {
  // The second threads of cores 0 and 2; core 1 not at all; all of core 3.
  const Machine machine = machine_from_synthetic("numa:2 core:2 pu:2", {1, 5, 6, 7});
  EXPECT_THAT(cpus_of(machine), ElementsAre(1, 5, 6));
  EXPECT_EQ(machine.cores[2].num_cpus, 2);
  EXPECT_EQ(machine.numa_nodes[0].num_cores, 1);
  EXPECT_EQ(machine.numa_nodes[1].num_cores, 2);
  EXPECT_EQ(machine.usable_cores, 3);
}

TEST(Machine, xml_tells_numbering_memory_and_caches) {
  const Machine machine = machine_from_xml(kTwoSockets);
  EXPECT_THAT(cpus_of(machine), ElementsAre(0, 1, 2, 3));  // 4..7 are their second threads
  EXPECT_EQ(machine.cores[2].numa_node, 1);
  EXPECT_EQ(machine.cores[2].cache_group, 1);
  EXPECT_EQ(machine.numa_nodes, (std::vector<NumaNode>{{0, 384 * kGiB, 2}, {1, 192 * kGiB, 2}}));
  EXPECT_EQ(machine.caches, (std::vector<CacheLevel>{{2, 1 * kMiB, 4}, {3, 32 * kMiB, 2}}));
}

TEST(Machine, xml_tells_devices_and_where_they_are) {
  using Kind = Device::Kind;
  const Machine machine = machine_from_xml(kTwoSockets);
  EXPECT_THAT(machine.devices, ElementsAre(Device{Kind::kDisk, "nvme0n1", 0, "Fast Disk 3.2TB"},
                                           Device{Kind::kNetwork, "ib0", 0, ""},
                                           Device{Kind::kRdma, "mlx5_0", 0, ""},
                                           Device{Kind::kDisk, "nvme1n1", 1, "Fast Disk 3.2TB"},
                                           Device{Kind::kGpu, "cuda0", 1, "H100"}));
}

TEST(Machine, bad_descriptions_are_refused_by_name) {
  try {
    machine_from_synthetic("core:no");
    FAIL() << "accepted";
  } catch (const LoadError& error) {
    EXPECT_THAT(error.what(), HasSubstr("core:no"));
  }
  EXPECT_THROW(machine_from_xml("/no/such/file.xml"), LoadError);
}

TEST(ThisMachine, has_cores_of_the_callers_mask_only) {
  const Machine all = this_machine();
  ASSERT_FALSE(all.cores.empty());
  EXPECT_LE(all.usable_cores, static_cast<int>(std::thread::hardware_concurrency()));
  EXPECT_TRUE(all.devices.empty());  // not asked for
  std::thread([&] {
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(all.cores.back().cpu, &one);
    ASSERT_EQ(sched_setaffinity(0, sizeof(one), &one), 0);
    const Machine narrow = this_machine();
    EXPECT_THAT(cpus_of(narrow), ElementsAre(all.cores.back().cpu));
    EXPECT_EQ(narrow.usable_cores, 1);
  }).join();
}

TEST(ThisMachine, a_bound_thread_sees_only_its_domain) {
  const Machine machine = this_machine();
  if (!machine.is_this_system) GTEST_SKIP() << "hwloc describes another machine";
  const int domain = machine.cores.back().numa_node;
  std::thread([&] {
    const Status bound = bind_to_numa_node(domain);
    if (!bound) GTEST_SKIP() << bound.error().message;
    const Machine mine = this_machine();
    EXPECT_EQ(static_cast<int>(mine.cores.size()), machine.find_numa_node(domain)->num_cores);
    for (const Core& core : mine.cores) EXPECT_EQ(core.numa_node, domain);
  }).join();
}

TEST(ThisMachine, a_domain_that_does_not_exist_is_refused) {
  const Status bound = bind_to_numa_node(1000);
  ASSERT_FALSE(bound);
  EXPECT_EQ(bound.error().code, ErrorCode::kInvalid);
  EXPECT_THAT(bound.error().message, HasSubstr("no NUMA domain 1000"));
}

}  // namespace
}  // namespace atl::topology
