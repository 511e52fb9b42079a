// Which SIMD instruction set the kernels run on. Chosen once, by what the CPU has.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace atl::kernels {

// Names of the targets that this build has and this CPU can run, best first: "AVX3" (AVX-512),
// "AVX2" and last the reference ("SCALAR" or "EMU128") on x86; "NEON" alone on aarch64.
std::vector<std::string> cpu_targets();

// Makes all kernels of this process run on one of cpu_targets(), or on the best again if `name` is
// empty. False if there is no such target. Not while kernels run.
bool use_cpu_target(std::string_view name);

// Lets AVX-512 kernels use VNNI, as they do where the CPU has it, or keeps them from it: for tests
// and comparisons. False if VNNI is wanted and the CPU has none. Not while kernels run.
bool use_vnni(bool wanted);

// Lets AVX-512 kernels use AMX's tiles of bytes, as they do where CPU and kernel have them; keeps
// them from it; or lets kernels of any SIMD target use an emulation of the tiles, slow and equal to
// the bit, so that this code is tested where there are none. False if AMX is wanted and can't be
// had. Not while kernels run.
enum class AmxUse : uint8_t { kOff, kOn, kEmulated };
bool use_amx(AmxUse wanted);

}  // namespace atl::kernels
