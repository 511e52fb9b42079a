// What the clients of all worlds ask for, and what they are to get: computed once in a process,
// by an engine whose only node lives in its own process, without a fault.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "coordinator/serving/generation.h"
#include "tests/sim/model.h"

namespace atl::sim {

inline constexpr int64_t kNumRequests = 40;

struct Asked {
  size_t number = 0;  // of kNumRequests
  std::string client;
  std::optional<std::chrono::nanoseconds> cancelled_after, deadline;
};

struct Text {
  std::vector<int32_t> tokens;
  coordinator::FinishReason finish = coordinator::FinishReason::kLength;
};

coordinator::GenerationRequest request_of(size_t number, const Model& model);
const Text& expected_text(size_t number, const Model& model);

}  // namespace atl::sim
