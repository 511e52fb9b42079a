// The numerics profile: which number formats enter the arithmetic. Part of the model's identity,
// equal on the coordinator and all nodes. A value; docs/numbers.md says what each format rounds.
#pragma once

#include <optional>
#include <string>

#include "kernels/numeric_types.h"
#include "storage/checkpoint/matrix_source.h"
#include "storage/pack/pack.h"

namespace atl::model {

struct NumericsProfile {
  kernels::RowType wire = kernels::RowType::kBf16;
  kernels::RowType cache = kernels::RowType::kBf16;
  std::optional<kernels::WeightFormat> format;        // of routed experts; as in the checkpoint
  std::optional<kernels::WeightFormat> dense_format;  // of all other linear layers; likewise
  // Of matrices in int4, which alone have a choice; nullopt: kInt4Activations.
  std::optional<kernels::Activations> activations;

  storage::HeldFormat experts() const;
  storage::HeldFormat dense() const;
  // LoadError if activations are named and no matrix is asked for that has them.
  void check() const;
  // The profile with what a pack decides unless the user does: format and activations of the
  // routed experts. LoadError if another format is asked for, and as check().
  NumericsProfile with_pack(const storage::Pack& pack) const;
  // "wire bf16, kv bf16, experts int4 with i8 rows, dense as in the checkpoint".
  std::string describe(kernels::WeightFormat experts_in_checkpoint) const;
  // Of a model without experts: "kv bf16, weights as in the checkpoint".
  std::string describe_dense() const;
};

// What int4 matrices do with rows unless the user says: 2.8 times the speed of FP32 rows with
// 256 of them (docs/benchmarks.md), for a perplexity that differs by less than what int4 itself
// costs (docs/numbers.md, "Converted weights").
inline constexpr kernels::Activations kInt4Activations = kernels::Activations::kI8;

}  // namespace atl::model
