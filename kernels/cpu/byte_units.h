// What multiplies bytes beside the target's own instructions, as the kernels ask: see dispatch.h.
#pragma once

#include "kernels/cpu/dispatch.h"

namespace atl::kernels {

// Whether AVX-512 kernels may use VNNI: the CPU has it, and use_vnni(false) was not called.
bool vnni_in_use();
// What of use_amx() is in force.
AmxUse amx_in_use();

// A thread's emulated tiles (amx-inl.h).
struct EmulatedTileState {
  bool configured = false;
  alignas(64) uint8_t bytes[8][16][64];
};
EmulatedTileState& emulated_tiles();

}  // namespace atl::kernels
