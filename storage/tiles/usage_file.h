// How often each expert was used, kept from one run to the next: JSON,
// {"atoll_expert_usage": 1, "checkpoint": "...", "layers": [{"layer": 3, "uses": [0.25, ...]}]}.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "storage/checkpoint/matrix_source.h"

namespace atl::storage {

// Uses of each expert of each layer, [moe_layers, experts]: finite, not negative. LoadError with
// the file's name if it can't be read, is no such file, or is of another checkpoint.
std::vector<double> read_usage_file(const std::filesystem::path& path, const ExpertCatalog& catalog,
                                    const std::string& checkpoint_fingerprint);
// Replaces the file in one step. LoadError.
void write_usage_file(const std::filesystem::path& path, const ExpertCatalog& catalog,
                      const std::string& checkpoint_fingerprint, const std::vector<double>& uses);

}  // namespace atl::storage
