// What compiling one schema costs, counted: the same on every machine.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <stop_token>
#include <string_view>

namespace atl::constrain {

// Schemas come from strangers. Work is counted in steps of some 20 ns of a slow core, memory as
// what is held at once, so that each schema is compiled or refused within 100 ms and 32 MiB
// (docs/structured-output.md has what was measured). One thread.
//
// Throws Error: kInvalid, "schema is too large: <what> takes too much work" (or memory);
// kUnavailable if it was asked to stop.
class CompileWork {
 public:
  explicit CompileWork(std::stop_token stop = {}) : stop_(std::move(stop)) {}

  // `what` is named if it is too much, as in "$.items".
  void spend(uint64_t steps, std::string_view what);
  // Memory that is taken, until it is given back.
  void hold(size_t bytes, std::string_view what);
  void give_back(size_t bytes) { held_ -= bytes; }

  uint64_t steps() const { return steps_; }
  size_t held_bytes_max() const { return held_max_; }  // so far

 private:
  const std::stop_token stop_;
  uint64_t steps_ = 0, next_look_ = 0;
  size_t held_ = 0, held_max_ = 0;
};

// What one thing holds while it lives.
class HeldMemory {
 public:
  explicit HeldMemory(CompileWork& work) : work_(work) {}
  ~HeldMemory() { work_.give_back(bytes_); }
  HeldMemory(const HeldMemory&) = delete;
  HeldMemory& operator=(const HeldMemory&) = delete;

  void add(size_t bytes, std::string_view what) {
    bytes_ += bytes;
    work_.hold(bytes, what);
  }
  void give_back_all_but(size_t bytes) {
    work_.give_back(bytes_ - std::min(bytes, bytes_));
    bytes_ = std::min(bytes, bytes_);
  }

 private:
  CompileWork& work_;
  size_t bytes_ = 0;
};

}  // namespace atl::constrain
