// Faults planted one by one in a machine where all is well: each is found, by its name, with what
// to do.
#include "topology/doctor/checks.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <map>

#include "base/units.h"

namespace atl::topology {
namespace {

Snapshot good_machine() {
  Snapshot s;
  s.memlock_bytes = s.open_files = UINT64_MAX;
  s.thp_enabled = "always [madvise] never";
  s.thp_defrag = "always defer defer+madvise [madvise] never";
  s.numa_balancing = s.zone_reclaim = s.overcommit = 0;
  s.swappiness = 10;
  s.max_map_count = 65530;
  s.tcp_rmem_max = s.tcp_wmem_max = 16 << 20;
  s.pids_max = 10'000;
  s.governor = "performance";
  s.clocksource = "tsc";
  s.smt_active = "1";
  s.numa_nodes = 2;
  s.cores = s.usable_cores = 32;
  s.cpus = 64;
  s.swap_used_bytes = 0;
  s.memory_bytes = 256 * kGiB;
  s.shm_free_bytes = 128 * kGiB;
  s.load = 0.5;
  s.clock_is_synchronized = true;
  s.kernel = "6.1.0-18-amd64";
  s.simd = "AVX3";
  s.bounds = {{MemoryBound::Of::kMachine, "MemAvailable", 256 * kGiB, 250 * kGiB}};
  s.nics = {{"eth0", 12.5e9, 9000, 0, true}};
  s.has_other_machines = true;
  s.directories = {{"/nvme0/pack", true, true, 100 * kGiB, false}};
  s.ports = {{"node n1", "10.0.0.1:7000", ""}};
  s.secrets = {{"/etc/atoll/keys", true, 0700}};
  s.read_bytes_per_second = 230e9;
  s.described_read = 250e9;
  s.drive_bytes_per_second = 6e9;
  s.described_drive = 6e9;
  s.described_nic = 12.5e9;
  s.described_cores = 32;
  s.gpu_wanted = "cuda:0";
  return s;
}

TEST(Doctor, a_good_machine_has_nothing_wrong) {
  const std::vector<Finding> findings = examine(good_machine());
  EXPECT_GE(findings.size(), 30u);
  for (const Finding& finding : findings) {
    EXPECT_EQ(finding.verdict, Verdict::kOk) << finding.name << ": " << finding.what;
    EXPECT_EQ(finding.fix, "");
  }
  EXPECT_FALSE(has_blockers(findings));
}

struct Fault {
  const char* name;  // of the finding
  Verdict verdict;
  std::function<void(Snapshot*)> plant;
};
void PrintTo(const Fault& fault, std::ostream* out) { *out << fault.name; }

constexpr Verdict kWarning = Verdict::kWarning, kBlocker = Verdict::kBlocker;

const Fault kFaults[] = {
    {"simd", kBlocker, [](Snapshot* s) { s->simd = "SSE4"; }},
    {"cpu quota", kWarning,
     [](Snapshot* s) {
       s->has_cpu_quota = true;
       s->described_cores = 0;
       s->usable_cores = 4;
     }},
    {"cores", kWarning, [](Snapshot* s) { s->usable_cores = 16; }},
    {"governor", kWarning, [](Snapshot* s) { s->governor = "powersave"; }},
    {"load", kWarning, [](Snapshot* s) { s->load = 40; }},
    {"clocksource", kWarning, [](Snapshot* s) { s->clocksource = "hpet"; }},
    {"huge pages", kWarning, [](Snapshot* s) { s->thp_enabled = "always madvise [never]"; }},
    {"huge page defrag", kWarning,
     [](Snapshot* s) { s->thp_defrag = "always defer defer+madvise madvise [never]"; }},
    {"huge page defrag", kWarning,
     [](Snapshot* s) { s->thp_defrag = "[always] defer defer+madvise madvise never"; }},
    {"numa balancing", kWarning, [](Snapshot* s) { s->numa_balancing = 1; }},
    {"zone reclaim", kWarning, [](Snapshot* s) { s->zone_reclaim = 1; }},
    {"swap", kWarning, [](Snapshot* s) { s->swap_used_bytes = 2 * kGiB; }},
    {"overcommit", kWarning, [](Snapshot* s) { s->overcommit = 2; }},
    {"memory limit", kWarning,
     [](Snapshot* s) {
       s->bounds.push_back(
           {MemoryBound::Of::kMachine, "memory.max of cgroup /a", 32 * kGiB, 31 * kGiB});
     }},
    {"memory rate", kWarning, [](Snapshot* s) { s->read_bytes_per_second = 120e9; }},
    {"memlock", kWarning, [](Snapshot* s) { s->memlock_bytes = 8 * kMiB; }},
    {"open files", kWarning, [](Snapshot* s) { s->open_files = 1024; }},
    {"open files", kBlocker, [](Snapshot* s) { s->open_files = 64; }},
    {"memory maps", kWarning, [](Snapshot* s) { s->max_map_count = 1000; }},
    {"threads", kBlocker, [](Snapshot* s) { s->pids_max = 64; }},
    {"shared memory", kBlocker, [](Snapshot* s) { s->shm_free_bytes = 16 * kMiB; }},
    {"shared memory", kWarning, [](Snapshot* s) { s->shm_free_bytes = 100 * kMiB; }},
    {"io_uring", kWarning, [](Snapshot* s) { s->io_uring_error = "Operation not permitted"; }},
    {"model /nvme0/pack", kBlocker, [](Snapshot* s) { s->directories[0].is_there = false; }},
    {"model /nvme0/pack", kWarning, [](Snapshot* s) { s->directories[0].takes_o_direct = false; }},
    {"model /nvme0/pack", kWarning, [](Snapshot* s) { s->directories[0].rotates = true; }},
    {"model /nvme0/pack", kWarning, [](Snapshot* s) { s->directories[0].free_bytes = kMiB; }},
    {"drive rate", kWarning, [](Snapshot* s) { s->drive_bytes_per_second = 0.5e9; }},
    {"mtu eth0", kWarning, [](Snapshot* s) { s->nics[0].mtu = 1500; }},
    {"mtu eth0", kWarning, [](Snapshot* s) { s->nics[0].mtu = 576; }},
    {"network", kBlocker, [](Snapshot* s) { s->nics[0].is_up = false; }},
    {"network", kWarning, [](Snapshot* s) { s->nics[0].bytes_per_second = 1.25e9; }},
    {"socket buffers", kWarning, [](Snapshot* s) { s->tcp_rmem_max = 212992; }},
    {"clock", kWarning, [](Snapshot* s) { s->clock_is_synchronized = false; }},
    {"port 10.0.0.1:7000", kBlocker,
     [](Snapshot* s) { s->ports[0].error = "Address already in use"; }},
    {"keys /etc/atoll/keys", kBlocker, [](Snapshot* s) { s->secrets[0].is_there = false; }},
    {"keys /etc/atoll/keys", kWarning, [](Snapshot* s) { s->secrets[0].mode = 0755; }},
    {"kernel", kWarning, [](Snapshot* s) { s->kernel = "4.18.0"; }},
    {"gpu", kBlocker, [](Snapshot* s) { s->gpu_error = "no driver"; }},
};

class DoctorFault : public ::testing::TestWithParam<Fault> {};

TEST_P(DoctorFault, is_found_alone_and_told_with_what_to_do) {
  Snapshot snapshot = good_machine();
  GetParam().plant(&snapshot);
  const std::vector<Finding> findings = examine(snapshot);
  int wrong = 0;
  for (const Finding& finding : findings) {
    if (finding.verdict == Verdict::kOk) continue;
    ++wrong;
    EXPECT_EQ(finding.name, GetParam().name);
    EXPECT_EQ(finding.verdict, GetParam().verdict);
    EXPECT_NE(finding.what, "");
    EXPECT_NE(finding.why, "");
    EXPECT_NE(finding.fix, "");
  }
  EXPECT_EQ(wrong, 1);
  EXPECT_EQ(has_blockers(findings), GetParam().verdict == Verdict::kBlocker);
}
INSTANTIATE_TEST_SUITE_P(Planted, DoctorFault, ::testing::ValuesIn(kFaults));

TEST(Doctor, what_the_system_does_not_tell_is_not_judged) {
  for (const Finding& finding : examine(Snapshot())) {
    EXPECT_NE(finding.verdict, Verdict::kBlocker) << finding.name;
    EXPECT_NE(finding.verdict, Verdict::kWarning) << finding.name;
  }
}

TEST(Doctor, reads_the_files_of_the_system) {
  const std::map<std::string, std::string> files = {
      {"/sys/kernel/mm/transparent_hugepage/enabled", "always madvise [never]\n"},
      {"/proc/sys/kernel/numa_balancing", "1\n"},
      {"/proc/sys/net/core/rmem_max", "212992\n"},
      {"/proc/loadavg", "3.50 1.00 0.50 1/100 42\n"},
      {"/proc/meminfo",
       "MemTotal:       1024 kB\nMemAvailable:    512 kB\nSwapTotal:       100 kB\nSwapFree:       "
       " 40 kB\n"},
      {"/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", "powersave\n"}};
  Snapshot snapshot;
  read_system(
      [&](const std::string& path) {
        const auto found = files.find(path);
        return found == files.end() ? "" : found->second;
      },
      [](const std::string&) { return std::vector<std::string>(); }, &snapshot);
  EXPECT_EQ(snapshot.thp_enabled, "always madvise [never]");
  EXPECT_EQ(snapshot.numa_balancing, 1);
  EXPECT_EQ(snapshot.tcp_rmem_max, 212992);
  EXPECT_EQ(snapshot.load, 3.5);
  EXPECT_EQ(snapshot.swap_used_bytes, 60u * 1024);
  EXPECT_EQ(snapshot.memory_bytes, 1024u * 1024);
  EXPECT_EQ(snapshot.governor, "powersave");
  EXPECT_FALSE(snapshot.zone_reclaim.has_value());
}

}  // namespace
}  // namespace atl::topology
