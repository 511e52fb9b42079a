#include "constrain/compile_work.h"

#include <fmt/core.h>

#include <algorithm>

#include "base/result.h"

namespace atl::constrain {
namespace {

constexpr uint64_t kStepsMax = 4'000'000;
constexpr size_t kBytesMax = size_t{24} << 20;
constexpr uint64_t kStepsBetweenLooks = 10'000;  // at a request to stop

}  // namespace

void CompileWork::spend(uint64_t steps, std::string_view what) {
  steps_ += steps;
  if (steps_ > kStepsMax) {
    throw Error{ErrorCode::kInvalid,
                fmt::format("schema is too large: {} takes too much work", what)};
  }
  if (steps_ < next_look_) return;
  next_look_ = steps_ + kStepsBetweenLooks;
  if (stop_.stop_requested()) {
    throw Error{ErrorCode::kUnavailable, "compiling the schema was stopped"};
  }
}

void CompileWork::hold(size_t bytes, std::string_view what) {
  held_ += bytes;
  held_max_ = std::max(held_max_, held_);
  if (held_ > kBytesMax) {
    throw Error{ErrorCode::kInvalid,
                fmt::format("schema is too large: {} takes too much memory", what)};
  }
}

}  // namespace atl::constrain
