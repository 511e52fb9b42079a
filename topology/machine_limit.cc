#include "topology/machine_limit.h"

#include <sys/syscall.h>
#include <unistd.h>

#include "base/simd_targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "topology/machine_limit.cc"
#include "hwy/foreach_target.h"  // compiles this file once per target

#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace atl::topology::HWY_NAMESPACE {
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

// Multiply-adds of unsigned by signed bytes into 32-bit sums: maddubs, madd and add, or all three
// in one instruction of VNNI or in a tile of AMX. 0 where the target has no such instructions.
#if HWY_TARGET != HWY_SCALAR && HWY_ARCH_X86
// Named sums, as the compiler keeps an array of them in memory.
template <class Step, class... Sums>
HWY_INLINE void Rounds(int rounds, const Step& step, Sums&... sums) {
  for (int i = 0; i < rounds; ++i) (step(sums), ...);
}
#endif

#if HWY_TARGET == HWY_AVX2
double Int8Chains(int rounds, int32_t* out) {
  __m256i a = _mm256_set1_epi8(3);
  const __m256i b = _mm256_set1_epi8(-5), ones = _mm256_set1_epi16(1);
  const auto step = [&](__m256i& sum) {
    asm volatile("" : "+x"(a));  // else the products, all the same, are computed once
    const __m256i products = _mm256_madd_epi16(_mm256_maddubs_epi16(a, b), ones);
    sum = _mm256_add_epi32(sum, products);
  };
  // Only the addition, a cycle, is a chain: eight of them leave registers for the products.
  __m256i s0 = a, s1 = a, s2 = a, s3 = a, s4 = a, s5 = a, s6 = a, s7 = a;
  Rounds(rounds, step, s0, s1, s2, s3, s4, s5, s6, s7);
  uint32_t sum = 0;  // wraps, as the lanes do
  for (const __m256i& s : {s0, s1, s2, s3, s4, s5, s6, s7}) {
    sum += static_cast<uint32_t>(_mm256_extract_epi32(s, 0));
  }
  *out = static_cast<int32_t>(sum);
  return 64.0 * 8 * rounds;
}
#elif HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_AVX3_DL
double Int8ChainsWithoutVnni(int rounds, int32_t* out) {
  __m512i a = _mm512_set1_epi8(3);
  const __m512i b = _mm512_set1_epi8(-5), ones = _mm512_set1_epi16(1);
  const auto step = [&](__m512i& sum) {
    asm volatile("" : "+v"(a));
    const __m512i products = _mm512_madd_epi16(_mm512_maddubs_epi16(a, b), ones);
    sum = _mm512_add_epi32(sum, products);
  };
  __m512i s0 = a, s1 = a, s2 = a, s3 = a, s4 = a, s5 = a, s6 = a, s7 = a;
  Rounds(rounds, step, s0, s1, s2, s3, s4, s5, s6, s7);
  uint32_t sum = 0;  // wraps, as the lanes do
  for (const __m512i& s : {s0, s1, s2, s3, s4, s5, s6, s7}) {
    sum += static_cast<uint32_t>(_mm512_reduce_add_epi32(s));
  }
  *out = static_cast<int32_t>(sum);
  return 128.0 * 8 * rounds;
}

#pragma GCC push_options
#pragma GCC target("avx512vnni")
double Int8ChainsWithVnni(int rounds, int32_t* out) {
  const __m512i a = _mm512_set1_epi8(3), b = _mm512_set1_epi8(-5);
  const auto step = [&](__m512i& sum) { sum = _mm512_dpbusd_epi32(sum, a, b); };
  // Two units x 5 cycles of latency. Different starts: equal chains would be computed once.
  const auto start = [](int value) { return _mm512_set1_epi32(value); };
  __m512i s0 = start(0), s1 = start(1), s2 = start(2), s3 = start(3), s4 = start(4);
  __m512i s5 = start(5), s6 = start(6), s7 = start(7), s8 = start(8), s9 = start(9);
  Rounds(rounds, step, s0, s1, s2, s3, s4, s5, s6, s7, s8, s9);
  uint32_t sum = 0;  // wraps, as the lanes do
  for (const __m512i& s : {s0, s1, s2, s3, s4, s5, s6, s7, s8, s9}) {
    sum += static_cast<uint32_t>(_mm512_reduce_add_epi32(s));
  }
  *out = static_cast<int32_t>(sum);
  return 128.0 * 10 * rounds;
}
#pragma GCC pop_options

// Tiles of 16 rows x 64 bytes, four chains of sums; 32768 operations in one instruction of AMX.
double Int8ChainsWithAmx(int rounds, int32_t* out) {
  struct alignas(64) Config {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
  };
  static constexpr Config kConfig;
  alignas(64) int32_t sums[16][16] = {};
  constexpr int64_t kStride = 64;
  asm volatile(
      "ldtilecfg %0\n\ttilezero %%tmm0\n\ttilezero %%tmm1\n\ttilezero %%tmm2\n\ttilezero %%tmm3\n\t"
      "tileloadd (%1,%2,1), %%tmm4\n\ttileloadd (%1,%2,1), %%tmm5"
      :
      : "m"(kConfig), "r"(sums), "r"(kStride)
      : "memory");
  const int steps = rounds / 40;  // of four: as long as the others take
  for (int i = 0; i < steps; ++i) {
    asm volatile(
        "tdpbssd %%tmm5, %%tmm4, %%tmm0\n\ttdpbssd %%tmm5, %%tmm4, %%tmm1\n\t"
        "tdpbssd %%tmm5, %%tmm4, %%tmm2\n\ttdpbssd %%tmm5, %%tmm4, %%tmm3" ::);
  }
  asm volatile("tilestored %%tmm0, (%0,%1,1)\n\ttilerelease"
               :
               : "r"(sums), "r"(kStride)
               : "memory");
  *out = sums[0][0];
  return 32768.0 * 4 * steps;
}

// The kernel lends the tiles' state to processes that ask for it.
bool HasAmx() {
  constexpr int kRequestPermission = 0x1023, kTileData = 18;
  static const bool has = __builtin_cpu_supports("amx-int8") &&
                          syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  return has;
}

double Int8Chains(int rounds, int32_t* out) {
  if (HasAmx()) return Int8ChainsWithAmx(rounds, out);
  return __builtin_cpu_supports("avx512vnni") ? Int8ChainsWithVnni(rounds, out)
                                              : Int8ChainsWithoutVnni(rounds, out);
}
#else
double Int8Chains(int, int32_t* out) {
  *out = 0;
  return 0;
}
#endif

}  // namespace atl::topology::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include <fmt/format.h>
#include <time.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <fstream>
#include <set>
#include <string>

#include "base/units.h"

namespace atl::topology {
namespace {

HWY_EXPORT(FmaChains);
HWY_EXPORT(Int8Chains);
HWY_EXPORT(ReadAll);

constexpr uint64_t kUnknownLastLevelBytes = 64 * kMiB;
constexpr uint64_t kUnknownL2Bytes = 512 * kKiB;
constexpr uint64_t kReadBytesMin = 256 * kMiB;
// Read by a thread at once: small enough that all end together, large enough for the prefetchers.
constexpr size_t kReadUnit = 2 * kMiB;
constexpr int kPasses = 3;
// 6 M cycles of two FMA units, about 2 ms.
constexpr int kFmaRounds = 1'000'000;
constexpr int kInt8Rounds = 500'000;
constexpr int kPeakUnitsPerThread = 4;

double clock_seconds(clockid_t id) {
  timespec now;
  clock_gettime(id, &now);
  return static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec) * 1e-9;
}

// First line of a file in sysfs, or "".
std::string read_line(const std::string& path) {
  std::ifstream in(path);
  std::string line;
  std::getline(in, line);
  return line;
}

// Bytes of all different caches of this level, or of one of them; 0 if the kernel doesn't tell.
struct CacheBytes {
  uint64_t one = 0, all = 0;
};
CacheBytes cache_bytes(int level) {
  CacheBytes bytes;
  std::set<std::string> seen;  // processors that share a cache
  for (int cpu = 0;; ++cpu) {
    const std::string folder = fmt::format("/sys/devices/system/cpu/cpu{}/cache/", cpu);
    if (read_line(folder + "index0/level").empty()) return bytes;
    for (int index = 0;; ++index) {
      const std::string cache = fmt::format("{}index{}/", folder, index);
      const std::string found = read_line(cache + "level");
      if (found.empty()) break;
      if (found != std::to_string(level)) continue;
      if (!seen.insert(read_line(cache + "shared_cpu_list")).second) continue;
      std::string size = read_line(cache + "size");  // "32768K"
      if (size.ends_with("K")) size += "iB";
      const auto parsed = parse_bytes(size);
      if (!parsed) continue;
      bytes.one = *parsed;
      bytes.all += *parsed;
    }
  }
}

}  // namespace

double thread_seconds() { return clock_seconds(CLOCK_THREAD_CPUTIME_ID); }

double team_seconds(const ThreadTeam& team) {
  return team.num_threads() == 1 ? thread_seconds() : clock_seconds(CLOCK_MONOTONIC);
}

double cycles_per_second() {
  constexpr int kRounds = 1'000'000;
  uint64_t x = 1;
  const double start = thread_seconds();
  for (int i = 0; i < kRounds; ++i) {
    // Eight dependent additions, which the compiler can't fold.
    for (int j = 0; j < 8; ++j) {
      x += static_cast<uint64_t>(i) | 1;
      asm volatile("" : "+r"(x));
    }
  }
  return 8.0 * kRounds / (thread_seconds() - start);
}

double thread_fma_flop_per_second() {
  std::atomic<float> sink{0};
  const double start = thread_seconds();
  float sum;
  const double operations = HWY_DYNAMIC_DISPATCH(FmaChains)(kFmaRounds, &sum);
  const double seconds = thread_seconds() - start;
  sink = sum;
  return operations / seconds;
}

uint64_t last_level_cache_bytes() {
  for (int level = 4; level >= 2; --level) {
    if (const uint64_t bytes = cache_bytes(level).all) return bytes;
  }
  return kUnknownLastLevelBytes;
}

uint64_t l2_cache_bytes() {
  const uint64_t bytes = cache_bytes(2).one;
  return bytes ? bytes : kUnknownL2Bytes;
}

bool limits_differ(const MachineLimit& a, const MachineLimit& b) {
  const auto differ = [](double x, double y) { return std::fabs(x - y) > 0.1 * std::max(x, y); };
  return differ(a.read_bytes_per_second, b.read_bytes_per_second) ||
         differ(a.fma_flop_per_second, b.fma_flop_per_second) ||
         differ(a.int8_op_per_second, b.int8_op_per_second);
}

MachineProbe::MachineProbe(ThreadTeam& team)
    : team_(team),
      buffer_(round_up(std::max(kReadBytesMin, 4 * last_level_cache_bytes()), kReadUnit)) {
  // Untouched pages are all the same page of zeros.
  team_.parallel_for(buffer_.size() / kReadUnit, 1, [this](int64_t begin, int64_t end, int) {
    std::fill(buffer_.data() + begin * kReadUnit, buffer_.data() + end * kReadUnit, std::byte{1});
  });
}

MachineLimit MachineProbe::measure() {
  MachineLimit best;
  for (int pass = 0; pass < kPasses; ++pass) {
    best.read_bytes_per_second = std::max(best.read_bytes_per_second, read_pass());
    best.fma_flop_per_second = std::max(best.fma_flop_per_second, peak_pass([](float* sum) {
                                          return HWY_DYNAMIC_DISPATCH(FmaChains)(kFmaRounds, sum);
                                        }));
    best.int8_op_per_second = std::max(best.int8_op_per_second, peak_pass([](float* sum) {
                                         int32_t integer_sum;
                                         const double operations = HWY_DYNAMIC_DISPATCH(Int8Chains)(
                                             kInt8Rounds, &integer_sum);
                                         *sum = static_cast<float>(integer_sum);
                                         return operations;
                                       }));
  }
  return best;
}

double MachineProbe::read_pass() {
  std::atomic<float> sink{0};
  const double start = team_seconds(team_);
  team_.parallel_for(buffer_.size() / kReadUnit, 1, [&](int64_t begin, int64_t end, int) {
    const auto* data = reinterpret_cast<const float*>(buffer_.data() + begin * kReadUnit);
    sink = HWY_DYNAMIC_DISPATCH(ReadAll)(data, (end - begin) * kReadUnit / sizeof(float));
  });
  return static_cast<double>(buffer_.size()) / (team_seconds(team_) - start);
}

double MachineProbe::peak_pass(FunctionRef<double(float*)> chains) {
  std::atomic<float> sink{0};
  std::atomic<double> operations_of_unit{0};
  const int64_t units = int64_t{kPeakUnitsPerThread} * team_.num_threads();
  const double start = team_seconds(team_);
  team_.parallel_for(units, 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t unit = begin; unit < end; ++unit) {
      float sum;
      operations_of_unit = chains(&sum);
      sink = sum;
    }
  });
  return static_cast<double>(units) * operations_of_unit / (team_seconds(team_) - start);
}

}  // namespace atl::topology
#endif  // HWY_ONCE
