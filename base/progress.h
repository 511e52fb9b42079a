// Progress of long work, told by whoever does it and drawn by whoever has the terminal.
#pragma once

#include <cstdint>

namespace atl {

// Called from any thread, often: implementations must be cheap and thread-safe.
class Progress {
 public:
  virtual ~Progress() = default;
  virtual void start(uint64_t total_bytes) = 0;
  virtual void advance(uint64_t bytes) = 0;
};

class NoProgress final : public Progress {
 public:
  void start(uint64_t) override {}
  void advance(uint64_t) override {}
};

}  // namespace atl
