#include "cli/progress_bar.h"

#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <utility>

#include "base/units.h"

namespace atl::cli {
namespace {

using namespace std::chrono_literals;

constexpr auto kRedrawEvery = 100ms;  // smooth to the eye, no cost to the work
constexpr auto kPlainLineEvery = 5s;  // a log of a long load stays short
constexpr int kBarCells = 20;
constexpr size_t kPartsShown = 8;
constexpr std::string_view kClearToEnd = "\x1b[K";
constexpr std::string_view kClearBelow = "\x1b[J";

const Clock& steady_clock() {
  static const SteadyClock clock;
  return clock;
}

void write_stderr(std::string_view text) {
  std::fwrite(text.data(), 1, text.size(), stderr);
  std::fflush(stderr);
}

double share_of(uint64_t done, uint64_t total) {
  return total == 0 ? 1.0 : std::min(1.0, static_cast<double>(done) / static_cast<double>(total));
}

std::string bar(double share, bool colour) {
  const int filled = static_cast<int>(share * kBarCells);
  const std::string done(static_cast<size_t>(filled), '#');
  const std::string rest(static_cast<size_t>(kBarCells - filled), '-');
  return colour ? fmt::format("[\x1b[32m{}\x1b[0m{}]", done, rest)
                : fmt::format("[{}{}]", done, rest);
}

}  // namespace

ProgressStyle stderr_progress_style() {
  ProgressStyle style;
  style.terminal = ::isatty(STDERR_FILENO) == 1;
  const char* no_color = std::getenv("NO_COLOR");
  style.colour = style.terminal && (no_color == nullptr || *no_color == '\0');
  winsize size{};
  if (style.terminal && ::ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0) {
    style.columns = size.ws_col;
  }
  return style;
}

std::unique_ptr<Progress> draw_progress(const std::string& label) {
  return std::make_unique<ProgressBar>(label);
}

ProgressBar::ProgressBar(std::string label)
    : ProgressBar(std::move(label), stderr_progress_style(), steady_clock(), write_stderr) {}

ProgressBar::ProgressBar(std::string label, ProgressStyle style, const Clock& clock, Write write)
    : label_(std::move(label)), style_(style), clock_(clock), write_(std::move(write)) {}

ProgressBar::~ProgressBar() { finish(); }

void ProgressBar::set_parts(std::vector<Part> parts) {
  const std::lock_guard lock(mutex_);
  parts_ = std::move(parts);
}

void ProgressBar::start(uint64_t total_bytes) {
  const std::lock_guard lock(mutex_);
  start_ = clock_.now();
  total_bytes_ = total_bytes;
  done_bytes_ = 0;
  next_draw_ = start_ + (style_.terminal ? Clock::TimePoint::duration(kRedrawEvery)
                                         : Clock::TimePoint::duration(kPlainLineEvery));
  running_ = true;
}

void ProgressBar::advance(uint64_t bytes) {
  if (!running_) return;
  const uint64_t done = done_bytes_ += bytes;
  if (done >= total_bytes_) {
    finish();
    return;
  }
  const auto now = clock_.now();
  if (now < next_draw_.load()) return;
  // Whoever comes while another thread draws leaves it to that one.
  const std::unique_lock lock(mutex_, std::try_to_lock);
  if (lock.owns_lock() && running_ && now >= next_draw_.load()) draw(now);
}

void ProgressBar::finish() {
  const std::lock_guard lock(mutex_);
  if (!running_) return;
  running_ = false;
  draw_final(clock_.now());
}

void ProgressBar::draw(Clock::TimePoint now) {
  if (style_.terminal) {
    next_draw_ = now + kRedrawEvery;
    write_(fmt::format("\r{}{}{}", line(now), kClearToEnd, parts_below()));
  } else {
    next_draw_ = now + kPlainLineEvery;
    write_(line(now) + parts_behind() + "\n");
  }
}

void ProgressBar::draw_final(Clock::TimePoint now) {
  const double seconds = seconds_between(start_, now);
  const uint64_t done = done_bytes_;
  std::string text = fmt::format("{}  {}", label_, format_bytes(done));
  if (done < total_bytes_) text += fmt::format(" of {}, not finished", format_bytes(total_bytes_));
  text += fmt::format(" in {}", format_duration(seconds));
  if (seconds > 0) text += fmt::format(", {}", format_rate(static_cast<double>(done) / seconds));
  const std::string_view clear = parts_.empty() ? kClearToEnd : kClearBelow;
  write_(style_.terminal ? fmt::format("\r{}{}\n", text, clear) : text + "\n");
}

// Lines below the bar's, and back up to it.
std::string ProgressBar::parts_below() const {
  std::vector<Part> shown = parts_;
  std::stable_sort(shown.begin(), shown.end(), [](const Part& a, const Part& b) {
    return share_of(a.done_bytes, a.total_bytes) < share_of(b.done_bytes, b.total_bytes);
  });
  if (shown.size() > kPartsShown) shown.resize(kPartsShown);
  std::sort(shown.begin(), shown.end(), [](const Part& a, const Part& b) {
    return std::pair(a.name.size(), a.name) < std::pair(b.name.size(), b.name);
  });
  std::string text;
  for (const Part& part : shown) {
    const double share = share_of(part.done_bytes, part.total_bytes);
    text += fmt::format("\n{:>{}}  {:3.0f} % {} {} of {}{}", part.name, label_.size(),
                        std::floor(share * 100), bar(share, style_.colour),
                        format_bytes(part.done_bytes), format_bytes(part.total_bytes), kClearToEnd);
  }
  return shown.empty() ? text : text + fmt::format("\x1b[{}A", shown.size());
}

// "; n0 40 %, n1 38 %".
std::string ProgressBar::parts_behind() const {
  std::string text;
  for (const Part& part : parts_) {
    text += fmt::format("{}{} {:.0f} %", text.empty() ? "; " : ", ", part.name,
                        std::floor(share_of(part.done_bytes, part.total_bytes) * 100));
  }
  return text;
}

std::string ProgressBar::line(Clock::TimePoint now) const {
  const uint64_t done = done_bytes_;
  const uint64_t total = total_bytes_;
  const double share = share_of(done, total);
  const double seconds = seconds_between(start_, now);
  const double rate = seconds > 0 ? static_cast<double>(done) / seconds : 0;
  const std::string head = fmt::format("{}  {:3.0f} % ", label_, std::floor(share * 100));
  std::string tail =
      fmt::format(" {} of {}, {}", format_bytes(done), format_bytes(total), format_rate(rate));
  if (rate > 0) {
    tail += fmt::format(", ETA {}", format_duration(static_cast<double>(total - done) / rate));
  }
  // A line that wraps could not be redrawn: the bar goes first, then the tail is cut.
  const auto columns = static_cast<size_t>(style_.columns);
  const bool bar_fits = !style_.terminal || head.size() + kBarCells + 2 + tail.size() < columns;
  if (bar_fits) return head + bar(share, style_.colour) + tail;
  std::string text = head + tail;
  if (text.size() >= columns) text.resize(columns > 0 ? columns - 1 : 0);
  return text;
}

}  // namespace atl::cli
