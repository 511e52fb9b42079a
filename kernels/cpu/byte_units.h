// What multiplies bytes beside the target's own instructions, as the kernels ask: see dispatch.h.
#pragma once

#include "kernels/cpu/dispatch.h"

namespace atl::kernels {

// Whether AVX-512 kernels may use VNNI: the CPU has it, and use_vnni(false) was not called.
bool vnni_in_use();
// What of use_amx() is in force.
AmxUse amx_in_use();

}  // namespace atl::kernels
