// atoll eval: how well the model predicts given text, token by token.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "base/units.h"
#include "cli/commands.h"
#include "cli/deployment_options.h"
#include "cli/help_formatter.h"
#include "cli/model_text.h"
#include "cli/output.h"
#include "cli/progress_bar.h"
#include "cli/stats_report.h"
#include "cli/text_input.h"
#include "coordinator/engine/evaluate.h"
#include "text/tokenizer.h"

namespace atl::cli {
namespace {

struct EvalOptions {
  deployment::DeploymentOptions deployment;
  std::string tokens_file;
  std::string text_file;
  int64_t row_length = 0;
  std::string dtype = "u16";
  std::string logits_out;
  bool cold_start = false;
  bool stats = false;
  bool json = false;
};

int32_t id_at(const std::string& bytes, size_t index, bool u16) {
  if (u16) {
    uint16_t id;
    std::memcpy(&id, bytes.data() + index * sizeof(id), sizeof(id));
    return id;
  }
  int32_t id;
  std::memcpy(&id, bytes.data() + index * sizeof(id), sizeof(id));
  return id;
}

// Rows of raw little-endian ids.
std::vector<std::vector<int32_t>> read_token_rows(const EvalOptions& options,
                                                  const model::ModelConfig& config) {
  const bool u16 = options.dtype == "u16";
  const std::string bytes = read_file(options.tokens_file);
  const size_t row_bytes = options.row_length * (u16 ? 2 : 4);
  if (bytes.empty() || bytes.size() % row_bytes != 0) {
    throw LoadError(fmt::format(
        "{}: {} bytes are not a whole number of rows of {} {} ids ({} bytes each); check "
        "--row-length and --dtype",
        options.tokens_file, bytes.size(), options.row_length, options.dtype, row_bytes));
  }
  std::vector<std::vector<int32_t>> rows(bytes.size() / row_bytes);
  for (size_t row = 0; row < rows.size(); ++row) {
    for (int64_t i = 0; i < options.row_length; ++i) {
      const int32_t id = id_at(bytes, row * options.row_length + i, u16);
      if (id < 0 || id >= config.vocab_size) {
        throw LoadError(fmt::format("{}: row {}, place {}: id {} is not in the vocabulary of {}",
                                    options.tokens_file, row, i, id, config.vocab_size));
      }
      rows[row].push_back(id);
    }
  }
  return rows;
}

// Plain text cut into rows of the BOS and row_length - 1 tokens; the last may be shorter.
std::vector<std::vector<int32_t>> read_text_rows(const EvalOptions& options,
                                                 const model::ModelConfig& config) {
  const text::Tokenizer tokenizer = load_tokenizer(options.deployment.model_dir);
  const std::optional<int32_t> bos = tokenizer.bos_id() ? tokenizer.bos_id() : config.bos_token_id;
  if (!bos) throw LoadError("the model names no BOS token, which every row starts with");
  const std::string text = read_file(options.text_file);
  require_utf8(text, options.text_file);
  auto ids = tokenizer.encode(text, {.parse_added_tokens = false});
  if (!ids) throw LoadError(options.text_file + ": " + ids.error().message);
  if (ids->empty()) throw LoadError(options.text_file + ": has no text to score");
  std::vector<std::vector<int32_t>> rows;
  for (size_t at = 0; at < ids->size(); at += options.row_length - 1) {
    const size_t n = std::min<size_t>(options.row_length - 1, ids->size() - at);
    std::vector<int32_t>& row = rows.emplace_back(1, *bos);
    row.insert(row.end(), ids->begin() + at, ids->begin() + at + n);
  }
  return rows;
}

// FP32 [rows * row_length, vocab]; rows shorter than row_length are padded with zeros.
class LogitsFile {
 public:
  LogitsFile(const std::string& path, int64_t row_length, int64_t vocab)
      : path_(path), row_length_(row_length), vocab_(vocab), file_(std::fopen(path.c_str(), "wb")) {
    if (!file_) fail();
  }
  ~LogitsFile() {
    if (file_) std::fclose(file_);
  }
  void write(size_t row, size_t position, std::span<const float> logits) {
    const int64_t at = (static_cast<int64_t>(row) * row_length_ + static_cast<int64_t>(position)) *
                       vocab_ * static_cast<int64_t>(sizeof(float));
    if (fseeko(file_, at, SEEK_SET) != 0 ||
        std::fwrite(logits.data(), sizeof(float), logits.size(), file_) != logits.size()) {
      fail();
    }
  }
  void close() {
    std::FILE* file = std::exchange(file_, nullptr);
    if (std::fclose(file) != 0) fail();
  }

 private:
  [[noreturn]] void fail() const {
    throw LoadError(fmt::format("{}: cannot be written: {}", path_, std::strerror(errno)));
  }
  std::string path_;
  int64_t row_length_, vocab_;
  std::FILE* file_;
};

void eval(const EvalOptions& options) {
  const model::ModelConfig config = model::load_config(options.deployment.model_dir);
  if (options.row_length > config.max_position_embeddings) {
    throw LoadError(fmt::format("--row-length {} is longer than the model's {} positions",
                                options.row_length, config.max_position_embeddings));
  }
  const std::vector<std::vector<int32_t>> rows = options.text_file.empty()
                                                     ? read_token_rows(options, config)
                                                     : read_text_rows(options, config);
  std::optional<LogitsFile> logits_file;
  if (!options.logits_out.empty()) {
    logits_file.emplace(options.logits_out, options.row_length, config.vocab_size);
  }
  // Rows that share a step have a cache each: as many as begin in one step, and one more that goes
  // over its end.
  deployment::DeploymentOptions deployment_options = options.deployment;
  const int64_t rows_open = options.deployment.rows_max / options.row_length + 2;
  deployment_options.cache_tokens =
      rows_open * round_up(options.row_length, kernels::kAttentionBlock);
  deployment_options.cache_option.advice = "a smaller --row-length or --chunk";
  deployment::Deployment deployment(deployment_options);
  if (!options.cold_start) deployment.wait_until_warm();
  const std::unique_ptr<ScopedThreadPin> pin = deployment.pin_engine_thread();

  coordinator::EvaluateOptions evaluate_options;
  evaluate_options.rows_max = options.deployment.rows_max;
  const auto start = deployment.clock().now();
  auto result =
      coordinator::evaluate(deployment.engine(), rows, evaluate_options,
                            [&](size_t row, size_t position, std::span<const float> logits) {
                              if (logits_file) logits_file->write(row, position, logits);
                            });
  const double seconds = seconds_between(start, deployment.clock().now());
  if (!result) throw LoadError(result.error().message);
  if (logits_file) logits_file->close();

  const double perplexity = std::exp(result->nll);
  const double rate = seconds > 0 ? static_cast<double>(result->tokens) / seconds : 0;
  if (options.json) {
    nlohmann::json json = {{"tokens", result->tokens},
                           {"nll", result->nll},
                           {"perplexity", perplexity},
                           {"seconds", seconds},
                           {"tokens_per_second", rate}};
    json.update(nlohmann::json::parse(nodes_json(deployment)));
    write_stdout(json.dump() + "\n");
  } else {
    write_stdout(fmt::format(
        "tokens scored           {}\nmean nll (natural log)  {:.6f}\nperplexity              "
        "{:.4f}\n"
        "speed                   {:.1f} tokens/s ({} in all)\n",
        format_count(result->tokens), result->nll, perplexity, rate, format_duration(seconds)));
  }
  if (options.stats) {
    print_step_times(deployment.engine().times());
    print_nodes(deployment);
  }
}

}  // namespace

void add_eval_command(CLI::App& app, int* exit_code) {
  auto options = std::make_shared<EvalOptions>();
  CLI::App* command =
      app.add_subcommand("eval", "Negative log-likelihood and perplexity of given tokens or text");
  add_deployment_options(*command, &options->deployment);
  auto* tokens = command
                     ->add_option("--tokens", options->tokens_file,
                                  "Raw little-endian ids in rows of --row-length; the first of "
                                  "each row is its BOS, the others are scored")
                     ->type_name("FILE");
  command->add_option("--text", options->text_file, "Plain text instead, cut into rows")
      ->type_name("FILE")
      ->excludes(tokens);
  command->add_option("--row-length", options->row_length, "Ids per row, BOS included")
      ->required()
      ->check(CLI::Range(int64_t{2}, int64_t{1} << 30));
  command->add_option("--dtype", options->dtype, "Type of the ids: u16 or i32")
      ->check(CLI::IsMember({"u16", "i32"}))
      ->capture_default_str();
  command
      ->add_option("--logits-out", options->logits_out,
                   "Write all logits, float32 [rows * row length, vocabulary]")
      ->type_name("FILE");
  add_cold_start_option(*command, &options->cold_start);
  command->add_flag("--stats", options->stats, "Time per part and work per node, on stderr");
  command->add_flag("--json", options->json, "One JSON object on stdout");
  group_options(*command, "Text", {"--tokens", "--text", "--row-length", "--dtype"});
  group_options(*command, "Report", {"--logits-out", "--stats", "--json"});
  group_options(*command, "Memory", {"--cold-start"});
  command->footer(
      "Example:\n  atoll eval tests/models/tiny-fp8 --tokens tests/golden/ppl/kjv.ids.u16.bin "
      "--row-length 384 --json");
  command->callback([options, exit_code] {
    if (options->tokens_file.empty() && options->text_file.empty()) {
      throw CLI::RequiredError("--tokens or --text");
    }
    eval(*options);
    *exit_code = 0;
  });
}

}  // namespace atl::cli
