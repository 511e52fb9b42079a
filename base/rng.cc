#include "base/rng.h"

namespace atl {
namespace {

// Source of the constants: the paper's reference code, Random123, philox.h.
constexpr uint32_t kMultiplier0 = 0xD2511F53;
constexpr uint32_t kMultiplier1 = 0xCD9E8D57;
constexpr uint32_t kWeyl0 = 0x9E3779B9;
constexpr uint32_t kWeyl1 = 0xBB67AE85;

uint32_t low(uint64_t x) { return static_cast<uint32_t>(x); }
uint32_t high(uint64_t x) { return static_cast<uint32_t>(x >> 32); }

std::array<uint32_t, 4> bits_at(uint64_t seed, RandomPlace place) {
  return philox4x32_10({low(place.sample_index), high(place.sample_index), low(place.position),
                        high(place.position)},
                       {low(seed), high(seed)});
}

}  // namespace

std::array<uint32_t, 4> philox4x32_10(std::array<uint32_t, 4> counter,
                                      std::array<uint32_t, 2> key) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = uint64_t{kMultiplier0} * counter[0];
    const uint64_t product1 = uint64_t{kMultiplier1} * counter[2];
    counter = {high(product1) ^ counter[1] ^ key[0], low(product1),
               high(product0) ^ counter[3] ^ key[1], low(product0)};
    key[0] += kWeyl0;
    key[1] += kWeyl1;
  }
  return counter;
}

double uniform_f64(uint64_t seed, RandomPlace place) {
  const auto bits = bits_at(seed, place);
  const uint64_t upper_53 = (uint64_t{bits[0]} << 32 | bits[1]) >> 11;
  return static_cast<double>(upper_53) * 0x1p-53;
}

float uniform_f32(uint64_t seed, RandomPlace place) {
  return static_cast<float>(bits_at(seed, place)[0] >> 8) * 0x1p-24f;
}

}  // namespace atl
