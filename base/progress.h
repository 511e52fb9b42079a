// Progress of long work, told by whoever does it and drawn by whoever has the terminal.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

namespace atl {

// Called from any thread, often: implementations must be cheap and thread-safe.
class Progress {
 public:
  // What the bytes are made of, such as the loads of several nodes.
  struct Part {
    std::string name;
    uint64_t done_bytes = 0, total_bytes = 0;
  };

  virtual ~Progress() = default;
  // Begins to count `total_bytes`; a second start begins anew.
  virtual void start(uint64_t total_bytes) = 0;
  virtual void advance(uint64_t bytes) = 0;
  // May be left undrawn.
  virtual void set_parts(std::vector<Part>) {}
};

class NoProgress final : public Progress {
 public:
  void start(uint64_t) override {}
  void advance(uint64_t) override {}
};

// Makes what draws the progress of the work with this label. An empty one: nobody looks.
using ProgressFactory = std::function<std::unique_ptr<Progress>(const std::string& label)>;

}  // namespace atl
