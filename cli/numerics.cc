#include "cli/numerics.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>

#include "base/result.h"
#include "cli/help_formatter.h"

namespace atl::cli {
namespace {

using kernels::Activations;
using kernels::RowType;
using kernels::WeightFormat;

constexpr const char* kFormatNames = "auto|fp8|bf16|f32|int4";

void add_row_type_option(CLI::App& command, const std::string& name, const std::string& what,
                         RowType* type) {
  command
      .add_option_function<std::string>(
          name,
          [type](const std::string& text) {
            *type = text == "f32" ? RowType::kF32 : RowType::kBf16;
          },
          what + ": bf16 or f32; bf16 unless given")
      ->check(CLI::IsMember({"bf16", "f32"}))
      ->type_name("bf16|f32");
}

void add_format_option(CLI::App& command, const std::string& name, const std::string& what,
                       std::optional<WeightFormat>* format) {
  command
      .add_option_function<std::string>(
          name, [format](const std::string& text) { *format = kernels::parse_weight_format(text); },
          what + "; auto (as in the checkpoint) unless given")
      ->check(CLI::IsMember({"auto", "fp8", "bf16", "f32", "int4"}))
      ->type_name(kFormatNames);
}

std::string format_name(const std::optional<WeightFormat>& format) {
  return format ? std::string(kernels::to_string(*format)) : "auto";
}

}  // namespace

storage::HeldFormat NumericsProfile::experts() const {
  return {format, activations.value_or(kInt4Activations)};
}
storage::HeldFormat NumericsProfile::dense() const {
  return {dense_format, activations.value_or(kInt4Activations)};
}

transport::WireRowType NumericsProfile::wire_row_type() const {
  return wire == RowType::kBf16 ? transport::WireRowType::kBf16 : transport::WireRowType::kF32;
}

void NumericsProfile::check() const {
  if (!activations || format == WeightFormat::kInt4 || dense_format == WeightFormat::kInt4) return;
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

std::string NumericsProfile::describe(WeightFormat experts_in_checkpoint) const {
  const auto with_rows = [this](WeightFormat held) {
    std::string text(kernels::to_string(held));
    if (held != WeightFormat::kInt4) return text;
    return fmt::format("{} with {} rows", text,
                       kernels::to_string(activations.value_or(kInt4Activations)));
  };
  return fmt::format("wire {}, kv {}, experts {}, dense {}", kernels::to_string(wire),
                     kernels::to_string(cache), with_rows(format.value_or(experts_in_checkpoint)),
                     dense_format ? with_rows(*dense_format) : "as in the checkpoint");
}

std::vector<std::string> NumericsProfile::arguments() const {
  std::vector<std::string> arguments = {"--wire",         std::string(kernels::to_string(wire)),
                                        "--kv",           std::string(kernels::to_string(cache)),
                                        "--format",       format_name(format),
                                        "--dense-format", format_name(dense_format)};
  if (activations) {
    arguments.insert(arguments.end(),
                     {"--activations", std::string(kernels::to_string(*activations))});
  }
  return arguments;
}

void add_numerics_options(CLI::App& command, NumericsProfile* profile) {
  add_row_type_option(command, "--wire", "Rows sent to the experts are rounded to this",
                      &profile->wire);
  add_row_type_option(command, "--kv", "Entries of the KV cache are rounded to this",
                      &profile->cache);
  add_format_option(command, "--format", "Weights of routed experts are converted to this",
                    &profile->format);
  add_format_option(command, "--dense-format",
                    "All other linear layers (not the router) are converted to this",
                    &profile->dense_format);
  command
      .add_option_function<std::string>(
          "--activations",
          [profile](const std::string& text) {
            profile->activations = kernels::parse_activations(text);
          },
          "Rows that meet int4 weights: i8 (rounded per 128 values, integer products) or f32; "
          "i8 unless given")
      ->check(CLI::IsMember({"i8", "f32"}))
      ->type_name("i8|f32");
  group_options(command, "Number formats",
                {"--format", "--dense-format", "--activations", "--wire", "--kv"});
}

}  // namespace atl::cli
