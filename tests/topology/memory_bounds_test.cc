#include "topology/memory_bounds.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>

#include "base/units.h"

namespace atl::topology {
namespace {

using Of = MemoryBound::Of;
using ::testing::ElementsAre;
using ::testing::IsEmpty;

using Files = std::map<std::string, std::string>;

std::vector<MemoryBound> bounds_of(const Files& files) {
  return memory_bounds([&](const std::string& path) {
    const auto found = files.find(path);
    return found == files.end() ? std::string() : found->second;
  });
}

const std::string kMeminfo =
    "MemTotal:       24683652 kB\nMemFree:        21269740 kB\nMemAvailable:   22318436 kB\n";
constexpr uint64_t kTotal = 24683652 * kKiB, kAvailable = 22318436 * kKiB;
const MemoryBound kMachine = {Of::kMachine, "MemAvailable", kTotal, kAvailable};

const std::string kMountsV2 =
    "22 27 0:21 / /proc rw - proc proc rw\n"
    "29 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
const std::string kMountsV1 =
    "31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755\n"
    "32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu\n"
    "35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n";

TEST(MemoryBounds, of_a_machine_without_limits_are_what_the_kernel_calls_available) {
  EXPECT_THAT(bounds_of({{"/proc/meminfo", kMeminfo}}), ElementsAre(kMachine));
  EXPECT_THAT(bounds_of({}), IsEmpty());
}

TEST(MemoryBounds, of_version_2_count_pages_of_files_as_free_and_look_at_all_ancestors) {
  const Files files = {
      {"/proc/meminfo", kMeminfo},
      {"/proc/self/cgroup", "0::/system.slice/atoll.service\n"},
      {"/proc/self/mountinfo", kMountsV2},
      {"/sys/fs/cgroup/system.slice/atoll.service/memory.max", "max\n"},
      {"/sys/fs/cgroup/system.slice/atoll.service/memory.high", "9000\n"},
      {"/sys/fs/cgroup/system.slice/atoll.service/memory.current", "1000\n"},
      {"/sys/fs/cgroup/system.slice/memory.max", "8000\n"},
      {"/sys/fs/cgroup/system.slice/memory.high", "max\n"},
      {"/sys/fs/cgroup/system.slice/memory.current", "5000\n"},
      {"/sys/fs/cgroup/system.slice/memory.stat",
       "anon 1800\nfile 3200\ninactive_anon 200\nactive_anon 1600\ninactive_file 2000\n"
       "active_file 1000\nunevictable 0\n"},
  };
  EXPECT_THAT(
      bounds_of(files),
      ElementsAre(
          kMachine,
          MemoryBound{Of::kMachine, "memory.high of cgroup /system.slice/atoll.service", 9000,
                      8000},
          MemoryBound{Of::kMachine, "memory.max of cgroup /system.slice", 8000, 8000 - 2000}));
}

TEST(MemoryBounds, of_version_1_are_read_where_memory_is_counted) {
  const Files files = {
      {"/proc/self/cgroup", "9:name=systemd:/\n4:memory:/jobs/7\n1:cpu:/other\n0::/\n"},
      {"/proc/self/mountinfo", kMountsV1},
      {"/sys/fs/cgroup/memory/jobs/7/memory.limit_in_bytes", "4000\n"},
      {"/sys/fs/cgroup/memory/jobs/7/memory.usage_in_bytes", "3500\n"},
      {"/sys/fs/cgroup/memory/jobs/7/memory.stat",
       "cache 900\ninactive_file 1\nactive_file 1\ntotal_inactive_file 600\n"
       "total_active_file 200\n"},
      {"/sys/fs/cgroup/memory/jobs/memory.limit_in_bytes", "9223372036854771712\n"},
      {"/sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"},
  };
  EXPECT_THAT(bounds_of(files),
              ElementsAre(MemoryBound{Of::kMachine, "memory.limit_in_bytes of cgroup /jobs/7", 4000,
                                      4000 - 2700}));
}

// Docker with version 1 names the host's path and mounts that cgroup as the root; with version 2
// the path is "/" and the mount's root may be anything.
TEST(MemoryBounds, of_a_container_are_those_of_the_mounted_cgroup) {
  const Files v1 = {
      {"/proc/self/cgroup", "4:memory:/docker/abc\n"},
      {"/proc/self/mountinfo",
       "35 31 0:32 /docker/abc /sys/fs/cgroup/memory ro master:9 - cgroup cgroup rw,memory\n"},
      {"/sys/fs/cgroup/memory/memory.limit_in_bytes", "700"},
  };
  EXPECT_THAT(bounds_of(v1), ElementsAre(MemoryBound{
                                 Of::kMachine, "memory.limit_in_bytes of cgroup /", 700, 700}));
  const Files v2 = {
      {"/proc/self/cgroup", "0::/\n"},
      {"/proc/self/mountinfo", "29 23 0:26 /../.. /sys/fs/cgroup\\040x rw - cgroup2 cgroup rw\n"},
      {"/sys/fs/cgroup x/memory.max", "800\n"},
      {"/sys/fs/cgroup x/memory.current", "900\n"},
  };
  EXPECT_THAT(bounds_of(v2),
              ElementsAre(MemoryBound{Of::kMachine, "memory.max of cgroup /", 800, 0}));
  Files outside = v2;
  outside["/proc/self/cgroup"] = "0::/../../sibling\n";
  EXPECT_EQ(bounds_of(outside), bounds_of(v2));
}

TEST(MemoryBounds, of_a_process_are_its_resource_limits_less_what_it_has_mapped) {
  const Files files = {
      {"/proc/self/limits",
       "Limit                     Soft Limit           Hard Limit           Units     \n"
       "Max data size             100000000            unlimited            bytes     \n"
       "Max address space         8589934592           unlimited            bytes     \n"},
      {"/proc/self/statm", "1000 500 100 10 0 200 0\n"},
  };
  EXPECT_THAT(bounds_of(files),
              ElementsAre(MemoryBound{Of::kProcess, "ulimit -v", 8589934592, 8589934592 - 4096000},
                          MemoryBound{Of::kProcess, "ulimit -d", 100000000, 100000000 - 819200}));
  Files unlimited = files;
  unlimited["/proc/self/limits"] =
      "Max data size             unlimited            unlimited            bytes     \n";
  EXPECT_THAT(bounds_of(unlimited), IsEmpty());
}

TEST(MemoryBounds, damaged_texts_name_no_bound) {
  const Files files = {
      {"/proc/meminfo", "MemAvailable: many kB\n"},
      {"/proc/self/cgroup", "0\n:\n0::relative\n"},
      {"/proc/self/mountinfo", "29 23 - cgroup2\n1 - \n" + kMountsV2},
      {"/sys/fs/cgroup/memory.max", "-5\n"},
      {"/proc/self/limits", "Max address space\n"},
  };
  EXPECT_THAT(bounds_of(files), IsEmpty());
}

TEST(MemoryBounds, the_tightest_is_the_one_with_the_least_left) {
  const std::vector<MemoryBound> bounds = {
      {Of::kMachine, "a", 100, 50}, {Of::kMachine, "b", 60, 40}, {Of::kProcess, "c", 10, 10}};
  EXPECT_EQ(tightest(bounds, Of::kMachine), bounds[1]);
  EXPECT_EQ(tightest(bounds, Of::kProcess), bounds[2]);
  EXPECT_EQ(tightest({}, Of::kMachine), std::nullopt);
}

TEST(MemoryBounds, of_this_machine_leave_something) {
  const auto bound = tightest(memory_bounds(), Of::kMachine);
  ASSERT_TRUE(bound) << "no MemAvailable";
  std::printf("%s: %s of %s free\n", bound->name.c_str(), format_bytes(bound->free_bytes).c_str(),
              format_bytes(bound->limit_bytes).c_str());
  EXPECT_GT(bound->free_bytes, 0u);
  EXPECT_LE(bound->free_bytes, bound->limit_bytes);
}

}  // namespace
}  // namespace atl::topology
