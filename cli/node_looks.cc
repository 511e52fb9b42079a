#include "cli/node_looks.h"

#include <fmt/format.h>

#include <chrono>
#include <cmath>
#include <filesystem>
#include <functional>
#include <future>
#include <memory>
#include <nlohmann/json.hpp>

#include "base/clock.h"
#include "base/json_reader.h"
#include "base/one_line.h"
#include "cli/doctor_look.h"
#include "cli/machine_probe.h"
#include "cli/output.h"
#include "deployment/cluster_transport.h"
#include "transport/control/control.h"

namespace atl::cli {
namespace {

using LookJson = nlohmann::ordered_json;
using topology::Finding;
using topology::Verdict;

constexpr std::chrono::milliseconds kLookTime{3'000};
// A clock that is further off makes logs of two machines hard to read side by side.
constexpr double kClockOffMax = 1;
constexpr double kRoundTripMax = 2e-3;  // on one network; a layer waits for one
constexpr int kRoundTrips = 5;

int64_t realtime_ns() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
             std::chrono::system_clock::now().time_since_epoch())
      .count();
}

struct Look {
  std::string name, address;
  Result<LookJson> answer = Error{ErrorCode::kInternal, ""};
  double round_trip = 0;                    // seconds, the fastest
  double clock_ahead = 0, clock_error = 0;  // seconds
};

Verdict verdict_of(const std::string& text) {
  for (const Verdict verdict :
       {Verdict::kOk, Verdict::kUnknown, Verdict::kWarning, Verdict::kBlocker}) {
    if (topology::to_string(verdict) == text) return verdict;
  }
  throw LoadError("a verdict is \"" + one_line(text) + "\"");
}

Look ask_node(const config::NodeConfig& node, const transport::ControlSecurity& security,
              const std::string& what) {
  Look look{node.name, node.control.text()};
  auto client = transport::dial_node(look.address, node.name, security, kLookTime);
  if (!client) {
    look.answer = client.error();
    return look;
  }
  const SteadyClock clock;
  look.round_trip = 1e9;
  for (int i = 0; i < kRoundTrips; ++i) {
    const auto before = clock.now();
    const auto told = (*client)->inspect("clock");
    const double took = seconds_between(before, clock.now());
    const int64_t here = realtime_ns();
    if (!told) {
      look.answer = told.error();
      return look;
    }
    const auto json = read_json(*told, {});
    if (!json || !json->contains("realtime_ns") || took >= look.round_trip) continue;
    look.round_trip = took;
    look.clock_error = took / 2;
    look.clock_ahead =
        1e-9 * static_cast<double>((*json)["realtime_ns"].get<int64_t>() - here) + took / 2;
  }
  const auto told = (*client)->inspect(what);
  if (!told) {
    look.answer = told.error();
    return look;
  }
  look.answer = read_json(*told, bounds_of_file(told->size()));
  return look;
}

// How this machine shows nodes that it is the coordinator. A secret that isn't there is not made:
// whoever starts first does that.
Result<transport::ControlSecurity> coordinators_security(const config::ClusterConfig& config) {
  std::error_code error;
  if (config.security.keys.empty() &&
      !std::filesystem::exists(config.security.secret_file, error)) {
    return Error{ErrorCode::kUnavailable, fmt::format("{} is not there: nothing was started yet",
                                                      config.security.secret_file.string())};
  }
  try {
    return deployment::cluster_security(config, nullptr);
  } catch (const LoadError& failure) {
    return Error{ErrorCode::kInvalid, failure.what()};
  }
}

std::vector<Look> look_at_all(const ClusterFileOption& file, const std::string& what) {
  const config::ClusterConfig config =
      config::make_cluster_config(file.settings(), config::Purpose::kPlan);
  const auto security = coordinators_security(config);
  std::vector<Look> looks;
  std::vector<std::future<Look>> asked;
  for (const config::NodeConfig& node : config.nodes) {
    if (node.control.port == 0) continue;  // only planned
    if (security) {
      asked.push_back(
          std::async(std::launch::async, ask_node, std::cref(node), std::cref(*security), what));
    } else {
      looks.push_back({node.name, node.control.text(), security.error()});
    }
  }
  for (auto& one : asked) looks.push_back(one.get());
  return looks;
}

void add_findings(const Look& look, std::vector<Finding>* findings) {
  const std::string who = "node " + look.name;
  const auto add = [&](const std::string& what, Verdict verdict, std::string is, std::string why,
                       std::string fix) {
    const bool is_good = verdict == Verdict::kOk || verdict == Verdict::kUnknown;
    findings->push_back({who + ": " + what, verdict, std::move(is), is_good ? "" : std::move(why),
                         is_good ? "" : std::move(fix)});
  };
  if (!look.answer) {
    return add("reachable", Verdict::kWarning, look.answer.error().message,
               "its machine was not looked at, and a coordinator would not reach it either",
               fmt::format("start it there, or run there: atoll doctor FILE --name {}", look.name));
  }
  add("reachable", Verdict::kOk, fmt::format("answers at {}", look.address), "", "");
  const std::string version = look.answer->value("version", "");
  add("version", version == ATOLL_VERSION ? Verdict::kOk : Verdict::kBlocker,
      fmt::format("{} there, {} here", version, ATOLL_VERSION),
      "other versions may refuse each other, or differ in the last bit",
      "install the same package on both");
  const double off = std::abs(look.clock_ahead) - look.clock_error;
  add("clock", off <= kClockOffMax ? Verdict::kOk : Verdict::kWarning,
      fmt::format("{:+.3f} s against this machine's, known to {:.3f} s", look.clock_ahead,
                  look.clock_error),
      "log lines of the two don't fit, and certificates may count as not valid yet",
      "timedatectl set-ntp true");
  add("round trip", look.round_trip <= kRoundTripMax ? Verdict::kOk : Verdict::kWarning,
      fmt::format("{:.3f} ms over the control connection", 1e3 * look.round_trip),
      "every layer waits for one: at 5 ms and 58 layers a token takes 0.3 s more",
      fmt::format("ping {}: is it another site, Wi-Fi or a busy link?", look.address));
  for (Finding& finding : parse_findings(look.answer->dump(), look.name)) {
    findings->push_back(std::move(finding));
  }
}

}  // namespace

Result<std::string> look_at_this_node(const std::string& what, const ClusterFileOption& file) {
  LookJson json = {{"version", ATOLL_VERSION}, {"realtime_ns", realtime_ns()}};
  try {
    if (what == "doctor") {
      DoctorOptions options;
      options.file = file;
      options.running = true;
      LookJson& findings = json["findings"] = LookJson::array();
      for (const Finding& finding : examine_here(options)) {
        findings.push_back({{"name", finding.name},
                            {"verdict", topology::to_string(finding.verdict)},
                            {"what", finding.what},
                            {"why", finding.why},
                            {"fix", finding.fix}});
      }
    } else if (what == "probe") {
      json["probe"] = LookJson::parse(probe_json(kept_probe()));
    } else if (what != "clock") {
      return Error{ErrorCode::kUnsupported, "a node tells of clock, doctor and probe"};
    }
  } catch (const LoadError& error) {
    return Error{ErrorCode::kUnavailable, error.what()};
  }
  return json.dump(-1, ' ', false, LookJson::error_handler_t::replace);
}

std::vector<Finding> parse_findings(std::string_view answer, const std::string& node) {
  const auto json = read_json(answer, bounds_of_file(answer.size()));
  if (!json || !json->is_object() || !json->contains("findings") ||
      !(*json)["findings"].is_array()) {
    throw LoadError(fmt::format("node {}: its doctor's answer has no findings", node));
  }
  std::vector<Finding> findings;
  for (const LookJson& from : (*json)["findings"]) {
    const auto text = [&](const char* key) {
      return from.is_object() && from.contains(key) && from[key].is_string()
                 ? one_line(from[key].get<std::string>())
                 : "";
    };
    findings.push_back({fmt::format("node {}: {}", node, text("name")), verdict_of(text("verdict")),
                        text("what"), text("why"), text("fix")});
  }
  return findings;
}

std::vector<Finding> findings_of_nodes(const ClusterFileOption& file) {
  std::vector<Finding> findings;
  for (const Look& look : look_at_all(file, "doctor")) add_findings(look, &findings);
  return findings;
}

std::string probes_of_nodes(const ClusterFileOption& file) {
  LookJson nodes = LookJson::array();
  for (const Look& look : look_at_all(file, "probe")) {
    LookJson& node = nodes.emplace_back(LookJson{{"name", look.name}});
    if (look.answer && look.answer->contains("probe")) {
      node["probe"] = (*look.answer)["probe"];
    } else {
      node["error"] = look.answer ? "its answer has no figures" : look.answer.error().message;
    }
  }
  return LookJson{{"nodes", nodes}}.dump(2, ' ', false, LookJson::error_handler_t::replace) + "\n";
}

}  // namespace atl::cli
