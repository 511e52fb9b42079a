// Random numbers that depend on their place only: no state, so any order of asking gives the same.
#pragma once

#include <array>
#include <cstdint>

namespace atl {

// Ten rounds of Philox4x32: 128 random bits from a 128-bit counter and a 64-bit key.
// Source: Salmon, Moraes, Dror, Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011.
std::array<uint32_t, 4> philox4x32_10(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key);

// Where a random number belongs: the same place gives the same number, on any machine.
struct RandomPlace {
  uint64_t sample_index = 0;  // which of several answers to one prompt
  uint64_t position = 0;      // of the token in its sequence
};

// Uniform numbers in [0, 1), a multiple of 2^-53 (2^-24), keyed by the seed.
double uniform_f64(uint64_t seed, RandomPlace place);
float uniform_f32(uint64_t seed, RandomPlace place);

}  // namespace atl
