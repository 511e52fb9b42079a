#include "topology/doctor/snapshot.h"

#include <sys/resource.h>
#include <sys/statvfs.h>
#include <sys/timex.h>
#include <sys/utsname.h>

#include <charconv>
#include <cstdlib>

namespace atl::topology {
namespace {

std::string first_line(const std::string& text) {
  std::string line = text.substr(0, text.find('\n'));
  while (!line.empty() && line.back() == ' ') line.pop_back();
  return line;
}

template <typename Number>
std::optional<Number> number(const std::string& text) {
  Number value = 0;
  const auto [end, status] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (status != std::errc() || end == text.data()) return std::nullopt;
  return value;
}

// kB behind a key of /proc/meminfo, as bytes.
std::optional<uint64_t> meminfo(const std::string& text, const std::string& key) {
  const size_t at = text.find(key + ":");
  if (at == std::string::npos) return std::nullopt;
  const size_t digits = text.find_first_of("0123456789", at);
  if (digits == std::string::npos) return std::nullopt;
  const auto kib = number<uint64_t>(text.substr(digits, 20));
  return kib ? std::optional(*kib * 1024) : std::nullopt;
}

std::optional<uint64_t> soft_limit(int resource) {
  rlimit limit{};
  if (getrlimit(static_cast<__rlimit_resource>(resource), &limit) != 0) return std::nullopt;
  return limit.rlim_cur == RLIM_INFINITY ? UINT64_MAX : limit.rlim_cur;
}

}  // namespace

void read_system(const ReadFile& read, const ListNames& list, Snapshot* snapshot) {
  const auto line = [&](const char* path) { return first_line(read(path)); };
  const std::string thp = "/sys/kernel/mm/transparent_hugepage/";
  snapshot->thp_enabled = first_line(read(thp + "enabled"));
  snapshot->thp_defrag = first_line(read(thp + "defrag"));
  snapshot->numa_balancing = number<int>(line("/proc/sys/kernel/numa_balancing"));
  snapshot->zone_reclaim = number<int>(line("/proc/sys/vm/zone_reclaim_mode"));
  snapshot->swappiness = number<int>(line("/proc/sys/vm/swappiness"));
  snapshot->overcommit = number<int>(line("/proc/sys/vm/overcommit_memory"));
  snapshot->max_map_count = number<int64_t>(line("/proc/sys/vm/max_map_count"));
  snapshot->tcp_rmem_max = number<int64_t>(line("/proc/sys/net/core/rmem_max"));
  snapshot->tcp_wmem_max = number<int64_t>(line("/proc/sys/net/core/wmem_max"));
  snapshot->pids_max = number<int64_t>(line("/sys/fs/cgroup/pids.max"));
  snapshot->governor = line("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor");
  snapshot->clocksource = line("/sys/devices/system/clocksource/clocksource0/current_clocksource");
  snapshot->smt_active = line("/sys/devices/system/cpu/smt/active");
  const std::string memory = read("/proc/meminfo");
  snapshot->memory_bytes = meminfo(memory, "MemTotal");
  const auto swap = meminfo(memory, "SwapTotal"), swap_free = meminfo(memory, "SwapFree");
  if (swap && swap_free) snapshot->swap_used_bytes = *swap - std::min(*swap, *swap_free);
  const std::string load = read("/proc/loadavg");
  if (!load.empty()) snapshot->load = std::strtod(load.c_str(), nullptr);
  snapshot->nics = nic_facts(read, list);
  snapshot->bounds = memory_bounds(read);
}

void read_system_limits(Snapshot* snapshot) {
  snapshot->memlock_bytes = soft_limit(RLIMIT_MEMLOCK);
  snapshot->open_files = soft_limit(RLIMIT_NOFILE);
  snapshot->stack_bytes = soft_limit(RLIMIT_STACK);
  timex clock{};
  const int state = adjtimex(&clock);
  if (state >= 0) snapshot->clock_is_synchronized = (clock.status & STA_UNSYNC) == 0;
  struct statvfs shm {};
  if (statvfs("/dev/shm", &shm) == 0) {
    snapshot->shm_free_bytes = static_cast<uint64_t>(shm.f_bavail) * shm.f_frsize;
  }
  utsname name{};
  if (uname(&name) == 0) snapshot->kernel = name.release;
}

}  // namespace atl::topology
