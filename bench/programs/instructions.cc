// Runs rows through one expert inside a function of a known name, for `bench/instructions`, which
// has callgrind count what is executed in there and nowhere else.
//
//   atoll_instructions FORMAT ROWS      (formats: as in `atoll bench kernels`)
//
// Prints the SIMD target and the number of the expert's weights.
#include <fmt/format.h>

#include <charconv>
#include <cstdio>
#include <string_view>

#include "bench/expert_runner.h"
#include "kernels/cpu/dispatch.h"

// The name that callgrind is told.
extern "C" [[gnu::noinline]] void atoll_counted_run(atl::bench::ExpertRunner& runner) {
  runner.run(1);
  asm volatile("" ::: "memory");  // not by a jump, which callgrind takes for the function's end
}

namespace atl::bench {
namespace {

// The hidden size of DeepSeek-V3 and a quarter of its expert's width: four whole tiles.
constexpr int64_t kHidden = 7168;
constexpr int64_t kIntermediate = 512;

// 0 if it is no number from 1 to 4096.
int64_t parse_count(std::string_view text) {
  int64_t value = 0;
  const auto [rest, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  const bool valid = error == std::errc() && rest == text.data() + text.size();
  return valid && value >= 1 && value <= 4096 ? value : 0;
}

int run(int argc, char** argv) {
  const auto format = parse_kernel_format(argc == 3 ? argv[1] : "");
  const int64_t rows = argc == 3 ? parse_count(argv[2]) : 0;
  if (!format || rows == 0) {
    fmt::print(stderr, "usage: atoll_instructions fp8|bf16|f32|int4|int4-i8|int8-i8 ROWS\n");
    return 2;
  }
  ThreadTeam one(1);
  const ExpertMemory memory(one, expert_shape(*format, kHidden, kIntermediate), 1);
  ExpertRunner runner(one, memory, rows);
  atoll_counted_run(runner);
  fmt::print("{} {}\n", kernels::cpu_targets().front(), memory.shape().weights());
  return 0;
}

}  // namespace
}  // namespace atl::bench

int main(int argc, char** argv) { return atl::bench::run(argc, argv); }
