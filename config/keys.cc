#include "config/keys.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>
#include <cmath>

#include "base/units.h"
#include "config/cluster_config.h"

namespace atl::config {
namespace {

using enum ValueType;

constexpr double kBytesMax = 0x1p50, kRateMax = 1e15, kDayMs = 86'400'000;

// What the machine has, for `atoll plan`: in a section of its own, or beside the other keys, where
// `ram` is taken.
void add_machine_keys(std::vector<Key>* keys, const std::string& path, bool has_ram,
                      bool has_drives) {
  if (has_ram) {
    keys->push_back({path + "ram", kBytes, "", "RAM that it has; for planning only", 1, kBytesMax});
  }
  keys->push_back({path + "cores", kInteger, "", "cores that it has; for planning only", 1, 4096});
  keys->push_back(
      {path + "mem_bw", kRate, "", "rate of its memory; for planning only", 1, kRateMax});
  if (has_drives) {
    keys->push_back({path + "drives", kRates, "",
                     "rate of each drive, one or a list: `[{rate: 6GB/s}]`; for planning only", 1,
                     kRateMax});
  }
  keys->push_back({path + "nic", kRate, "", "rate of its network; for planning only", 1, kRateMax});
}

// What nodes[] and node_defaults have in common.
void add_node_keys(std::vector<Key>* keys, const std::string& section) {
  const auto add = [&](Key key) {
    key.path = section + key.path;
    keys->push_back(std::move(key));
  };
  add({"model", kPaths, "",
       "checkpoint or pack there, or a list of packs on several drives; the file's `model` if not "
       "said"});
  add({"ram", kBytes, "", "budget of the node's memory; not said: all its tiles stay in RAM", 1,
       kBytesMax});
  add({"threads", kInteger, "0", "compute threads; 0: one per core", 0, 4096});
  add({"numa_node", kInteger, "", "NUMA domain to run in (the kernel's number)", 0, 65536});
  add({"tiles", kInteger, "", "tiles of each expert that it keeps; for all nodes or for none", 0,
       65535});
  add({"share", kNumber, "1", "its share of the tiles in proportion to the others'", 0, 1e6});
  add({"device", kText, "", "network device of its rows, as UCX names it: `eth1`, `mlx5_0:1`"});
  add_machine_keys(keys, section, false, true);
  add_machine_keys(keys, section + "machine.", true, true);
}

// What each of several coordinators may have of its own. What one doesn't say is as for all.
void add_coordinator_keys(std::vector<Key>* keys, const std::string& section) {
  const bool is_shared = section == "coordinator.";
  const auto add = [&](Key key) {
    key.path = section + key.path;
    if (!is_shared) key.fallback.clear();
    keys->push_back(std::move(key));
  };
  add({"name", kName, "coordinator",
       is_shared
           ? "its name in its certificate, and in logs of nodes"
           : "one of several coordinators: `atoll serve --coordinator NAME`; beside it `listen`, "
             "`admin`, `device`, `threads`, `kv_cache`, `context`, `draft`, `draft_tokens`, "
             "`api_keys`, "
             "`model_name` where they aren't `coordinator`'s; required"});
  add({"listen", kAddress, "127.0.0.1:8080", "address of the HTTP API"});
  add({"admin", kAddress, "", "address of `atoll cluster`, on loopback; not said: there is none"});
  add({"device", kDevice, "auto",
       "what it computes on: `auto` (a GPU if there is one), `cpu`, `cuda:N`"});
  add({"threads", kInteger, "0", "compute threads; 0: one per core", 0, 4096});
  add({"kv_cache", kBytes, "", "memory of the KV cache; not said: 16 contexts, at most 4GiB", 1,
       kBytesMax});
  add({"context", kInteger, "0", "most tokens of a request; 0: what model and KV cache hold", 0,
       0x1p30});
  add({"draft",
       kChoice,
       "off",
       "tokens computed ahead where that pays: `mtp`: by the model's next-token layer, whose "
       "experts the nodes then hold; `lookup`: what followed the same tokens earlier in the text; "
       "`auto`: whatever there is",
       0,
       0,
       {"off", "mtp", "lookup", "auto"}});
  add({"draft_tokens", kInteger, "8", "at most, of a request and step", 1, 64});
  add({"api_keys", kPath, "", "file of the API's keys, a `name key` per line"});
  add({"model_name", kText, "", "name that clients ask for; the directory's if not said"});
}

std::vector<Key> make_keys() {
  const std::vector<std::string> formats = {"auto", "fp8", "bf16", "f32", "int8", "int4"};
  std::vector<Key> keys = {
      {"cluster", kName, "atoll", "the cluster's name, in logs"},
      {"model", kPaths, "", "checkpoint or pack, or a list of packs on several drives; required"},
      {"numerics.format", kChoice, "auto",
       "weights of routed experts are converted to this; `auto`: as in the checkpoint", 0, 0,
       formats},
      {"numerics.dense_format", kChoice, "auto",
       "weights of all other linear layers are converted to this", 0, 0, formats},
      {"numerics.activations",
       kChoice,
       "",
       "rows that meet int4 weights; `i8` if not said",
       0,
       0,
       {"i8", "f32"}},
      {"numerics.wire",
       kChoice,
       "bf16",
       "rows sent to nodes are rounded to this",
       0,
       0,
       {"bf16", "f32"}},
      {"numerics.kv",
       kChoice,
       "bf16",
       "entries of the KV cache are rounded to this",
       0,
       0,
       {"bf16", "f32"}},
  };
  add_coordinator_keys(&keys, "coordinator.");
  const std::vector<Key> more = {
      {"coordinator.device.name", kText, "",
       "a GPU as it is described: `rtx4090`; for planning only"},
      {"coordinator.device.memory", kBytes, "", "its memory; for planning only", 1, kBytesMax},
      {"coordinator.device.mem_bw", kRate, "", "rate of its memory; for planning only", 1,
       kRateMax},
      {"coordinator.chunk", kInteger, "512", "rows of a step and of a dispatch", 1, 8192},
      {"network.trust",
       kChoice,
       "trusted",
       "`trusted`: rows travel in the clear; `encrypted`: they don't",
       0,
       0,
       {"trusted", "encrypted"}},
      {"network.transport",
       kChoice,
       "auto",
       "link of rows: shared memory on one machine, or TCP",
       0,
       0,
       {"auto", "shm", "tcp"}},
      {"network.device", kText, "",
       "network device of rows, as UCX names it; not said: `lo` on one machine, else UCX's choice"},
      {"network.ports", kPorts, "",
       "TCP ports where rows are taken, for a firewall between machines: `7100-7199`, at least one "
       "for each process of a machine; not said: any"},
      {"security.keys", kPath, "", "directory of certificates, for nodes on other machines"},
      {"security.secret_file", kPath, "",
       "without keys: secret of coordinator and nodes, made if it isn't there; FILE.secret if not "
       "said"},
      {"redundancy", kInteger, "1",
       "nodes that keep each tile in RAM, where there is room: a lost one's are asked from others "
       "at "
       "once",
       1, 8},
      {"hedging",
       kChoice,
       "auto",
       "what a node is late with is also asked from others, and the first answer counts; `auto`: "
       "with `redundancy`, unless the nodes are this process's children",
       0,
       0,
       {"auto", "on", "off"}},
      {"hedge_after", kNumber, "4", "late: so many times what is usual for the node", 1, 1000},
      {"balance",
       kChoice,
       "auto",
       "tiles move from nodes that have become slow to others, and back; `auto`: unless nodes say "
       "their `tiles` or are this process's children",
       0,
       0,
       {"auto", "on", "off"}},
      {"timeouts.dispatch", kDuration, "50ms",
       "with `hedging`: a node that is silent for so long about what it was asked, or 8 times what "
       "99 of 100 of its answers take, is asked nothing until it answers",
       1, 600'000},
      {"timeouts.heartbeat", kDuration, "100ms", "a node is asked so often whether it lives", 10,
       60'000},
      {"timeouts.suspect", kDuration, "300ms", "after so long without an answer others are asked",
       20, 600'000},
      {"timeouts.lost", kDuration, "1s", "after so long it counts as lost", 50, kDayMs},
      {"timeouts.grace", kDuration, "10s",
       "after so long a lost node's tiles are planned onto others, which load them", 0, kDayMs},
      {"timeouts.backoff_max", kDuration, "30s", "longest pause before a lost node is tried again",
       250, kDayMs},
      {"timeouts.comeback", kDuration, "5s",
       "a request waits so long for a node's return when none is left", 0, 600'000},
      {"plan.aim",
       kChoice,
       "latency",
       "what `atoll plan` makes fast: one sequence, or all of `plan.sequences` together",
       0,
       0,
       {"latency", "throughput"}},
      {"plan.sequences", kInteger, "1", "sequences served at once, that the KV cache has room for",
       1, 4096},
      {"plan.context", kInteger, "0",
       "tokens of each of them; 0: coordinator.context, or 8192 if that is 0, too", 0, 0x1p30},
      {"plan.prompt", kInteger, "1024", "tokens of the prompt whose first token is foretold", 1,
       0x1p30},
      {"plan.usage", kPath, "",
       "file of how often each expert is used (`usage` of a pack); not said: all alike"},
  };
  keys.insert(keys.end(), more.begin(), more.end());
  add_machine_keys(&keys, "coordinator.", true, false);
  add_machine_keys(&keys, "coordinator.machine.", true, false);
  add_coordinator_keys(&keys, "coordinators[].");
  add_node_keys(&keys, "node_defaults.");
  keys.push_back({"nodes[].name", kName, "", "the node's name: `atoll node --name`; required"});
  keys.push_back(
      {"nodes[].control", kAddress, "",
       "HOST:PORT where it listens and the coordinator dials; required, but for planning"});
  add_node_keys(&keys, "nodes[].");
  return keys;
}

Status invalid(std::string_view expected, std::string_view found) {
  return Error{ErrorCode::kInvalid, fmt::format("expected {}, found '{}'", expected, found)};
}

// A number and what stands behind it, without spaces between.
struct NumberWithUnit {
  double number = 0;
  std::string_view unit;
};
std::optional<NumberWithUnit> split_number(std::string_view text) {
  NumberWithUnit split;
  const char* end = text.data() + text.size();
  const auto [rest, status] =
      std::from_chars(text.data(), end, split.number, std::chars_format::fixed);
  if (status != std::errc() || !std::isfinite(split.number) || split.number < 0) return {};
  split.unit = std::string_view(rest, static_cast<size_t>(end - rest));
  while (split.unit.starts_with(' ')) split.unit.remove_prefix(1);
  return split;
}

Status check_range(const Key& key, double value, std::string_view text, std::string low,
                   std::string high) {
  if (value >= key.min && value <= key.max) return {};
  return invalid(fmt::format("{} to {}", low, high), text);
}

std::string format_ms(double ms) {
  return ms < 1000
             ? fmt::format("{}ms", ms)
             : (ms < 60'000 ? fmt::format("{}s", ms / 1000) : fmt::format("{}min", ms / 60'000));
}

bool is_name(std::string_view text) {
  return !text.empty() && text.size() <= 63 && text != "." && text != ".." &&
         std::all_of(text.begin(), text.end(), [](unsigned char c) {
           return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
                  c == '-' || c == '_' || c == '.';
         });
}

bool is_device(std::string_view text) {
  return text == "auto" || text == "cpu" ||
         (text.starts_with("cuda:") && text.size() > 5 && text.size() <= 8 &&
          text.find_first_not_of("0123456789", 5) == std::string_view::npos);
}

}  // namespace

std::span<const Key> keys() {
  static const std::vector<Key> table = make_keys();
  return table;
}

const Key* find_key(std::string_view path) {
  const auto all = keys();
  const auto found =
      std::find_if(all.begin(), all.end(), [&](const Key& key) { return key.path == path; });
  return found == all.end() ? nullptr : &*found;
}

std::vector<std::string> names_below(std::string_view section) {
  const std::string prefix = section.empty() ? "" : std::string(section) + ".";
  std::vector<std::string> names;
  for (const Key& key : keys()) {
    if (!key.path.starts_with(prefix)) continue;
    const std::string name =
        key.path.substr(prefix.size(), key.path.find_first_of(".[", prefix.size()) - prefix.size());
    if (std::find(names.begin(), names.end(), name) == names.end()) names.push_back(name);
  }
  return names;
}

std::string Key::environment() const {
  if (path.starts_with("node_defaults.") || path == "nodes[].name" || is_of_coordinator())
    return "";
  std::string name = "ATOLL_" + (is_of_node() ? "node." + path.substr(8) : path);
  for (char& c : name) c = c == '.' ? '_' : static_cast<char>(std::toupper(c));
  return name;
}

Result<int64_t> parse_duration_ms(std::string_view text) {
  constexpr std::pair<std::string_view, double> kUnits[] = {
      {"ms", 1}, {"s", 1000}, {"min", 60'000}, {"h", 3'600'000}};
  if (const auto split = split_number(text)) {
    for (const auto& [unit, factor] : kUnits) {
      const double ms = split->number * factor;
      if (split->unit == unit && ms < 1e15) return std::llround(ms);
    }
  }
  return Error{ErrorCode::kInvalid,
               fmt::format("expected a duration such as 100ms, 1.5s, 2min, found '{}'", text)};
}

Result<double> parse_rate(std::string_view text) {
  constexpr std::pair<std::string_view, double> kUnits[] = {
      {"kB/s", 1e3},       {"MB/s", 1e6},        {"GB/s", 1e9},     {"TB/s", 1e12},
      {"KiB/s", 0x1p10},   {"MiB/s", 0x1p20},    {"GiB/s", 0x1p30}, {"Mbit/s", 1e6 / 8},
      {"Gbit/s", 1e9 / 8}, {"Tbit/s", 1e12 / 8}, {"B/s", 1}};
  if (const auto split = split_number(text)) {
    for (const auto& [unit, factor] : kUnits) {
      if (split->unit == unit) return split->number * factor;
    }
  }
  return Error{ErrorCode::kInvalid,
               fmt::format("expected a rate such as 250GB/s or 100Gbit/s, found '{}'", text)};
}

Result<PortRange> parse_ports(std::string_view text) {
  PortRange range;
  const char* end = text.data() + text.size();
  auto [rest, status] = std::from_chars(text.data(), end, range.first);
  range.last = range.first;
  if (status == std::errc() && rest != end && *rest == '-') {
    const auto last = std::from_chars(rest + 1, end, range.last);
    rest = last.ptr;
    status = last.ec;
  }
  if (status == std::errc() && rest == end && range.first > 0 && range.first <= range.last) {
    return range;
  }
  return Error{ErrorCode::kInvalid,
               fmt::format("expected ports of 1 to 65535 such as 7100-7199, found '{}'", text)};
}

Status check_value(const Key& key, std::string_view text) {
  if (text.empty()) return Error{ErrorCode::kInvalid, "has no value: leave the key out"};
  switch (key.type) {
    case kText:
    case kPath:
    case kPaths:
      return {};
    case kName:
      if (is_name(text)) return {};
      return invalid("a name of up to 63 letters, digits, - _ and .", text);
    case kAddress: {
      const auto address = parse_address(text, key.path.ends_with(".listen"));
      return address ? Status() : Status(address.error());
    }
    case kChoice:
      if (std::find(key.choices.begin(), key.choices.end(), text) != key.choices.end()) return {};
      return invalid(fmt::format("one of {}", fmt::join(key.choices, ", ")), text);
    case kDevice:
      if (is_device(text)) return {};
      return invalid("auto, cpu or cuda:N", text);
    case kInteger: {
      int64_t value = 0;
      const char* end = text.data() + text.size();
      const auto [rest, status] = std::from_chars(text.data(), end, value);
      const std::string low = fmt::format("a whole number from {:.0f}", key.min);
      const std::string high = fmt::format("{:.0f}", key.max);
      if (status != std::errc() || rest != end) return invalid(low + " to " + high, text);
      return check_range(key, static_cast<double>(value), text, low, high);
    }
    case kNumber: {
      const auto split = split_number(text);
      const std::string low = fmt::format("a number from {}", key.min);
      const std::string high = fmt::format("{}", key.max);
      if (!split || !split->unit.empty()) return invalid(low + " to " + high, text);
      return check_range(key, split->number, text, low, high);
    }
    case kBytes: {
      const auto bytes = parse_bytes(text);
      if (!bytes) return invalid("a size with its unit such as 24GiB", text);
      return check_range(key, static_cast<double>(*bytes), text, "a size from 1B", "1024TiB");
    }
    case kDuration: {
      const auto ms = parse_duration_ms(text);
      if (!ms) return ms.error();
      return check_range(key, static_cast<double>(*ms), text, format_ms(key.min),
                         format_ms(key.max));
    }
    case kPorts: {
      const auto ports = parse_ports(text);
      return ports ? Status() : Status(ports.error());
    }
    case kRate:
    case kRates: {
      const auto rate = parse_rate(text);
      if (!rate) return rate.error();
      return check_range(key, *rate, text, "a rate from 1B/s", "1000TB/s");
    }
  }
  return {};
}

}  // namespace atl::config
