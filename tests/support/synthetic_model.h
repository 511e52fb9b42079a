// Small generated models for tests.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

#include "model/synthetic.h"

namespace atl::test {

// A V3-like FP8 model of two layers (the second has 8 experts, top 3) with this hidden size and
// expert width, vocabulary 500, written to `dir`.
void write_small_model(const std::filesystem::path& dir, int64_t hidden_size,
                       int64_t moe_intermediate_size);

// Overwrites `count` FP32 values of a tensor from its byte `offset` on.
void patch_tensor(const std::filesystem::path& dir, const std::string& tensor, uint64_t offset,
                  uint64_t count, float value);

}  // namespace atl::test
