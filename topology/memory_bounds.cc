#include "topology/memory_bounds.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <fstream>
#include <iterator>
#include <sstream>
#include <string_view>

#include "base/units.h"

namespace atl::topology {
namespace {

// Version 1 writes "no limit" as the largest number of whole pages.
constexpr uint64_t kUnlimitedV1 = uint64_t{1} << 62;

std::optional<uint64_t> number(std::string_view text) {
  while (!text.empty() && (text.front() == ' ' || text.front() == '\t')) text.remove_prefix(1);
  uint64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end == text.data()) return std::nullopt;
  return value;
}

// The number behind `key` at the beginning of a line: "MemAvailable:   1024 kB", "inactive_file 5".
std::optional<uint64_t> field(const std::string& text, std::string_view key) {
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    if (line.starts_with(key)) return number(std::string_view(line).substr(key.size()));
  }
  return std::nullopt;
}

uint64_t difference(uint64_t limit, uint64_t used) { return limit > used ? limit - used : 0; }

// "\040" and the like stand for characters that would end a field.
std::string unescaped(std::string_view text) {
  std::string plain;
  for (size_t i = 0; i < text.size(); ++i) {
    int code = 0;
    const std::string_view digits = text.substr(i + 1, 3);
    const char* const end = digits.data() + digits.size();
    if (text[i] == '\\' && digits.size() == 3 &&
        std::from_chars(digits.data(), end, code, 8).ptr == end) {
      plain.push_back(static_cast<char>(code));
      i += 3;
    } else {
      plain.push_back(text[i]);
    }
  }
  return plain;
}

// A mounted hierarchy of cgroups that counts memory.
struct Hierarchy {
  int version = 2;
  std::string root;   // the cgroup that is mounted
  std::string mount;  // where
};

// ID PARENT DEV ROOT MOUNT OPTIONS [OPTIONAL...] - TYPE SOURCE SUPER_OPTIONS
std::vector<Hierarchy> memory_hierarchies(const std::string& mountinfo) {
  std::vector<Hierarchy> found;
  std::istringstream lines(mountinfo);
  for (std::string line; std::getline(lines, line);) {
    const size_t dash = line.find(" - ");
    if (dash == std::string::npos) continue;
    std::istringstream before(line.substr(0, dash)), behind(line.substr(dash + 3));
    std::string id, parent, device, root, mount, type, source, options;
    before >> id >> parent >> device >> root >> mount;
    behind >> type >> source >> options;
    const bool counts_memory = ("," + options + ",").find(",memory,") != std::string::npos;
    if (type == "cgroup2") found.push_back({2, unescaped(root), unescaped(mount)});
    if (type == "cgroup" && counts_memory) found.push_back({1, unescaped(root), unescaped(mount)});
  }
  return found;
}

// The process's cgroup: "0::/a/b" in version 2, "7:cpu,memory:/a/b" in version 1.
std::optional<std::string> cgroup_path(const std::string& self_cgroup, int version) {
  std::istringstream lines(self_cgroup);
  for (std::string line; std::getline(lines, line);) {
    const size_t first = line.find(':');
    const size_t second = first == std::string::npos ? first : line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    const bool mine = version == 2
                          ? line.starts_with("0::")
                          : ("," + controllers + ",").find(",memory,") != std::string::npos;
    if (mine) return line.substr(second + 1);
  }
  return std::nullopt;
}

// Of the path as the process sees it, the part below what is mounted. A container often sees its
// own cgroup as the mount's root whatever its path says.
std::string below_mount(const std::string& path, const std::string& root) {
  if (!path.starts_with('/') || path.starts_with("/..")) return "";
  if (root == "/") return path == "/" ? "" : path;
  if (path == root) return "";
  return path.starts_with(root + "/") ? path.substr(root.size()) : "";
}

struct CgroupFiles {
  const char* limits[2];  // the second may be absent
  const char* usage;
  const char* inactive_file;
  const char* active_file;
};
constexpr CgroupFiles kVersion1 = {{"memory.limit_in_bytes", nullptr},
                                   "memory.usage_in_bytes",
                                   "total_inactive_file ",
                                   "total_active_file "};
// Above memory.high nothing fails, but everything is throttled until pages are given back, and ours
// can't be.
constexpr CgroupFiles kVersion2 = {
    {"memory.max", "memory.high"}, "memory.current", "inactive_file ", "active_file "};

void add_cgroup(const ReadFile& read, const Hierarchy& hierarchy, const std::string& below,
                std::vector<MemoryBound>* bounds) {
  const CgroupFiles& files = hierarchy.version == 2 ? kVersion2 : kVersion1;
  const std::string directory = hierarchy.mount + below + "/";
  for (const char* file : files.limits) {
    if (file == nullptr) continue;
    const std::optional<uint64_t> limit = number(read(directory + file));  // "max": none
    if (!limit || *limit >= kUnlimitedV1) continue;
    const std::string stat = read(directory + "memory.stat");
    const uint64_t usage = number(read(directory + files.usage)).value_or(0);
    const uint64_t reclaimable =
        field(stat, files.inactive_file).value_or(0) + field(stat, files.active_file).value_or(0);
    bounds->push_back({MemoryBound::Of::kMachine,
                       fmt::format("{} of cgroup {}", file, below.empty() ? "/" : below), *limit,
                       difference(*limit, difference(usage, reclaimable))});
  }
}

void add_cgroups(const ReadFile& read, std::vector<MemoryBound>* bounds) {
  const std::string self_cgroup = read("/proc/self/cgroup");
  for (const Hierarchy& hierarchy : memory_hierarchies(read("/proc/self/mountinfo"))) {
    const std::optional<std::string> path = cgroup_path(self_cgroup, hierarchy.version);
    if (!path) continue;
    std::string below = below_mount(*path, hierarchy.root);
    add_cgroup(read, hierarchy, below, bounds);
    while (!below.empty()) {
      below.resize(below.rfind('/'));
      add_cgroup(read, hierarchy, below, bounds);
    }
  }
}

// "Max address space         8589934592           unlimited            bytes"
void add_resource_limits(const ReadFile& read, std::vector<MemoryBound>* bounds) {
  const std::string limits = read("/proc/self/limits");
  std::istringstream pages(read("/proc/self/statm"));
  uint64_t total = 0, resident = 0, shared = 0, text = 0, library = 0, data = 0;
  pages >> total >> resident >> shared >> text >> library >> data;
  const auto page = static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
  const auto add = [&](const char* key, const char* name, uint64_t used) {
    const std::optional<uint64_t> limit = field(limits, key);  // "unlimited": none
    if (limit) {
      bounds->push_back({MemoryBound::Of::kProcess, name, *limit, difference(*limit, used)});
    }
  };
  add("Max address space", "ulimit -v", total * page);
  add("Max data size", "ulimit -d", data * page);
}

}  // namespace

std::vector<MemoryBound> memory_bounds(const ReadFile& read) {
  std::vector<MemoryBound> bounds;
  const std::string meminfo = read("/proc/meminfo");
  if (const auto available = field(meminfo, "MemAvailable:")) {
    bounds.push_back({MemoryBound::Of::kMachine, "MemAvailable",
                      field(meminfo, "MemTotal:").value_or(0) * kKiB, *available * kKiB});
  }
  add_cgroups(read, &bounds);
  add_resource_limits(read, &bounds);
  return bounds;
}

std::vector<MemoryBound> memory_bounds() {
  return memory_bounds([](const std::string& path) {
    std::ifstream in(path, std::ios::binary);
    return std::string(std::istreambuf_iterator<char>(in), {});
  });
}

std::optional<MemoryBound> tightest(const std::vector<MemoryBound>& bounds, MemoryBound::Of of) {
  std::optional<MemoryBound> least;
  for (const MemoryBound& bound : bounds) {
    if (bound.of == of && (!least || bound.free_bytes < least->free_bytes)) least = bound;
  }
  return least;
}

}  // namespace atl::topology
