#include "config/cluster_config.h"

#include <arpa/inet.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <numeric>
#include <set>

#include "base/check.h"
#include "base/units.h"
#include "config/keys.h"

namespace atl::config {
namespace {

namespace fs = std::filesystem;

// Settings as values of their types. What a key holds was checked when it was read.
class Values {
 public:
  explicit Values(const Settings& settings)
      : settings_(settings), directory_(settings.file().parent_path()) {}

  const Setting& at(const std::string& path) const { return settings_.at(path); }

  std::string text(const std::string& path) const {
    const Setting& setting = at(path);
    return setting.is_set() ? setting.text() : "";
  }
  std::optional<int64_t> integer(const std::string& path) const {
    const Setting& setting = at(path);
    if (!setting.is_set()) return std::nullopt;
    int64_t value = 0;
    const std::string& text = setting.text();
    CHECK(std::from_chars(text.data(), text.data() + text.size(), value).ec == std::errc());
    return value;
  }
  double number(const std::string& path) const { return std::stod(at(path).text()); }
  std::optional<uint64_t> bytes(const std::string& path) const {
    const Setting& setting = at(path);
    if (!setting.is_set()) return std::nullopt;
    return parse_bytes(setting.text()).value();
  }
  std::chrono::milliseconds duration(const std::string& path) const {
    return std::chrono::milliseconds(parse_duration_ms(at(path).text()).value());
  }
  std::vector<double> rates(const std::string& path) const {
    std::vector<double> rates;
    for (const std::string& item : at(path).items) rates.push_back(parse_rate(item).value());
    return rates;
  }
  double rate(const std::string& path) const {
    const std::vector<double> all = rates(path);
    return all.empty() ? 0 : all.front();
  }
  std::vector<fs::path> paths(const std::string& path) const {
    std::vector<fs::path> paths;
    for (const std::string& item : at(path).items) {
      paths.push_back((directory_ / item).lexically_normal());
    }
    return paths;
  }
  fs::path path(const std::string& path) const {
    const std::vector<fs::path> all = paths(path);
    return all.empty() ? fs::path() : all.front();
  }

  // "cluster.yaml:4:9: nodes[1].control: WHAT".
  [[noreturn]] void fail(const std::string& path, std::string_view what) const {
    const Setting& setting = at(path);
    throw LoadError(fmt::format("{}: {}: {}", setting.where, path, what));
  }

 private:
  const Settings& settings_;
  const fs::path directory_;
};

// Beside the section's other keys or in its `machine`; the former count. A node's `ram` there is
// its budget and not what the machine has.
MachineConfig read_machine(const Values& values, const std::string& section, bool is_node) {
  MachineConfig machine;
  for (const std::string& path : {section + ".machine.", section + "."}) {
    const auto is_set = [&](const char* key) { return values.at(path + key).is_set(); };
    const bool has_ram = !is_node || path.ends_with("machine.");
    if (has_ram && is_set("ram")) machine.ram_bytes = *values.bytes(path + "ram");
    if (is_set("cores")) machine.cores = static_cast<int>(*values.integer(path + "cores"));
    if (is_set("mem_bw")) machine.memory_bytes_per_second = values.rate(path + "mem_bw");
    if (is_node && is_set("drives")) {
      machine.drive_bytes_per_second = values.rates(path + "drives");
    }
    if (is_set("nic")) machine.nic_bytes_per_second = values.rate(path + "nic");
  }
  return machine;
}

void take_models(std::vector<fs::path> paths, fs::path* model, std::vector<fs::path>* stripes) {
  if (paths.empty()) return;
  *model = paths.front();
  stripes->assign(paths.begin() + 1, paths.end());
}

// A key of one of several coordinators. As it says it itself, unless it doesn't or what is said of
// all comes from somewhere stronger: a flag or the environment is about the process that reads it.
//   place  in `coordinators`; -1: the file has no such list
std::string coordinator_path(const Values& values, int place, const char* key) {
  const std::string shared = std::string("coordinator.") + key;
  if (place < 0) return shared;
  const std::string own = fmt::format("coordinators[{}].{}", place, key);
  const bool is_own =
      std::string_view(key) == "name" ||
      (values.at(own).is_set() && values.at(own).origin >= values.at(shared).origin);
  return is_own ? own : shared;
}

CoordinatorConfig read_coordinator(const Values& values, int place) {
  const auto path = [&](const char* key) { return coordinator_path(values, place, key); };
  CoordinatorConfig coordinator;
  coordinator.name = values.text(path("name"));
  coordinator.listen = parse_address(values.text(path("listen")), true).value();
  if (values.at(path("admin")).is_set()) {
    coordinator.admin = parse_address(values.text(path("admin"))).value();
    if (!coordinator.admin->is_loopback()) {
      values.fail(
          path("admin"),
          fmt::format("'{}' can be reached from other machines: expected a loopback address "
                      "such as 127.0.0.1:7900",
                      coordinator.admin->text()));
    }
    if (*coordinator.admin == coordinator.listen) {
      values.fail(path("admin"), fmt::format("the same address as {}", path("listen")));
    }
  }
  coordinator.device = values.text(path("device"));
  coordinator.threads = static_cast<int>(values.integer(path("threads")).value_or(0));
  coordinator.kv_cache_bytes = values.bytes(path("kv_cache"));
  coordinator.context = values.integer(path("context")).value_or(0);
  coordinator.draft = values.text(path("draft"));
  coordinator.draft_tokens = values.integer(path("draft_tokens")).value();
  coordinator.rows_max = values.integer("coordinator.chunk").value();
  coordinator.api_keys = values.path(path("api_keys"));
  coordinator.model_name = values.text(path("model_name"));
  coordinator.machine = read_machine(values, "coordinator", false);
  coordinator.described_device = {values.text("coordinator.device.name"),
                                  values.bytes("coordinator.device.memory").value_or(0),
                                  values.rate("coordinator.device.mem_bw")};
  return coordinator;
}

// All coordinators; of several names must differ. Addresses need not: machines may.
void read_coordinators(const Values& values, int num_coordinators, std::string_view wanted,
                       ClusterConfig* config) {
  if (num_coordinators == 0) {
    config->coordinator = read_coordinator(values, -1);
    config->coordinator_names = {config->coordinator.name};
  }
  for (int c = 0; c < num_coordinators; ++c) {
    const CoordinatorConfig coordinator = read_coordinator(values, c);
    const auto& names = config->coordinator_names;
    if (std::find(names.begin(), names.end(), coordinator.name) != names.end()) {
      values.fail(fmt::format("coordinators[{}].name", c),
                  fmt::format("'{}' is another one's name, too", coordinator.name));
    }
    if (c == 0 || coordinator.name == wanted) config->coordinator = coordinator;
    config->coordinator_names.push_back(coordinator.name);
  }
  if (wanted.empty() || config->coordinator.name == wanted) return;
  throw LoadError(fmt::format("{}: no coordinator '{}': expected one of {}",
                              config->file.filename().string(), wanted,
                              fmt::join(config->coordinator_names, ", ")));
}

PlanConfig read_plan(const Values& values) {
  PlanConfig plan;
  plan.for_throughput = values.text("plan.aim") == "throughput";
  plan.sequences = static_cast<int>(values.integer("plan.sequences").value());
  plan.context = values.integer("plan.context").value();
  plan.prompt = values.integer("plan.prompt").value();
  plan.usage = values.path("plan.usage");
  return plan;
}

TimeoutsConfig read_timeouts(const Values& values) {
  TimeoutsConfig timeouts;
  timeouts.dispatch = values.duration("timeouts.dispatch");
  timeouts.heartbeat = values.duration("timeouts.heartbeat");
  timeouts.suspect = values.duration("timeouts.suspect");
  timeouts.lost = values.duration("timeouts.lost");
  timeouts.grace = values.duration("timeouts.grace");
  timeouts.backoff_max = values.duration("timeouts.backoff_max");
  timeouts.comeback = values.duration("timeouts.comeback");
  if (timeouts.suspect < 2 * timeouts.heartbeat) {
    values.fail("timeouts.suspect",
                fmt::format("{} ms: expected at least two heartbeats, {} ms",
                            timeouts.suspect.count(), 2 * timeouts.heartbeat.count()));
  }
  if (timeouts.lost <= timeouts.suspect) {
    values.fail("timeouts.lost", fmt::format("{} ms: expected more than timeouts.suspect, {} ms",
                                             timeouts.lost.count(), timeouts.suspect.count()));
  }
  return timeouts;
}

NodeConfig read_node(const Values& values, const ClusterConfig& config, int n, Purpose purpose) {
  const std::string section = fmt::format("nodes[{}]", n), path = section + ".";
  NodeConfig node;
  node.name = values.text(path + "name");
  const Setting& control = values.at(path + "control");
  if (control.is_set()) {
    node.control = parse_address(control.text()).value();
  } else if (purpose == Purpose::kServe) {
    throw LoadError(fmt::format("{}: a node without `control`", control.where));
  }
  node.model = config.model;
  node.stripes = config.stripes;
  take_models(values.paths(path + "model"), &node.model, &node.stripes);
  node.ram_bytes = values.bytes(path + "ram");
  node.threads = static_cast<int>(values.integer(path + "threads").value_or(0));
  if (const auto domain = values.integer(path + "numa_node"))
    node.numa_node = static_cast<int>(*domain);
  if (const auto tiles = values.integer(path + "tiles")) node.tiles = static_cast<int>(*tiles);
  node.share = values.number(path + "share");
  node.device = values.text(path + "device");
  node.machine = read_machine(values, section, true);
  return node;
}

//   of_coordinators  keys with their addresses
void check_nodes(const Values& values, const std::vector<std::string>& of_coordinators,
                 const ClusterConfig& config, Purpose purpose) {
  std::map<std::string, int> names;
  std::map<std::string, int> addresses;
  const size_t with_tiles = std::count_if(config.nodes.begin(), config.nodes.end(),
                                          [](const NodeConfig& n) { return n.tiles.has_value(); });
  const bool nobody =
      std::all_of(config.nodes.begin(), config.nodes.end(),
                  [](const NodeConfig& n) { return n.tiles ? *n.tiles == 0 : n.share <= 0; });
  if (nobody && !config.nodes.empty()) {
    values.fail(with_tiles > 0 ? "nodes[0].tiles" : "nodes[0].share",
                "0, as every node's: nobody would keep a tile");
  }
  for (size_t n = 0; n < config.nodes.size(); ++n) {
    const NodeConfig& node = config.nodes[n];
    const std::string path = fmt::format("nodes[{}].", n);
    const auto& coordinators = config.coordinator_names;
    if (std::find(coordinators.begin(), coordinators.end(), node.name) != coordinators.end()) {
      values.fail(path + "name", fmt::format("'{}' is a coordinator's name, too", node.name));
    }
    if (const auto [first, is_new] = names.emplace(node.name, n); !is_new) {
      values.fail(path + "name",
                  fmt::format("'{}' is the name of nodes[{}], too", node.name, first->second));
    }
    if (with_tiles > 0 && !node.tiles && purpose == Purpose::kServe) {
      values.fail(
          path + "name",
          fmt::format("{} has no `tiles` and another node has: expected all or none", node.name));
    }
    if (node.control.port == 0) continue;  // only planned
    const auto [first, is_new] = addresses.emplace(node.control.text(), n);
    if (!is_new) {
      values.fail(path + "control",
                  fmt::format("'{}' is the address of node {}, too", node.control.text(),
                              config.nodes[static_cast<size_t>(first->second)].name));
    }
    for (const std::string& other : of_coordinators) {
      if (values.text(other) != node.control.text()) continue;
      values.fail(path + "control", fmt::format("'{}' is {}, too", node.control.text(), other));
    }
    if (!node.control.is_loopback() && config.security.keys.empty() && purpose == Purpose::kServe) {
      values.fail(path + "control",
                  fmt::format("'{}' can be reached from other machines and needs security.keys, so "
                              "that coordinator and nodes know each other; without keys expected a "
                              "loopback address such as 127.0.0.1:{}",
                              node.control.text(), node.control.port));
    }
  }
}

}  // namespace

std::string Address::text() const {
  return host.find(':') == std::string::npos ? fmt::format("{}:{}", host, port)
                                             : fmt::format("[{}]:{}", host, port);
}

bool Address::is_loopback() const {
  if (host == "localhost" || host == "::1") return true;
  in_addr address{};
  return inet_pton(AF_INET, host.c_str(), &address) == 1 && ntohl(address.s_addr) >> 24 == 127;
}

Result<Address> parse_address(std::string_view text, bool any_port) {
  const auto wrong = [&](std::string_view expected) {
    return Error{ErrorCode::kInvalid, fmt::format("expected {}, found '{}'", expected, text)};
  };
  const size_t colon = text.rfind(':');
  if (colon == std::string_view::npos || colon == 0) return wrong("HOST:PORT");
  Address address;
  std::string_view host = text.substr(0, colon);
  if (host.starts_with('[') && host.ends_with(']')) {
    host = host.substr(1, host.size() - 2);
    in6_addr v6{};
    if (inet_pton(AF_INET6, std::string(host).c_str(), &v6) != 1) {
      return wrong("an IPv6 address in the brackets");
    }
  } else if (host.find(':') != std::string_view::npos) {
    return wrong("HOST:PORT, an IPv6 host in brackets");
  } else {
    const bool is_plain =
        host.size() <= 253 && std::all_of(host.begin(), host.end(), [](char c) {
          return std::isalnum(static_cast<unsigned char>(c)) || c == '.' || c == '-' || c == '_';
        });
    if (!is_plain) return wrong("a host's name or address before the colon");
    const bool is_numeric = host.find_first_not_of("0123456789.") == std::string_view::npos;
    in_addr v4{};
    if (is_numeric && inet_pton(AF_INET, std::string(host).c_str(), &v4) != 1) {
      return wrong("an IPv4 address of four numbers up to 255 before the colon");
    }
  }
  address.host = host;
  const std::string_view port = text.substr(colon + 1);
  unsigned value = 0;
  const auto [end, status] = std::from_chars(port.data(), port.data() + port.size(), value);
  const unsigned least = any_port ? 0 : 1;
  if (status != std::errc() || end != port.data() + port.size() || value < least || value > 65535) {
    return wrong(fmt::format("HOST:PORT with a port from {} to 65535", least));
  }
  address.port = static_cast<uint16_t>(value);
  return address;
}

const NodeConfig* ClusterConfig::node(std::string_view name) const {
  const auto found = std::find_if(nodes.begin(), nodes.end(),
                                  [&](const NodeConfig& node) { return node.name == name; });
  return found == nodes.end() ? nullptr : &*found;
}

Choice parse_choice(std::string_view text) {
  return text == "on" ? Choice::kOn : text == "off" ? Choice::kOff : Choice::kAuto;
}

ClusterConfig make_cluster_config(const Settings& settings, Purpose purpose,
                                  std::string_view coordinator) {
  const Values values(settings);
  ClusterConfig config;
  config.file = settings.file();
  config.cluster = values.text("cluster");
  if (!values.at("model").is_set()) {
    throw LoadError(fmt::format("{}: no `model`: expected the directory of a checkpoint or pack",
                                config.file.filename().string()));
  }
  take_models(values.paths("model"), &config.model, &config.stripes);
  config.numerics = {values.text("numerics.format"), values.text("numerics.dense_format"),
                     values.text("numerics.activations"), values.text("numerics.wire"),
                     values.text("numerics.kv")};
  read_coordinators(values, settings.num_coordinators(), coordinator, &config);
  config.network.trust =
      values.text("network.trust") == "encrypted" ? Trust::kEncrypted : Trust::kTrusted;
  config.network.transport = values.text("network.transport");
  config.network.device = values.text("network.device");
  if (values.at("network.ports").is_set()) {
    config.network.ports = parse_ports(values.text("network.ports")).value();
  }
  config.security.keys = values.path("security.keys");
  config.security.secret_file = values.path("security.secret_file");
  if (config.network.trust == Trust::kEncrypted && config.security.keys.empty()) {
    values.fail("network.trust",
                "encrypted needs security.keys: the certificates that the link's ends know each "
                "other by");
  }
  if (config.security.secret_file.empty()) {
    config.security.secret_file = config.file.string() + ".secret";
  }
  config.redundancy = static_cast<int>(values.integer("redundancy").value());
  config.hedging = parse_choice(values.text("hedging"));
  config.hedge_after = values.number("hedge_after");
  config.balance = parse_choice(values.text("balance"));
  config.timeouts = read_timeouts(values);
  config.plan = read_plan(values);
  for (int n = 0; n < settings.num_nodes(); ++n) {
    config.nodes.push_back(read_node(values, config, n, purpose));
  }
  std::vector<std::string> of_coordinators = {"coordinator.listen", "coordinator.admin"};
  if (settings.num_coordinators() > 0) of_coordinators.clear();
  for (int c = 0; c < settings.num_coordinators(); ++c) {
    for (const char* key : {"listen", "admin"}) {
      of_coordinators.push_back(coordinator_path(values, c, key));
    }
  }
  check_nodes(values, of_coordinators, config, purpose);
  return config;
}

ClusterConfig load_cluster_config(const fs::path& file, const Overrides& overrides) {
  return make_cluster_config(Settings::read(file, overrides));
}

std::vector<std::string> not_built(const ClusterConfig& config) {
  std::vector<std::string> missing;
  if (const auto nodes = static_cast<int>(config.nodes.size());
      nodes > 0 && config.redundancy > nodes) {
    missing.push_back(fmt::format(
        "redundancy: {}: expected at most {}, the number of nodes: each copy of a tile is on "
        "another one",
        config.redundancy, nodes));
  }
  return missing;
}

void require_built(const ClusterConfig& config) {
  const std::vector<std::string> missing = not_built(config);
  if (!missing.empty()) {
    throw LoadError(fmt::format("{}: {}", config.file.filename().string(), missing.front()));
  }
}

std::vector<int> tiles_of_nodes(const ClusterConfig& config, int num_tiles) {
  const size_t num_nodes = config.nodes.size();
  std::vector<int> counts(num_nodes, 0);
  if (num_nodes == 0) return counts;
  if (config.nodes.front().tiles) {
    for (size_t n = 0; n < num_nodes; ++n) counts[n] = *config.nodes[n].tiles;
    const int sum = std::accumulate(counts.begin(), counts.end(), 0);
    if (sum != num_tiles) {
      throw LoadError(
          fmt::format("{}: the nodes' `tiles` sum up to {}: expected {}, the tiles of an "
                      "expert of this model",
                      config.file.filename().string(), sum, num_tiles));
    }
    return counts;
  }
  double all = 0;
  for (const NodeConfig& node : config.nodes) all += node.share;
  if (all <= 0) {
    throw LoadError(fmt::format("{}: every node's `share` is 0: nobody would keep a tile",
                                config.file.filename().string()));
  }
  std::vector<double> rest(num_nodes);
  int given = 0;
  for (size_t n = 0; n < num_nodes; ++n) {
    const double exact = num_tiles * (config.nodes[n].share / all);
    counts[n] = static_cast<int>(exact);
    rest[n] = exact - counts[n];
    given += counts[n];
  }
  std::vector<size_t> order(num_nodes);
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return rest[a] > rest[b]; });
  for (size_t i = 0; given < num_tiles; i = (i + 1) % num_nodes) {
    if (config.nodes[order[i]].share <= 0) continue;
    ++counts[order[i]];
    ++given;
  }
  // A small share among many large ones is still a tile.
  for (size_t n = 0; n < num_nodes; ++n) {
    const auto most = std::max_element(counts.begin(), counts.end());
    if (config.nodes[n].share > 0 && counts[n] == 0 && *most > 1) {
      --*most;
      ++counts[n];
    }
  }
  return counts;
}

}  // namespace atl::config
