// The one table of the cluster file's keys.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace atl::config {

enum class ValueType : uint8_t {
  kText,      // any printable text
  kName,      // letters, digits, - _ and .
  kPath,      // relative to the file's directory
  kPaths,     // one, or a list
  kAddress,   // HOST:PORT
  kChoice,    // one of a few words
  kDevice,    // auto, cpu, cuda:N
  kInteger,   // min to max
  kNumber,    // min to max
  kBytes,     // 24GiB
  kDuration,  // 100ms
  kRate,      // 250GB/s, 100Gbit/s
  kRates,     // one, or a list
  kPorts,     // 7100-7199, or one
};

// TCP ports, both ends with it; 0 and 0: any.
struct PortRange {
  uint16_t first = 0, last = 0;
  friend bool operator==(const PortRange&, const PortRange&) = default;
};

struct Key {
  std::string path;  // "coordinator.listen", "nodes[].ram"
  ValueType type = ValueType::kText;
  std::string fallback;     // the default's text; "": none
  std::string about;        // one line, for docs and schema
  double min = 0, max = 0;  // of integers, numbers, bytes, durations (ms), rates (bytes/s)
  std::vector<std::string> choices = {};

  bool is_list() const { return type == ValueType::kPaths || type == ValueType::kRates; }
  bool is_of_node() const { return path.starts_with("nodes[]."); }
  bool is_of_coordinator() const { return path.starts_with("coordinators[]."); }
  // "ATOLL_COORDINATOR_LISTEN"; nodes[].ram: "ATOLL_NODE_RAM", of the node that the process is.
  // "": it can't be set by the environment.
  std::string environment() const;
};

// In the file's order; every key of nodes[] but name and control is in node_defaults, too, and
// every one of coordinators[] in coordinator.
std::span<const Key> keys();
// nullptr: there is no such key.
const Key* find_key(std::string_view path);
// Keys directly below a section ("" for the top): "coordinator", "listen", "nodes".
std::vector<std::string> names_below(std::string_view section);

inline constexpr int kNodesMax = 256, kCoordinatorsMax = 64;

// kInvalid without the key's name: "expected a duration such as 100ms, found 'fast'".
Status check_value(const Key& key, std::string_view text);

// Of checked texts.
Result<int64_t> parse_duration_ms(std::string_view text);
Result<double> parse_rate(std::string_view text);  // bytes per second
Result<PortRange> parse_ports(std::string_view text);

}  // namespace atl::config
