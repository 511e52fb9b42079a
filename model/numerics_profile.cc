#include "model/numerics_profile.h"

#include <fmt/format.h>

#include "base/result.h"

namespace atl::model {

using kernels::WeightFormat;

storage::HeldFormat NumericsProfile::experts() const {
  return {format, activations.value_or(kInt4Activations)};
}
storage::HeldFormat NumericsProfile::dense() const {
  return {dense_format, activations.value_or(kInt4Activations)};
}

void NumericsProfile::check() const {
  if (!activations || format == WeightFormat::kInt4 || dense_format == WeightFormat::kInt4) return;
  if (format == WeightFormat::kInt8 || dense_format == WeightFormat::kInt8) {
    if (activations == kernels::Activations::kI8) return;
    throw LoadError("--activations f32: int8 weights take i8 rows alone; int4 takes both");
  }
  throw LoadError(fmt::format(
      "--activations {} is for matrices in int4, and none is asked for: add --format int4 or "
      "--dense-format int4",
      kernels::to_string(*activations)));
}

NumericsProfile NumericsProfile::with_pack(const storage::Pack& pack) const {
  const storage::PackParams& packed = pack.params();
  if (format && *format != packed.format) {
    throw LoadError(fmt::format(
        "{}: the pack holds experts in {}, not in {}: leave --format out, or pack again with it",
        pack.directory().string(), kernels::to_string(packed.format), kernels::to_string(*format)));
  }
  NumericsProfile profile = *this;
  profile.format = packed.format;
  if (packed.format == WeightFormat::kInt4) {
    profile.activations = activations.value_or(packed.activations);
  }
  profile.check();
  return profile;
}

namespace {

// "fp8", "int4 with i8 rows".
std::string with_rows(WeightFormat held, std::optional<kernels::Activations> activations) {
  std::string text(kernels::to_string(held));
  if (!kernels::is_packed_only(held)) return text;
  const bool chosen = held == WeightFormat::kInt4;
  return fmt::format("{} with {} rows", text,
                     kernels::to_string(chosen ? activations.value_or(kInt4Activations)
                                               : kernels::Activations::kI8));
}

}  // namespace

std::string NumericsProfile::describe(WeightFormat experts_in_checkpoint) const {
  return fmt::format("wire {}, kv {}, experts {}, dense {}", kernels::to_string(wire),
                     kernels::to_string(cache),
                     with_rows(format.value_or(experts_in_checkpoint), activations),
                     dense_format ? with_rows(*dense_format, activations) : "as in the checkpoint");
}

std::string NumericsProfile::describe_dense() const {
  return fmt::format("kv {}, weights {}", kernels::to_string(cache),
                     dense_format ? with_rows(*dense_format, activations) : "as in the checkpoint");
}

}  // namespace atl::model
