// atoll pack: writes an expert pack from a checkpoint, or re-reads one.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <charconv>
#include <csignal>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>

#include "base/clock.h"
#include "base/one_line.h"
#include "base/result.h"
#include "base/units.h"
#include "cli/commands.h"
#include "cli/numerics.h"
#include "cli/output.h"
#include "cli/progress_bar.h"
#include "cli/thread_options.h"
#include "deployment/model_parts.h"
#include "model/config.h"
#include "model/conversion_loss.h"
#include "model/gguf_source.h"
#include "model/numerics_profile.h"
#include "model/weights_map.h"
#include "storage/checkpoint/tensor_source.h"
#include "storage/gguf/gguf_files.h"
#include "storage/pack/pack.h"
#include "storage/pack/pack_writer.h"

namespace atl::cli {
namespace {

namespace fs = std::filesystem;
using storage::IndexRange;

struct PackCommandOptions {
  fs::path dir;
  fs::path out;
  std::string format = "auto";
  std::string layers, tiles;
  int threads = 0;
  bool verify = false;
};

// "3-10" or "3".
std::optional<IndexRange> parse_range(std::string_view text) {
  const auto number = [](std::string_view digits) -> std::optional<int> {
    int value = 0;
    const char* end = digits.data() + digits.size();
    if (std::from_chars(digits.data(), end, value) != std::from_chars_result{end, std::errc()} ||
        value < 0) {
      return std::nullopt;
    }
    return value;
  };
  const size_t dash = text.find('-');
  const auto first = number(text.substr(0, dash));
  const auto last = dash == text.npos ? first : number(text.substr(dash + 1));
  if (!first || !last || *first > *last) return std::nullopt;
  return IndexRange{*first, *last};
}

std::string check_range(const std::string& text) {
  if (parse_range(text)) return "";
  return fmt::format("'{}' is no range, expected A-B with 0 <= A <= B", text);
}

int num_threads(const PackCommandOptions& options) {
  topology::TeamRequest request;
  request.num_threads = options.threads;
  return plan_threads(request).num_threads;
}

// What a pack carries of a GGUF model's quantized weights is BF16, as a run of the file holds them.
std::unique_ptr<const storage::TensorSource> open_source(const fs::path& model,
                                                         const model::ModelConfig& config) {
  if (storage::find_gguf(model)) {
    return model::GgufSource::open(model, model::QuantizedDense::kBf16);
  }
  return model::open_checkpoint(model, config);
}

void write(const PackCommandOptions& options) {
  // A file that would grow beyond the process's limit is an error of the write.
  std::signal(SIGXFSZ, SIG_IGN);
  if (storage::Pack::is_pack(options.dir)) {
    throw LoadError(fmt::format(
        "{}: a pack already: pack from the checkpoint, or leave --out away and --verify this one",
        options.dir.string()));
  }
  const model::ModelConfig config = model::load_config(options.dir);
  const std::unique_ptr<const storage::TensorSource> source = open_source(options.dir, config);
  const storage::TensorSource& checkpoint = *source;
  model::map_tensors(config, checkpoint);  // throws if a tensor is missing, strange or misshapen
  const storage::ExpertCatalog catalog =
      model::map_experts(config, checkpoint, model::MtpLayers::kAll);
  model::NumericsProfile numerics;
  numerics.format = kernels::parse_weight_format(options.format);
  if (const auto* gguf = dynamic_cast<const model::GgufSource*>(&checkpoint)) {
    numerics = model::held_of_gguf(gguf->summary(), numerics);
    // Of what the file has, not of what open_source() already rounded.
    const auto exact = model::GgufSource::open(options.dir);
    for (const std::string& note : model::conversion_notes(*exact, config, numerics)) {
      fmt::print(stderr, "atoll: {}\n", note);
    }
  }
  storage::PackOptions pack;
  pack.format = numerics.experts();
  if (!options.layers.empty()) pack.layers = parse_range(options.layers);
  if (!options.tiles.empty()) pack.tiles = parse_range(options.tiles);
  pack.num_threads = num_threads(options);
  pack.window_bytes = deployment::kStagingWindowBytes;

  const SteadyClock clock;
  const auto start = clock.now();
  ProgressBar progress("packing");
  const storage::PackReport report =
      storage::write_pack(checkpoint, catalog, options.out, pack, progress);
  progress.finish();
  const storage::Pack whole = storage::Pack::open(options.out);
  write_stdout(fmt::format(
      "{}: {} of experts in {}, {} layers{}, tiles {}-{}{}\n", options.out.string(),
      format_bytes(whole.total_bytes()), kernels::to_string(whole.params().format),
      whole.params().layers.size(),
      report.was_whole          ? " (nothing to do: the pack is whole)"
      : report.layers_kept != 0 ? fmt::format(" ({} were there)", report.layers_kept)
                                : "",
      whole.geometry().tile_begin(), whole.geometry().tile_end() - 1,
      report.was_whole
          ? ""
          : fmt::format(", written in {}", format_duration(seconds_between(start, clock.now())))));
}

int verify(const fs::path& dir, int threads) {
  ProgressBar progress("verifying");
  const std::vector<std::string> problems = storage::verify_pack(dir, threads, progress);
  progress.finish();
  if (problems.empty()) {
    write_stdout(fmt::format("{}: every checksum is right\n", dir.string()));
    return 0;
  }
  for (size_t i = 0; i + 1 < problems.size(); ++i) {
    fmt::print(stderr, "atoll: error: {}\n", one_line(problems[i]));
  }
  throw LoadError(problems.back());
}

}  // namespace

void add_pack_command(CLI::App& app, int* exit_code) {
  auto options = std::make_shared<PackCommandOptions>();
  CLI::App* command = app.add_subcommand(
      "pack", "Write an expert pack, which starts fast and streams at disk speed; or re-read one");
  command
      ->add_option("dir", options->dir,
                   "Checkpoint directory to pack; without --out: the pack to --verify")
      ->required()
      ->type_name("DIR");
  command
      ->add_option("--out", options->out,
                   "Directory of the pack; an interrupted one is finished by the same command")
      ->type_name("DIR");
  command
      ->add_option("--format", options->format,
                   "Convert routed experts to this; auto (as in the checkpoint) unless given")
      ->check(CLI::IsMember({"auto", "fp8", "bf16", "f32", "int8", "int4"}))
      ->type_name("auto|fp8|bf16|f32|int8|int4");
  command->add_option("--layers", options->layers, "Pack these layers only; all unless given")
      ->check(check_range)
      ->type_name("A-B");
  command
      ->add_option("--tiles", options->tiles,
                   "Pack these tiles of every expert only; all unless given")
      ->check(check_range)
      ->type_name("A-B");
  command->add_flag("--verify", options->verify,
                    "Read the whole pack (again) and compare every checksum; off unless given");
  add_threads_option(*command, "Threads", &options->threads);
  command->footer(
      "Examples:\n  atoll pack MODEL_DIR --out PACK_DIR --format int4 --verify\n"
      "  atoll pack PACK_DIR --verify");
  command->callback([options, exit_code] {
    if (options->out.empty() && !options->verify) {
      throw CLI::RequiredError("--out (or --verify, to re-read a pack)");
    }
    if (!options->out.empty()) write(*options);
    *exit_code = 0;
    if (options->verify) {
      *exit_code =
          verify(options->out.empty() ? options->dir : options->out, num_threads(*options));
    }
  });
}

}  // namespace atl::cli
