#include "expert_node/tile_phases.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <random>

#include "base/memory.h"
#include "kernels/reference/reference.h"

namespace atl::expert_node {
namespace {

namespace reference = kernels::reference;

constexpr int64_t kHidden = 304, kIntermediate = 600;  // 19 panels of down; the last tile has 88
constexpr int kTiles = 5;

// The tiles of some experts, random codes in BF16 of magnitudes around 2^-5.
class Experts {
 public:
  explicit Experts(int num_experts) : num_experts_(num_experts) {
    for (int tile = 0; tile < kTiles; ++tile) {
      layouts_.push_back(
          kernels::tile_layout(kernels::WeightFormat::kBf16, kHidden, kIntermediate, tile));
      begin_.push_back(bytes_);
      bytes_ += layouts_.back().bytes;
    }
    memory_ = HostBuffer(bytes_ * static_cast<size_t>(num_experts));
    std::mt19937 rng(4);
    for (size_t i = 0; i < memory_.size() / 2; ++i) {
      memory_.as<uint16_t>()[i] = static_cast<uint16_t>((rng() & 0x80ff) | 0x3d00);
    }
  }
  kernels::TileView tile(int expert, int tile) const {
    return {&layouts_[tile], memory_.data() + static_cast<size_t>(expert) * bytes_ + begin_[tile]};
  }
  int num_experts() const { return num_experts_; }

 private:
  int num_experts_;
  std::vector<kernels::TileLayout> layouts_;
  std::vector<size_t> begin_;
  size_t bytes_ = 0;
  HostBuffer memory_;
};

struct Outcome {
  std::vector<int64_t> sums;  // [pairs, hidden]
  std::vector<bool> bad;
};

// Every expert with `rows` rows of its own; one value of the second pair is `spoiled`.
class Step {
 public:
  Step(const Experts& experts, int rows, float spoiled) : experts_(experts), rows_(rows) {
    std::mt19937 rng(5);
    const size_t pairs = static_cast<size_t>(experts.num_experts() * rows);
    for (size_t i = 0; i < pairs * kHidden; ++i) {
      x_.push_back(std::ldexp(static_cast<float>(rng() % 4001) - 2000.0f, -11));
    }
    if (pairs > 1) x_[kHidden + 7] = spoiled;
    for (size_t pair = 0; pair < pairs; ++pair) {
      rows_x_.push_back(&x_[pair * kHidden]);
      weights_.push_back(0.25f + 0.125f * static_cast<float>(pair % 5));
    }
  }

  Outcome by_reference() const {
    Outcome outcome = zeros();
    for (size_t pair = 0; pair < rows_x_.size(); ++pair) {
      uint8_t bad = 0;
      for (int tile = 0; tile < kTiles; ++tile) {
        const kernels::TileView view = experts_.tile(static_cast<int>(pair) / rows_, tile);
        std::vector<float> h(static_cast<size_t>(view.layout->width));
        float* h_row = h.data();
        const float* h_read = h.data();
        int64_t* sums = &outcome.sums[pair * kHidden];
        reference::tile_gate_up(view, 0, view.layout->gate_up.num_panels(), {&rows_x_[pair], 1},
                                {&weights_[pair], 1}, {&h_row, 1});
        reference::tile_down_accumulate(view, 0, view.layout->down.num_panels(), {&h_read, 1},
                                        {&sums, 1}, {&bad, 1});
      }
      outcome.bad[pair] = bad != 0;
    }
    return outcome;
  }

  // In waves of `wave` tiles, down in steps of `panels`.
  Outcome by_phases(int num_threads, size_t wave, int64_t panels) const {
    ThreadTeam team(num_threads);
    TilePhases phases(team);
    Outcome outcome = zeros();
    std::vector<int64_t*> sums;
    for (size_t pair = 0; pair < rows_x_.size(); ++pair) {
      sums.push_back(&outcome.sums[pair * kHidden]);
    }
    phases.start({rows_x_, weights_, sums});
    std::vector<TileWork> works;
    for (int i = 0; i < experts_.num_experts() * kTiles; ++i) {
      const int expert = i / kTiles;
      works.push_back({experts_.tile(expert, i % kTiles), static_cast<size_t>(expert * rows_),
                       static_cast<size_t>((expert + 1) * rows_)});
    }
    const int64_t all = ceil_div(kHidden, kernels::kPanelWidth);
    for (size_t begin = 0; begin < works.size(); begin += wave) {
      const size_t count = std::min(wave, works.size() - begin);
      phases.gate_up(std::span(works).subspan(begin, count));
      for (int64_t p = 0; p < all; p += panels) phases.down(p, std::min(p + panels, all));
    }
    for (size_t pair = 0; pair < rows_x_.size(); ++pair) outcome.bad[pair] = phases.is_bad(pair);
    return outcome;
  }

 private:
  Outcome zeros() const {
    return {std::vector<int64_t>(rows_x_.size() * kHidden), std::vector<bool>(rows_x_.size())};
  }

  const Experts& experts_;
  int rows_;
  std::vector<float> x_, weights_;
  std::vector<const float*> rows_x_;
};

void expect_equal(const Outcome& expected, const Outcome& found) {
  ASSERT_EQ(expected.bad, found.bad);
  for (size_t i = 0; i < expected.sums.size(); ++i) {
    if (expected.bad[i / kHidden]) continue;
    ASSERT_EQ(expected.sums[i], found.sums[i])
        << "pair " << i / kHidden << " output " << i % kHidden;
  }
}

// From one thread, which takes gate and up together, to so many that they are units of their own.
TEST(TilePhases, any_number_of_threads_and_any_waves_give_the_reference_sums) {
  for (int num_experts : {1, 3}) {
    const Experts experts(num_experts);
    for (int rows : {1, 5, 12, 70}) {  // 12: tiles share a unit; 70: down in steps of 64
      const Step step(experts, rows, 1.0f);
      const Outcome expected = step.by_reference();
      for (int threads : {1, 2, 7, 24}) {
        for (size_t wave : {size_t{1}, size_t{4}, size_t{100}}) {
          SCOPED_TRACE(std::to_string(num_experts) + " experts, " + std::to_string(rows) +
                       " rows, " + std::to_string(threads) + " threads, waves of " +
                       std::to_string(wave));
          expect_equal(expected, step.by_phases(threads, wave, threads == 2 ? 7 : 1000));
        }
      }
    }
  }
}

TEST(TilePhases, a_contribution_that_is_not_finite_marks_its_pair_alone) {
  const Experts experts(2);
  const Step step(experts, 3, INFINITY);
  const Outcome expected = step.by_reference();
  ASSERT_EQ(expected.bad, (std::vector<bool>{false, true, false, false, false, false}));
  for (int threads : {1, 24}) expect_equal(expected, step.by_phases(threads, 4, 5));
}

}  // namespace
}  // namespace atl::expert_node
