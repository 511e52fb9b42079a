// A file of `atoll experts dump`, read: how often each expert was chosen, and what follows of it.
// Plain values and pure functions but for the reading.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

namespace atl::cli {

struct ExpertsFile {
  struct Layer {
    int64_t layer = 0;
    uint64_t steps = 0, rows = 0, distinct = 0;
    uint64_t small_steps = 0, small_rows = 0, small_distinct = 0;
    std::vector<double> uses;  // [experts]
    // [experts] probability that a row of this expert chooses its likeliest follower in the next
    // layer; empty: not told.
    std::vector<double> follows;
  };
  struct Window {
    double begin_seconds = 0, seconds = 0;
    std::vector<Layer> layers;
  };
  std::string model, checkpoint;
  int64_t experts = 0, experts_per_token = 0;
  double seconds = 0;
  std::vector<Layer> layers;
  std::vector<Window> windows;

  uint64_t rows() const { return layers.empty() ? 0 : layers.front().rows; }
};

// LoadError: `name`, and what is wrong with the text.
ExpertsFile parse_experts_file(std::string_view text, const std::string& name);
ExpertsFile read_experts_file(const std::filesystem::path& path);

// Share of all uses that hit if RAM holds the `share` of the (layer, expert) pairs that `ranked`
// was used most with, and `used` says what is asked for; both [layers]. 0 to 1; 1 if nothing is
// used.
double hit_rate(const std::vector<ExpertsFile::Layer>& ranked,
                const std::vector<ExpertsFile::Layer>& used, double share);

// One page without anything from elsewhere: heat map, skew of layers, hit rate against the size of
// the cache, what follows what.
std::string experts_page(const ExpertsFile& file);

}  // namespace atl::cli
