// Whether a step's rows go through the layers as two halves: the nodes compute the experts of one
// while the coordinator computes the attention of the other. That pays where both have much to do
// for each row (prompts, large batches); it costs the reading of weights and experts once more.
// Which of the two it is depends on the machines and links, so both ways are measured.
//
// The answer changes no result, only when it is there. One thread.
#pragma once

#include <array>
#include <cstdint>

namespace atl::coordinator {

enum class Halves : uint8_t {
  kOff,
  kAuto,  // as measured
  kOn,    // every step of at least two rows; for tests and benchmarks
};

class HalvesGate {
 public:
  // Steps of less rows are never halved by kAuto: what is read is nearly all of their time.
  static constexpr int64_t kRowsMin = 32;

  explicit HalvesGate(Halves mode) : mode_(mode) {}

  // For the next step of so many rows.
  bool halves(int64_t rows);
  // That such a step took.
  void took(int64_t rows, bool halved, double seconds);

 private:
  // Of steps of about as many rows, [2^i, 2^(i+1)).
  struct Size {
    struct Way {
      int tried = 0;
      double seconds_per_row = 0;  // later steps count more
    };
    std::array<Way, 2> ways{};  // whole, halved
    int64_t steps = 0;          // since the slower way was tried
    int64_t retry_after = 16;
    bool is_better_halved() const;
  };
  static constexpr int kSizes = 32;
  static int size_of(int64_t rows);

  const Halves mode_;
  std::array<Size, kSizes> sizes_{};
};

}  // namespace atl::coordinator
