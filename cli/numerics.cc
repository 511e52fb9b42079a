#include "cli/numerics.h"

#include <CLI/CLI.hpp>

#include "cli/help_formatter.h"

namespace atl::cli {
namespace {

using kernels::RowType;
using kernels::WeightFormat;

constexpr const char* kFormatNames = "auto|fp8|bf16|f32|int8|int4";

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
      ->check(CLI::IsMember({"auto", "fp8", "bf16", "f32", "int8", "int4"}))
      ->type_name(kFormatNames);
}

}  // namespace

void take_numerics(const config::NumericsConfig& numerics, const CLI::App& command,
                   model::NumericsProfile* profile) {
  const auto is_open = [&](const char* option) { return command.count(option) == 0; };
  const model::NumericsProfile of_file = deployment::numerics_of(numerics);
  if (is_open("--wire")) profile->wire = of_file.wire;
  if (is_open("--kv")) profile->cache = of_file.cache;
  if (is_open("--format")) profile->format = of_file.format;
  if (is_open("--dense-format")) profile->dense_format = of_file.dense_format;
  if (is_open("--activations") && of_file.activations) {
    profile->activations = of_file.activations;
  }
}

void add_numerics_options(CLI::App& command, model::NumericsProfile* profile) {
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
