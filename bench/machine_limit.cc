#include "bench/machine_limit.h"

#include "kernels/cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "bench/machine_limit.cc"
#include "hwy/foreach_target.h"  // compiles this file once per target

#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace atl::bench::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Twelve independent chains: enough for 2 units x 5 cycles of latency. Returns the operations done.
double FmaChains(int rounds, float* out) {
  const hn::ScalableTag<float> d;
  constexpr int kChains = 12;
  const auto factor = hn::Set(d, 0.999f);
  const auto addend = hn::Set(d, 0.001f);
  // Different starts: equal chains would be computed once.
  auto a0 = hn::Set(d, 1.0f);
  auto a1 = hn::Set(d, 2.0f);
  auto a2 = hn::Set(d, 3.0f);
  auto a3 = hn::Set(d, 4.0f);
  auto a4 = hn::Set(d, 5.0f);
  auto a5 = hn::Set(d, 6.0f);
  auto a6 = hn::Set(d, 7.0f);
  auto a7 = hn::Set(d, 8.0f);
  auto a8 = hn::Set(d, 9.0f);
  auto a9 = hn::Set(d, 10.0f);
  auto a10 = hn::Set(d, 11.0f);
  auto a11 = hn::Set(d, 12.0f);
  for (int i = 0; i < rounds; ++i) {
    a0 = hn::MulAdd(a0, factor, addend);
    a1 = hn::MulAdd(a1, factor, addend);
    a2 = hn::MulAdd(a2, factor, addend);
    a3 = hn::MulAdd(a3, factor, addend);
    a4 = hn::MulAdd(a4, factor, addend);
    a5 = hn::MulAdd(a5, factor, addend);
    a6 = hn::MulAdd(a6, factor, addend);
    a7 = hn::MulAdd(a7, factor, addend);
    a8 = hn::MulAdd(a8, factor, addend);
    a9 = hn::MulAdd(a9, factor, addend);
    a10 = hn::MulAdd(a10, factor, addend);
    a11 = hn::MulAdd(a11, factor, addend);
  }
  const auto low = hn::Add(hn::Add(hn::Add(a0, a1), hn::Add(a2, a3)), hn::Add(a4, a5));
  const auto high = hn::Add(hn::Add(hn::Add(a6, a7), hn::Add(a8, a9)), hn::Add(a10, a11));
  *out = hn::GetLane(hn::Add(low, high));
  return 2.0 * kChains * rounds * static_cast<double>(hn::Lanes(d));
}

float ReadAll(const float* data, size_t n) {
  const hn::ScalableTag<float> d;
  const size_t step = hn::Lanes(d);
  auto a0 = hn::Zero(d), a1 = a0, a2 = a0, a3 = a0;
  for (size_t i = 0; i + 4 * step <= n; i += 4 * step) {
    a0 = hn::Add(a0, hn::LoadU(d, data + i));
    a1 = hn::Add(a1, hn::LoadU(d, data + i + step));
    a2 = hn::Add(a2, hn::LoadU(d, data + i + 2 * step));
    a3 = hn::Add(a3, hn::LoadU(d, data + i + 3 * step));
  }
  return hn::GetLane(hn::Add(hn::Add(a0, a1), hn::Add(a2, a3)));
}

}  // namespace atl::bench::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include <time.h>

#include <cstdint>

#include "base/check.h"
#include "base/memory.h"
#include "base/units.h"
#include "kernels/cpu/dispatch.h"

namespace atl::bench {
namespace {

HWY_EXPORT(FmaChains);
HWY_EXPORT(ReadAll);

}  // namespace

double thread_seconds() {
  timespec now;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec) * 1e-9;
}

double read_bytes_per_second() {
  static HostBuffer buffer = [] {
    HostBuffer b(128 * kMiB);
    for (size_t i = 0; i < b.size(); i += 4096) b.data()[i] = std::byte{1};
    return b;
  }();
  const double start = thread_seconds();
  volatile float sum =
      HWY_DYNAMIC_DISPATCH(ReadAll)(buffer.as<float>(), buffer.size() / sizeof(float));
  (void)sum;
  return static_cast<double>(buffer.size()) / (thread_seconds() - start);
}

double fma_flop_per_second(const std::string& target) {
  CHECK(kernels::use_cpu_target(target));
  const double start = thread_seconds();
  float sum;
  const double operations = HWY_DYNAMIC_DISPATCH(FmaChains)(1'000'000, &sum);
  const double seconds = thread_seconds() - start;
  volatile float sink = sum;
  (void)sink;
  return operations / seconds;
}

double cycles_per_second() {
  constexpr int kRounds = 1'000'000;
  uint64_t x = 1;
  const double start = thread_seconds();
  for (int i = 0; i < kRounds; ++i) {
    // Eight dependent additions of one cycle each, which the compiler can't fold.
    for (int j = 0; j < 8; ++j) {
      x += static_cast<uint64_t>(i) | 1;
      asm volatile("" : "+r"(x));
    }
  }
  return 8.0 * kRounds / (thread_seconds() - start);
}

}  // namespace atl::bench
#endif  // HWY_ONCE
