#include "cli/top_view.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
#include <nlohmann/json.hpp>

#include "base/one_line.h"
#include "base/result.h"
#include "base/units.h"
#include "cli/output.h"

namespace atl::cli {
namespace {

using TopJson = nlohmann::ordered_json;

template <typename T>
T top_number(const TopJson& json, const char* key) {
  const auto found = json.find(key);
  return found != json.end() && found->is_number() ? found->get<T>() : T{};
}

std::string top_text(const TopJson& json, const char* key) {
  const auto found = json.find(key);
  return found != json.end() && found->is_string() ? one_line(found->get<std::string>()) : "";
}

const TopJson& part_of(const TopJson& stats, const char* key) {
  const auto found = stats.find(key);
  if (found == stats.end()) throw LoadError(fmt::format("/stats has no \"{}\"", key));
  return *found;
}

// Value of a series without labels, or of all of them with labels, added up.
double metric_sum(std::string_view metrics, std::string_view name) {
  double sum = 0;
  for (size_t at = 0; (at = metrics.find(name, at)) != metrics.npos; at += name.size()) {
    const char next = at + name.size() < metrics.size() ? metrics[at + name.size()] : '\0';
    const bool begins_line = at == 0 || metrics[at - 1] == '\n';
    if (!begins_line || (next != ' ' && next != '{')) continue;
    const std::string_view line = metrics.substr(at, metrics.find('\n', at) - at);
    const size_t space = line.rfind(' ');
    sum += std::strtod(std::string(line.substr(space + 1)).c_str(), nullptr);
  }
  return sum;
}

// What a counter grew by; a server that began anew counts from zero.
double grown(uint64_t before, uint64_t now) {
  return static_cast<double>(now >= before ? now - before : now);
}

std::optional<double> mean(double sum_before, double count_before, double sum, double count) {
  if (count < count_before) return count > 0 ? std::optional(sum / count) : std::nullopt;
  if (count == count_before) return std::nullopt;
  return (sum - sum_before) / (count - count_before);
}

std::string seconds_text(std::optional<double> seconds) {
  if (!seconds) return "-";
  return *seconds < 1 ? fmt::format("{:.1f} ms", 1e3 * *seconds)
                      : fmt::format("{:.2f} s", *seconds);
}

// "12.3M" a second, at most five columns.
std::string short_bytes(double bytes) {
  const char* const units[] = {"", "K", "M", "G", "T"};
  int unit = 0;
  for (; bytes >= 999.5 && unit < 4; ++unit) bytes /= 1000;
  return fmt::format("{:.{}f}{}", bytes, bytes < 9.95 && unit > 0 ? 1 : 0, units[unit]);
}

std::string cut(std::string text, int width) {
  if (std::ssize(text) > width) text.resize(static_cast<size_t>(std::max(0, width)));
  while (!text.empty() && (static_cast<unsigned char>(text.back()) & 0xC0) == 0x80) text.pop_back();
  return text;
}

std::string node_line(const TopRates::Node& node) {
  const std::string memory = node.memory == 0    ? "-"
                             : node.memory_limit ? fmt::format("{:.0f}/{:.0f}", node.memory * 1e-9,
                                                               *node.memory_limit * 1e-9)
                                                 : fmt::format("{:.1f}", node.memory * 1e-9);
  return fmt::format("{:<8} {:<8} {:>5} {:>6} {:>4.0f}% {:>7} {:>5} {:>6} {:>6} {:>6} {:>6}",
                     cut(node.now.name, 8), cut(node.now.state, 8), node.now.tiles,
                     short_bytes(node.rows), 100 * node.busy, memory,
                     node.hit_rate ? fmt::format("{:.0f}%", 100 * *node.hit_rate) : "-",
                     short_bytes(node.drive), short_bytes(node.out), short_bytes(node.in),
                     node.now.losses + node.now.overdue + node.now.hedged);
}

}  // namespace

TopSample top_sample(const TopJson& stats, std::string_view metrics, double at) {
  TopSample sample;
  sample.at = at;
  const TopJson& server = part_of(stats, "server");
  sample.model = top_text(part_of(stats, "model"), "name");
  sample.state = top_text(server, "state");
  sample.version = top_text(server, "version");
  sample.uptime_seconds = top_number<double>(server, "uptime_seconds");
  const TopJson& requests = part_of(stats, "requests");
  sample.running = top_number<int64_t>(requests, "running");
  sample.waiting = top_number<int64_t>(requests, "waiting");
  sample.finished = top_number<uint64_t>(requests, "finished");
  sample.failed = top_number<uint64_t>(requests, "failed");
  const TopJson& tokens = part_of(stats, "tokens");
  sample.prompt_tokens = top_number<uint64_t>(tokens, "prompt");
  sample.generated_tokens = top_number<uint64_t>(tokens, "generated");
  const TopJson& cache = part_of(stats, "cache");
  sample.blocks = top_number<int64_t>(cache, "blocks");
  sample.blocks_used = top_number<int64_t>(cache, "used");
  sample.blocks_kept = top_number<int64_t>(cache, "kept");
  sample.first_token_sum = metric_sum(metrics, "atoll_time_to_first_token_seconds_sum");
  sample.first_token_count = metric_sum(metrics, "atoll_time_to_first_token_seconds_count");
  sample.next_token_sum = metric_sum(metrics, "atoll_inter_token_latency_seconds_sum");
  sample.next_token_count = metric_sum(metrics, "atoll_inter_token_latency_seconds_count");
  for (const TopJson& from : part_of(stats, "nodes")) {
    TopSample::Node& node = sample.nodes.emplace_back();
    node.name = top_text(from, "name");
    node.state = top_text(from, "state");
    node.link = top_text(from, "link");
    node.lost_because = top_text(from, "lost_because");
    node.is_alive = from.value("alive", true);
    node.tiles = top_number<int64_t>(from, "tiles");
    node.standby = top_number<int64_t>(from, "standby");
    node.rows = top_number<uint64_t>(from, "rows");
    node.bytes_out = top_number<uint64_t>(from, "bytes_out");
    node.bytes_in = top_number<uint64_t>(from, "bytes_in");
    node.hits = top_number<uint64_t>(from, "hits");
    node.misses = top_number<uint64_t>(from, "misses");
    node.bytes_read = top_number<uint64_t>(from, "bytes_read");
    node.tiles_computed = top_number<uint64_t>(from, "tiles_computed");
    node.slot_bytes = top_number<uint64_t>(from, "slot_bytes");
    node.resident_bytes = top_number<uint64_t>(from, "resident_bytes");
    node.compute_seconds = top_number<double>(from, "compute_seconds");
    node.losses = top_number<uint64_t>(from, "losses");
    node.hedged = top_number<uint64_t>(from, "hedged");
    node.overdue = top_number<uint64_t>(from, "overdue");
  }
  return sample;
}

TopRates top_rates(const TopSample& before, const TopSample& now,
                   const std::map<std::string, double>& memory_limits) {
  TopRates rates;
  rates.now = now;
  rates.seconds = std::max(1e-3, now.at - before.at);
  const auto per_second = [&](uint64_t from, uint64_t to) {
    return grown(from, to) / rates.seconds;
  };
  rates.generated = per_second(before.generated_tokens, now.generated_tokens);
  rates.prompt = per_second(before.prompt_tokens, now.prompt_tokens);
  rates.first_token = mean(before.first_token_sum, before.first_token_count, now.first_token_sum,
                           now.first_token_count);
  rates.next_token = mean(before.next_token_sum, before.next_token_count, now.next_token_sum,
                          now.next_token_count);
  for (const TopSample::Node& node : now.nodes) {
    const auto same = std::find_if(before.nodes.begin(), before.nodes.end(),
                                   [&](const auto& other) { return other.name == node.name; });
    const TopSample::Node was = same == before.nodes.end() ? node : *same;
    TopRates::Node& to = rates.nodes.emplace_back();
    to.now = node;
    to.rows = per_second(was.rows, node.rows);
    const double busy = std::max(0.0, node.compute_seconds - was.compute_seconds);
    to.busy = std::min(1.0, busy / rates.seconds);
    const double read =
        grown(was.tiles_computed, node.tiles_computed) * static_cast<double>(node.slot_bytes);
    if (busy > 0) to.memory = read / busy;
    to.drive = per_second(was.bytes_read, node.bytes_read);
    to.out = per_second(was.bytes_out, node.bytes_out);
    to.in = per_second(was.bytes_in, node.bytes_in);
    const double hits = grown(was.hits, node.hits), misses = grown(was.misses, node.misses);
    if (hits + misses > 0) to.hit_rate = hits / (hits + misses);
    const auto limit = memory_limits.find(node.name);
    if (limit != memory_limits.end() && limit->second > 0) to.memory_limit = limit->second;
  }
  return rates;
}

const char* to_string(TopSort sort) {
  const char* const names[kNumTopSorts] = {"name", "rows", "busy", "memory", "drive", "hits"};
  return names[static_cast<size_t>(sort)];
}

void sort_nodes(TopRates& rates, TopSort sort) {
  const auto key = [sort](const TopRates::Node& node) {
    switch (sort) {
      case TopSort::kName:
        return 0.0;
      case TopSort::kRows:
        return -node.rows;
      case TopSort::kBusy:
        return -node.busy;
      case TopSort::kMemory:
        return -node.memory;
      case TopSort::kDrive:
        return -node.drive;
      case TopSort::kHits:
        return node.hit_rate.value_or(2);
    }
    return 0.0;
  };
  std::stable_sort(rates.nodes.begin(), rates.nodes.end(), [&](const auto& a, const auto& b) {
    if (sort == TopSort::kName) return a.now.name < b.now.name;
    return key(a) < key(b);
  });
}

std::vector<std::string> top_lines(const TopRates& rates, const TopScreen& screen) {
  const TopSample& now = rates.now;
  const auto share = [&](int64_t blocks) {
    return now.blocks > 0 ? 100.0 * static_cast<double>(blocks) / static_cast<double>(now.blocks)
                          : 0;
  };
  std::vector<std::string> lines;
  lines.push_back(fmt::format("{}  {}  up {}  {}", now.model, now.state,
                              format_duration(now.uptime_seconds), now.version));
  lines.push_back(
      fmt::format("tokens/s {:.1f} generated, {:.1f} prompt    requests {} running, {} "
                  "waiting, {} failed",
                  rates.generated, rates.prompt, now.running, now.waiting, now.failed));
  lines.push_back(fmt::format("first token {}, next {}    KV cache {:.0f} % used, {:.0f} % kept",
                              seconds_text(rates.first_token), seconds_text(rates.next_token),
                              share(now.blocks_used), share(now.blocks_kept)));
  lines.emplace_back();
  lines.push_back(fmt::format("  {:<8} {:<8} {:>5} {:>6} {:>5} {:>7} {:>5} {:>6} {:>6} {:>6} {:>6}",
                              "node", "state", "tiles", "rows/s", "busy", "GB/s", "hits", "disk/s",
                              "out/s", "in/s", "faults"));
  const int room = std::max(1, screen.height - static_cast<int>(lines.size()) - 3);
  const size_t selected =
      std::min(screen.selected, rates.nodes.empty() ? 0 : rates.nodes.size() - 1);
  const size_t first = selected < static_cast<size_t>(room) ? 0 : selected - room + 1;
  for (size_t n = first; n < std::min(rates.nodes.size(), first + room); ++n) {
    lines.push_back(std::string(n == selected ? "> " : "  ") + node_line(rates.nodes[n]));
  }
  lines.resize(static_cast<size_t>(std::max(1, screen.height)));
  if (screen.height >= 8 && !rates.nodes.empty()) {
    const TopSample::Node& node = rates.nodes[selected].now;
    const std::string why = node.lost_because.empty() ? node.link : "lost: " + node.lost_because;
    lines[lines.size() - 3] =
        fmt::format("{}: {} in RAM, {} standby tiles{}{}", node.name,
                    format_bytes(node.resident_bytes), node.standby, why.empty() ? "" : ", ", why);
  }
  if (screen.height >= 7) {
    lines[lines.size() - 2] = fmt::format(
        "q quit  s sort (by {})  up/down select  d drain  r resume", to_string(screen.sort));
    lines[lines.size() - 1] = screen.message;
  }
  for (std::string& line : lines) line = cut(std::move(line), screen.width);
  return lines;
}

std::string top_line(const TopRates& rates) {
  int64_t there = 0;
  double busiest = 0;
  std::string who;
  for (const TopRates::Node& node : rates.nodes) {
    there += node.now.is_alive;
    if (node.busy < busiest || (who.empty() && node.busy == 0)) continue;
    busiest = node.busy;
    who = node.now.name;
  }
  return fmt::format(
      "{} {:.1f} tokens/s, prompt {:.1f}; first token {}, next {}; {} running, {} waiting; {} of "
      "{} nodes{}\n",
      rates.now.state, rates.generated, rates.prompt, seconds_text(rates.first_token),
      seconds_text(rates.next_token), rates.now.running, rates.now.waiting, there,
      rates.nodes.size(), who.empty() ? "" : fmt::format(", {} busy {:.0f} %", who, 100 * busiest));
}

std::string top_json(const TopRates& rates) {
  const auto or_null = [](std::optional<double> value) {
    return value ? TopJson(*value) : TopJson();
  };
  TopJson json = {{"model", rates.now.model},
                  {"state", rates.now.state},
                  {"seconds", rates.seconds},
                  {"generated_tokens_per_second", rates.generated},
                  {"prompt_tokens_per_second", rates.prompt},
                  {"first_token_seconds", or_null(rates.first_token)},
                  {"next_token_seconds", or_null(rates.next_token)},
                  {"running", rates.now.running},
                  {"waiting", rates.now.waiting},
                  {"kv_cache_blocks", rates.now.blocks},
                  {"kv_cache_blocks_used", rates.now.blocks_used},
                  {"nodes", TopJson::array()}};
  for (const TopRates::Node& node : rates.nodes) {
    json["nodes"].push_back({{"name", node.now.name},
                             {"state", node.now.state},
                             {"tiles", node.now.tiles},
                             {"rows_per_second", node.rows},
                             {"busy", node.busy},
                             {"memory_bytes_per_second", node.memory},
                             {"memory_limit_bytes_per_second", or_null(node.memory_limit)},
                             {"hit_rate", or_null(node.hit_rate)},
                             {"drive_bytes_per_second", node.drive},
                             {"sent_bytes_per_second", node.out},
                             {"received_bytes_per_second", node.in},
                             {"link", node.now.link},
                             {"losses", node.now.losses},
                             {"hedged", node.now.hedged},
                             {"overdue", node.now.overdue}});
  }
  return json.dump(-1, ' ', false, TopJson::error_handler_t::replace) + "\n";
}

}  // namespace atl::cli
