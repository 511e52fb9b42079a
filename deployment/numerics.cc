#include "deployment/numerics.h"

namespace atl::deployment {
namespace {

using kernels::RowType;
using kernels::WeightFormat;

std::string format_name(const std::optional<WeightFormat>& format) {
  return format ? std::string(kernels::to_string(*format)) : "auto";
}

}  // namespace

transport::WireRowType wire_row_type(RowType type) {
  return type == RowType::kBf16 ? transport::WireRowType::kBf16 : transport::WireRowType::kF32;
}

std::vector<std::string> numerics_arguments(const model::NumericsProfile& profile) {
  std::vector<std::string> arguments = {
      "--wire",         std::string(kernels::to_string(profile.wire)),
      "--kv",           std::string(kernels::to_string(profile.cache)),
      "--format",       format_name(profile.format),
      "--dense-format", format_name(profile.dense_format)};
  if (profile.activations) {
    arguments.insert(arguments.end(),
                     {"--activations", std::string(kernels::to_string(*profile.activations))});
  }
  return arguments;
}

model::NumericsProfile numerics_of(const config::NumericsConfig& numerics) {
  const auto row_type = [](const std::string& text) {
    return text == "f32" ? RowType::kF32 : RowType::kBf16;
  };
  model::NumericsProfile profile;
  profile.wire = row_type(numerics.wire);
  profile.cache = row_type(numerics.kv);
  profile.format = kernels::parse_weight_format(numerics.format);
  profile.dense_format = kernels::parse_weight_format(numerics.dense_format);
  if (!numerics.activations.empty()) {
    profile.activations = kernels::parse_activations(numerics.activations);
  }
  return profile;
}

}  // namespace atl::deployment
