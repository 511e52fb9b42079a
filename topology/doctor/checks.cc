#include "topology/doctor/checks.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>

#include "base/check.h"
#include "base/units.h"

namespace atl::topology {
namespace {

constexpr uint64_t kMemlockWanted = 512 * kMiB;  // a node's read buffers, registered with its ring
constexpr uint64_t kFilesWanted = 4096, kFilesLeast = 256;
constexpr uint64_t kShmLeast = 64 * kMiB, kShmWanted = 512 * kMiB;
constexpr int64_t kMapsWanted = 65530;  // the kernel's own default
constexpr int64_t kSocketBytesWanted = 4 << 20;
constexpr int64_t kPidsLeast = 512;
constexpr int kMtuWanted = 9000, kMtuLeast = 1280;
// What is measured may be below what is described by so much.
constexpr double kOfClass = 0.7;
constexpr double kNicOfClass = 0.95;
constexpr uint64_t kFreeDiskWanted = kGiB;

class Doctor {
 public:
  explicit Doctor(const Snapshot& snapshot) : s_(snapshot) {}

  std::vector<Finding> examine() {
    cpu();
    memory();
    limits();
    storage();
    network();
    rest();
    return std::move(findings_);
  }

 private:
  void ok(std::string name, std::string what) {
    findings_.push_back({std::move(name), Verdict::kOk, std::move(what), "", ""});
  }
  void unknown(std::string name, std::string what = "the system doesn't tell") {
    findings_.push_back({std::move(name), Verdict::kUnknown, std::move(what), "", ""});
  }
  void wrong(Verdict verdict, std::string name, std::string what, std::string why,
             std::string fix) {
    findings_.push_back(
        {std::move(name), verdict, std::move(what), std::move(why), std::move(fix)});
  }
  void warn(std::string name, std::string what, std::string why, std::string fix) {
    wrong(Verdict::kWarning, std::move(name), std::move(what), std::move(why), std::move(fix));
  }

  void cpu() {
    if (s_.simd.empty()) {
      unknown("simd");
    } else if (s_.simd == "SCALAR" || s_.simd.starts_with("SSE") || s_.simd.starts_with("SSSE")) {
      wrong(Verdict::kBlocker, "simd", fmt::format("{}: no AVX2", s_.simd),
            "kernels run without wide vectors: a third of the arithmetic, and less",
            "use a machine with AVX2 or AVX-512");
    } else {
      ok("simd", s_.simd);
    }
    if (s_.has_cpu_quota) {
      warn("cpu quota", fmt::format("{} of {} cores", s_.usable_cores, s_.cores),
           "the kernel stops threads in the middle of a step: tokens/s fall by more than the quota",
           "systemctl set-property UNIT CPUQuota=   # or the container's --cpus");
    } else {
      ok("cpu quota", "none");
    }
    if (s_.described_cores > s_.usable_cores) {
      warn("cores", fmt::format("{}, the file says {}", s_.usable_cores, s_.described_cores),
           "prompts and many sequences are slower than planned",
           "give the process all cores (taskset, cpuset), or correct `cores`");
    } else {
      ok("cores", std::to_string(s_.usable_cores));
    }
    if (s_.governor.empty()) {
      unknown("governor", "none: a guest, or the firmware decides");
    } else if (s_.governor == "powersave" || s_.governor == "conservative" ||
               s_.governor == "ondemand") {
      warn("governor", s_.governor,
           "cores are slow when a layer starts: tokens/s fall with the clock",
           "cpupower frequency-set -g performance");
    } else {
      ok("governor", s_.governor);
    }
    const double busy = s_.load.value_or(0) / std::max(1, s_.cpus);
    if (!s_.load) {
      unknown("load");
    } else if (busy > 0.5) {
      warn("load", fmt::format("{:.1f} on {} processors", *s_.load, s_.cpus),
           "whoever shares the cores holds up every layer: one thread that is late, all are",
           "top -o %CPU   # and stop or move what isn't needed");
    } else {
      ok("load", fmt::format("{:.1f} on {} processors", *s_.load, s_.cpus));
    }
    if (s_.smt_active != "1") {
      ok("smt", s_.smt_active == "0" ? "off" : "not told");
    } else {
      ok("smt", "on; threads are placed one on a core");
    }
    if (s_.clocksource.empty()) {
      unknown("clocksource");
    } else if (s_.clocksource == "hpet" || s_.clocksource == "acpi_pm" ||
               s_.clocksource == "jiffies") {
      warn("clocksource", s_.clocksource,
           "each look at the clock is a system call of a microsecond",
           "echo tsc > /sys/devices/system/clocksource/clocksource0/current_clocksource");
    } else {
      ok("clocksource", s_.clocksource);
    }
  }

  void memory() {
    if (s_.thp_enabled.empty()) {
      unknown("huge pages");
    } else if (s_.thp_enabled.find("[never]") != std::string::npos) {
      warn("huge pages", s_.thp_enabled,
           "weights lie on small pages: reading memory is 13 % slower, drives up to half",
           "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled");
    } else {
      ok("huge pages", s_.thp_enabled);
    }
    if (s_.thp_defrag.empty()) {
      unknown("huge page defrag");
    } else if (s_.thp_defrag.find("[never]") != std::string::npos) {
      warn("huge page defrag", s_.thp_defrag,
           "on a machine that has run for a while few huge pages are left to have",
           "echo madvise > /sys/kernel/mm/transparent_hugepage/defrag");
    } else if (s_.thp_defrag.find("[always]") != std::string::npos) {
      warn("huge page defrag", s_.thp_defrag,
           "any allocation may stop to compact memory, in the middle of a step",
           "echo madvise > /sys/kernel/mm/transparent_hugepage/defrag");
    } else {
      ok("huge page defrag", s_.thp_defrag);
    }
    if (!s_.numa_balancing || s_.numa_nodes < 2) {
      ok("numa balancing", s_.numa_nodes < 2 ? "one domain" : "not told");
    } else if (*s_.numa_balancing != 0) {
      warn("numa balancing", fmt::format("on, {} domains", s_.numa_nodes),
           "the kernel unmaps weights to see who reads them, and each is a fault when it is read "
           "next",
           "sysctl -w kernel.numa_balancing=0");
    } else {
      ok("numa balancing", "off");
    }
    if (s_.zone_reclaim.value_or(0) != 0) {
      warn("zone reclaim", std::to_string(*s_.zone_reclaim),
           "memory of a full domain is freed before another domain's is taken: loading stalls",
           "sysctl -w vm.zone_reclaim_mode=0");
    } else {
      ok("zone reclaim", "off");
    }
    if (!s_.swap_used_bytes) {
      unknown("swap");
    } else if (*s_.swap_used_bytes > 64 * kMiB) {
      warn("swap", fmt::format("{} in use", format_bytes(*s_.swap_used_bytes)),
           "weights that were swapped out come back at a page each: seconds for a token",
           "swapoff -a");
    } else {
      ok("swap", *s_.swap_used_bytes == 0 ? "not in use" : format_bytes(*s_.swap_used_bytes));
    }
    if (s_.overcommit == 2) {
      warn("overcommit", "2: never",
           "a node's slots are reserved before they are used, and refused",
           "sysctl -w vm.overcommit_memory=0");
    } else {
      ok("overcommit", "allowed");
    }
    cgroup_memory();
    against_class(
        "memory rate", s_.read_bytes_per_second, s_.described_read,
        "tokens/s of one sequence fall in proportion",
        "dmidecode -t memory   # a channel without a module? then atoll probe --remeasure");
  }

  void cgroup_memory() {
    const auto tight = tightest(s_.bounds, MemoryBound::Of::kMachine);
    if (!tight) return unknown("memory limit");
    const bool is_limit = tight->name != "MemAvailable";
    if (is_limit && s_.memory_bytes && tight->limit_bytes < *s_.memory_bytes / 2) {
      return warn("memory limit",
                  fmt::format("{}: {}, the machine has {}", tight->name,
                              format_bytes(tight->limit_bytes), format_bytes(*s_.memory_bytes)),
                  "experts that would fit are read from the drive for every token that wants them",
                  "systemctl set-property UNIT MemoryMax=infinity   # or the container's --memory");
    }
    ok("memory limit", fmt::format("{} free of {}", format_bytes(tight->free_bytes),
                                   format_bytes(tight->limit_bytes)));
  }

  void against_class(const std::string& name, double measured, double described,
                     const std::string& why, const std::string& fix) {
    if (measured == 0) {
      return unknown(name, name == "drive rate" ? "not measured: atoll probe --drive DIR"
                                                : "not measured: atoll probe");
    }
    if (described > 0 && measured < kOfClass * described) {
      return warn(
          name, fmt::format("{}, the file says {}", format_rate(measured), format_rate(described)),
          why, fix);
    }
    ok(name, format_rate(measured));
  }

  void limits() {
    if (!s_.memlock_bytes) {
      unknown("memlock");
    } else if (*s_.memlock_bytes < kMemlockWanted) {
      warn("memlock", format_bytes(*s_.memlock_bytes),
           "read buffers can't be registered with io_uring, nor rows with RDMA: cold experts come "
           "later",
           "LimitMEMLOCK=infinity in the unit, or `* - memlock unlimited` in limits.conf");
    } else {
      ok("memlock",
         *s_.memlock_bytes == UINT64_MAX ? "unlimited" : format_bytes(*s_.memlock_bytes));
    }
    if (!s_.open_files) {
      unknown("open files");
    } else if (*s_.open_files < kFilesWanted) {
      wrong(*s_.open_files < kFilesLeast ? Verdict::kBlocker : Verdict::kWarning, "open files",
            std::to_string(*s_.open_files),
            "163 shards and a connection for each client: the server refuses those that are too "
            "many",
            "LimitNOFILE=65536 in the unit, or ulimit -n 65536");
    } else {
      ok("open files", *s_.open_files == UINT64_MAX ? "unlimited" : std::to_string(*s_.open_files));
    }
    if (s_.max_map_count && *s_.max_map_count < kMapsWanted) {
      warn("memory maps", std::to_string(*s_.max_map_count),
           "loading can fail although there is memory",
           fmt::format("sysctl -w vm.max_map_count={}", kMapsWanted));
    } else {
      ok("memory maps", s_.max_map_count ? std::to_string(*s_.max_map_count) : "not told");
    }
    if (s_.pids_max && *s_.pids_max < kPidsLeast) {
      wrong(Verdict::kBlocker, "threads", fmt::format("{} in this cgroup", *s_.pids_max),
            "threads can't be started", "systemctl set-property UNIT TasksMax=infinity");
    } else {
      ok("threads", s_.pids_max ? fmt::format("{} in this cgroup", *s_.pids_max) : "not limited");
    }
    if (!s_.shm_free_bytes) {
      unknown("shared memory");
    } else if (*s_.shm_free_bytes < kShmWanted) {
      wrong(*s_.shm_free_bytes < kShmLeast ? Verdict::kBlocker : Verdict::kWarning, "shared memory",
            fmt::format("{} free in /dev/shm", format_bytes(*s_.shm_free_bytes)),
            "rows between processes of one machine go through it",
            "mount -o remount,size=2G /dev/shm   # or the container's --shm-size=2g");
    } else {
      ok("shared memory", fmt::format("{} free", format_bytes(*s_.shm_free_bytes)));
    }
  }

  void storage() {
    if (s_.io_uring_error.empty()) {
      ok("io_uring", "allowed");
    } else {
      warn(
          "io_uring", s_.io_uring_error,
          "drives are read by threads instead, which take cores from computing",
          "sysctl -w kernel.io_uring_disabled=0   # in containers: a seccomp profile that lets it");
    }
    for (const DirectoryFacts& directory : s_.directories) {
      const std::string name = "model " + directory.path;
      if (!directory.is_there) {
        wrong(Verdict::kBlocker, name, "isn't there", "nothing can be loaded",
              "mount it, or correct `model`");
        continue;
      }
      if (directory.takes_o_direct == false) {
        warn(name, "refuses O_DIRECT",
             "what is read goes through the page cache: a seventh of the drive's rate",
             "keep packs on ext4 or xfs on a local drive");
      } else if (directory.rotates) {
        warn(name, "on a disk that rotates", "a cold expert takes 10 ms to find",
             "keep packs on NVMe");
      } else if (directory.free_bytes && *directory.free_bytes < kFreeDiskWanted) {
        warn(name, fmt::format("{} free", format_bytes(*directory.free_bytes)),
             "usage files and packs can't be written", "df -h; remove what isn't needed");
      } else {
        ok(name, directory.takes_o_direct ? "read with O_DIRECT" : "is there");
      }
    }
    against_class("drive rate", s_.drive_bytes_per_second, s_.described_drive,
                  "cold experts, and loading, take longer in proportion",
                  "nvme smart-log; lspci -vv | grep LnkSta   # fewer lanes? then atoll probe "
                  "--remeasure --drive DIR");
  }

  void network() {
    double fastest = 0;
    bool any_up = false;
    for (const NicFacts& nic : s_.nics) {
      if (!nic.is_up) continue;
      any_up = true;
      fastest = std::max(fastest, nic.bytes_per_second);
      const std::string name = "mtu " + nic.name;
      const bool fast = nic.bytes_per_second >= 10e9 / 8 * 0.99;
      if (nic.mtu < kMtuLeast) {
        warn(name, std::to_string(nic.mtu), "rows are cut into many packets",
             fmt::format("ip link set {} mtu 1500", nic.name));
      } else if (fast && s_.has_other_machines && nic.mtu < kMtuWanted) {
        warn(name, fmt::format("{} at {:.0f} Gbit/s", nic.mtu, nic.bytes_per_second * 8e-9),
             "a prompt's rows take six times the packets, and the cores that handle them",
             fmt::format("ip link set {} mtu 9000   # on all machines and the switch", nic.name));
      } else {
        ok(name, std::to_string(nic.mtu));
      }
    }
    if (!s_.has_other_machines) {
      unknown("network", "all on one machine");
      return;
    }
    if (!any_up) {
      wrong(Verdict::kBlocker, "network", "no device is up", "other machines can't be reached",
            "ip link; ip link set DEVICE up");
    } else if (s_.described_nic > 0 && fastest > 0 && fastest < kNicOfClass * s_.described_nic) {
      warn("network",
           fmt::format("{:.4g} Gbit/s, the file says {:.4g}", fastest * 8e-9,
                       s_.described_nic * 8e-9),
           "prompts wait for their rows", "ethtool DEVICE   # cable, port or negotiation");
    } else {
      ok("network", fastest > 0 ? fmt::format("{:.4g} Gbit/s", fastest * 8e-9) : "up");
    }
    const int64_t least =
        std::min(s_.tcp_rmem_max.value_or(INT64_MAX), s_.tcp_wmem_max.value_or(INT64_MAX));
    if (least < kSocketBytesWanted) {
      warn(
          "socket buffers", format_bytes(static_cast<uint64_t>(least)),
          "TCP can't keep a fast link full while a prompt's rows travel",
          fmt::format("sysctl -w net.core.rmem_max={0} net.core.wmem_max={0}", kSocketBytesWanted));
    } else {
      ok("socket buffers", "large enough");
    }
  }

  void rest() {
    if (!s_.clock_is_synchronized) {
      unknown("clock");
    } else if (!*s_.clock_is_synchronized && s_.has_other_machines) {
      warn("clock", "not synchronized",
           "certificates may count as not yet valid, and traces of machines don't fit together",
           "systemctl enable --now chrony");
    } else {
      ok("clock", *s_.clock_is_synchronized ? "synchronized" : "not synchronized, one machine");
    }
    for (const PortFacts& port : s_.ports) {
      if (port.error.empty()) {
        ok("port " + port.address, port.who);
      } else {
        wrong(Verdict::kBlocker, "port " + port.address,
              fmt::format("{}: {}", port.who, port.error), "it can't listen there",
              fmt::format("ss -ltnp '( sport = :{} )'   # who has it? else another address in the "
                          "file",
                          port.address.substr(port.address.rfind(':') + 1)));
      }
    }
    for (const SecretFacts& secret : s_.secrets) {
      const std::string name = "keys " + secret.path;
      if (!secret.is_there) {
        wrong(Verdict::kBlocker, name, "aren't there", "nobody can prove who he is",
              "atoll keys cluster.yaml --out " + secret.path);
      } else if ((secret.mode & 077) != 0) {
        warn(name, fmt::format("mode {:o}", secret.mode), "other users can read them",
             fmt::format("chmod go= {}", secret.path));
      } else {
        ok(name, "for this user alone");
      }
    }
    const int major = std::atoi(s_.kernel.c_str());
    if (major == 0) {
      unknown("kernel");
    } else if (major < 5) {
      warn("kernel", s_.kernel, "no io_uring worth using before 5.10",
           "a distribution with Linux 5.10 or newer");
    } else {
      ok("kernel", s_.kernel);
    }
    if (s_.gpu_wanted.empty()) {
      unknown("gpu", "none is asked for");
    } else if (!s_.gpu_error.empty()) {
      wrong(Verdict::kBlocker, "gpu", fmt::format("{}: {}", s_.gpu_wanted, s_.gpu_error),
            "the coordinator was told to compute there", "nvidia-smi; or coordinator.device: auto");
    } else {
      ok("gpu", s_.gpu_wanted);
    }
  }

  const Snapshot& s_;
  std::vector<Finding> findings_;
};

}  // namespace

std::string_view to_string(Verdict verdict) {
  switch (verdict) {
    case Verdict::kOk:
      return "ok";
    case Verdict::kUnknown:
      return "unknown";
    case Verdict::kWarning:
      return "warning";
    case Verdict::kBlocker:
      return "blocker";
  }
  CHECK(false);
}

std::vector<Finding> examine(const Snapshot& snapshot) { return Doctor(snapshot).examine(); }

bool has_blockers(const std::vector<Finding>& findings) {
  return std::any_of(findings.begin(), findings.end(),
                     [](const Finding& finding) { return finding.verdict == Verdict::kBlocker; });
}

}  // namespace atl::topology
