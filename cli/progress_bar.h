// Progress drawn on stderr: one redrawn line on a terminal, a few plain lines elsewhere.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "base/clock.h"
#include "base/progress.h"

namespace atl::cli {

struct ProgressStyle {
  bool terminal = false;  // redraw one line; else whole lines, seldom
  bool colour = false;
  int columns = 80;  // width of the terminal
};

// What stderr is: a terminal or not, its width; colours unless NO_COLOR is set.
ProgressStyle stderr_progress_style();

// Bars on stderr.
std::unique_ptr<Progress> draw_progress(const std::string& label);

// "loading experts  42 % [####------] 1.20 GiB of 2.90 GiB, 850 MB/s, ETA 2.10 s". Thread-safe.
// Ends its line when all bytes are there, at finish(), or when destroyed.
class ProgressBar final : public Progress {
 public:
  using Write = std::function<void(std::string_view)>;

  explicit ProgressBar(std::string label);  // on stderr, with the steady clock
  // For tests. The clock is borrowed; `write` gets whole draws, never two at once.
  ProgressBar(std::string label, ProgressStyle style, const Clock& clock, Write write);
  ~ProgressBar() override;
  ProgressBar(const ProgressBar&) = delete;
  ProgressBar& operator=(const ProgressBar&) = delete;

  // Parts are shown below the bar on a terminal (of many the least advanced), as shares in the
  // plain lines.
  void set_parts(std::vector<Part> parts) override;

  void start(uint64_t total_bytes) override;
  void advance(uint64_t bytes) override;
  // Draws the last state and ends the line; once, and nothing before start().
  void finish();

 private:
  void draw(Clock::TimePoint now);
  void draw_final(Clock::TimePoint now);
  std::string line(Clock::TimePoint now) const;
  std::string parts_below() const;
  std::string parts_behind() const;

  const std::string label_;
  const ProgressStyle style_;
  const Clock& clock_;
  const Write write_;
  std::atomic<uint64_t> total_bytes_{0};
  std::atomic<uint64_t> done_bytes_{0};
  std::atomic<bool> running_{false};
  std::atomic<Clock::TimePoint> next_draw_{Clock::TimePoint{}};
  std::mutex mutex_;  // guards what follows and the order of writes
  Clock::TimePoint start_;
  std::vector<Part> parts_;
};

}  // namespace atl::cli
