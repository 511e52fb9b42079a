// What `atoll top` shows: two looks at a server and what happened between them, as a table of a
// terminal's size. Plain values and pure functions.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/json_reader.h"

namespace atl::cli {

// One look: GET /stats and some sums of GET /metrics.
struct TopSample {
  struct Node {
    std::string name, state, link, lost_because;
    bool is_alive = true;
    int64_t tiles = 0, standby = 0;
    uint64_t rows = 0, bytes_out = 0, bytes_in = 0, hits = 0, misses = 0, bytes_read = 0;
    uint64_t tiles_computed = 0, slot_bytes = 0, resident_bytes = 0;
    double compute_seconds = 0;
    uint64_t losses = 0, hedged = 0, overdue = 0;
  };
  double at = 0;  // seconds
  std::string model, state, version;
  double uptime_seconds = 0;
  int64_t running = 0, waiting = 0;
  uint64_t finished = 0, failed = 0, prompt_tokens = 0, generated_tokens = 0;
  int64_t blocks = 0, blocks_used = 0, blocks_kept = 0;
  double first_token_sum = 0, first_token_count = 0;  // seconds, requests
  double next_token_sum = 0, next_token_count = 0;    // seconds, tokens
  std::vector<Node> nodes;
};
// LoadError says what is missing.
TopSample top_sample(const nlohmann::ordered_json& stats, std::string_view metrics, double at);

struct TopRates {
  struct Node {
    TopSample::Node now;
    double rows = 0, busy = 0;           // a second; share of the time
    double memory = 0, drive = 0;        // bytes a second: while it computed; of all time
    double out = 0, in = 0;              // bytes a second
    std::optional<double> hit_rate;      // none: nothing was asked for
    std::optional<double> memory_limit;  // bytes a second, of the cluster file
  };
  TopSample now;
  double seconds = 0;
  double generated = 0, prompt = 0;               // tokens a second
  std::optional<double> first_token, next_token;  // seconds, mean; none: there was none
  std::vector<Node> nodes;
};
//   memory_limits  [node] bytes a second; may lack nodes
TopRates top_rates(const TopSample& before, const TopSample& now,
                   const std::map<std::string, double>& memory_limits);

enum class TopSort : uint8_t { kName, kRows, kBusy, kMemory, kDrive, kHits };
inline constexpr int kNumTopSorts = 6;
const char* to_string(TopSort sort);  // "name", "rows", ...
// Largest first but by name and hits: who is missed most stands first.
void sort_nodes(TopRates& rates, TopSort sort);

struct TopScreen {
  int width = 80, height = 24;
  TopSort sort = TopSort::kName;
  size_t selected = 0;  // node in the order of `rates`
  std::string message;  // the last line
};
// Exactly `height` lines of at most `width` columns, without line breaks.
std::vector<std::string> top_lines(const TopRates& rates, const TopScreen& screen);
// One line, for output that is no terminal.
std::string top_line(const TopRates& rates);
std::string top_json(const TopRates& rates);

}  // namespace atl::cli
