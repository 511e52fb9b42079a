#include "kernels/cpu/dispatch.h"

#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>

#include "kernels/cpu/byte_units.h"

#include "kernels/cpu/targets.h"
// Highway after its configuration.
#include "hwy/highway.h"
#include "hwy/targets.h"
#if HWY_ARCH_X86
#include <cpuid.h>
#endif

namespace atl::kernels {
namespace {

bool has_vnni() {
#if HWY_ARCH_X86
  return __builtin_cpu_supports("avx512vnni") != 0;
#else
  return false;
#endif
}

// CPUID leaf 7, EDX bit 25 (Intel SDM vol. 2A): __builtin_cpu_supports() of Clang 14 knows no AMX.
bool cpu_has_amx_int8() {
#if HWY_ARCH_X86
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) != 0 && (edx >> 25 & 1) != 0;
#else
  return false;
#endif
}

// The kernel lends the tiles' state to processes that ask for it, once for all threads.
bool has_amx() {
#if HWY_ARCH_X86 && defined(SYS_arch_prctl)
  constexpr int kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE
  static const bool has =
      cpu_has_amx_int8() && syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  return has;
#else
  return false;
#endif
}

std::atomic<bool> vnni_wanted{has_vnni()};
std::atomic<AmxUse> amx_wanted{has_amx() ? AmxUse::kOn : AmxUse::kOff};

}  // namespace

bool vnni_in_use() { return vnni_wanted.load(std::memory_order_relaxed); }
AmxUse amx_in_use() { return amx_wanted.load(std::memory_order_relaxed); }
EmulatedTileState& emulated_tiles() {
  thread_local EmulatedTileState state;
  return state;
}

bool use_vnni(bool wanted) {
  vnni_wanted = wanted && has_vnni();
  return vnni_wanted || !wanted;
}

bool use_amx(AmxUse wanted) {
  const bool missing = wanted == AmxUse::kOn && !has_amx();
  amx_wanted = missing ? AmxUse::kOff : wanted;
  return !missing;
}

std::vector<std::string> cpu_targets() {
  hwy::SetSupportedTargetsForTest(0);
  std::vector<std::string> names;
  for (int64_t target : hwy::SupportedAndGeneratedTargets()) {
    names.emplace_back(hwy::TargetName(target));
  }
  return names;
}

bool use_cpu_target(std::string_view name) {
  hwy::SetSupportedTargetsForTest(0);
  if (name.empty()) {
    hwy::GetChosenTarget().Update(hwy::SupportedTargets());
    return true;
  }
  for (int64_t target : hwy::SupportedAndGeneratedTargets()) {
    if (name != hwy::TargetName(target)) continue;
    hwy::SetSupportedTargetsForTest(target);
    hwy::GetChosenTarget().Update(hwy::SupportedTargets());
    return true;
  }
  return false;
}

}  // namespace atl::kernels
