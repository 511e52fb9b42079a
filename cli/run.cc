// atoll run: one prompt to text.
#include <fmt/format.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <memory>
#include <string>

#include "base/units.h"
#include "cli/commands.h"
#include "cli/deployment_options.h"
#include "cli/help_formatter.h"
#include "cli/model_text.h"
#include "cli/output.h"
#include "cli/stats_report.h"
#include "cli/text_input.h"
#include "coordinator/api/chat_prompt.h"
#include "coordinator/serving/generate.h"
#include "model/sampler.h"
#include "text/chat_template.h"
#include "text/tokenizer.h"

namespace atl::cli {
namespace {

struct RunOptions {
  deployment::DeploymentOptions deployment;
  PromptSource prompt;
  bool chat = false;
  int64_t max_tokens = 128;
  model::SamplingParams sampling;
  bool ignore_eos = false;
  bool stats = false;
  bool json = false;
};

std::vector<int32_t> encode_prompt(const text::Tokenizer& tokenizer,
                                   const model::ModelConfig& config, const Prompt& prompt) {
  auto ids = tokenizer.encode(prompt.text, {.add_bos = false});
  if (!ids) throw LoadError(prompt.name + ": " + ids.error().message);
  // A rendered chat template already starts with the BOS; it is never doubled.
  const std::optional<int32_t> bos = tokenizer.bos_id() ? tokenizer.bos_id() : config.bos_token_id;
  if (tokenizer.add_bos_token() && bos && (ids->empty() || ids->front() != *bos)) {
    ids->insert(ids->begin(), *bos);
  }
  if (ids->empty())
    throw LoadError(prompt.name + " is empty and the model has no BOS token to start from");
  return std::move(*ids);
}

// The prompt as what a user says to the model, by its own chat template.
void apply_chat_template(const std::filesystem::path& model_dir, Prompt* prompt) {
  const auto chat_template = load_chat_template(model_dir);
  if (!chat_template) {
    throw LoadError(
        fmt::format("{}: --chat: the model has no chat template; leave --chat out to "
                    "continue the text as it is",
                    model_dir.string()));
  }
  coordinator::ChatInput input;
  coordinator::ChatMessage& message = input.messages.emplace_back();
  message.role = "user";
  message.content = prompt->text;
  auto rendered =
      coordinator::render_chat(*chat_template, coordinator::chat_traits(*chat_template), input);
  if (!rendered) throw LoadError("--chat: " + rendered.error().message);
  prompt->text = std::move(rendered->text);
}

coordinator::GenerateRequest make_request(const RunOptions& options,
                                          const text::Tokenizer& tokenizer,
                                          const model::ModelConfig& config) {
  coordinator::GenerateRequest request;
  Prompt prompt = read_prompt(options.prompt);
  if (options.chat) apply_chat_template(options.deployment.model_dir, &prompt);
  request.prompt = encode_prompt(tokenizer, config, prompt);
  request.max_tokens = options.max_tokens;
  request.rows_max = options.deployment.rows_max;
  request.sampling = options.sampling;
  if (!options.ignore_eos) request.stop_ids = config.eos_token_ids;
  request.vocab_limit =
      static_cast<int32_t>(std::min<int64_t>(tokenizer.id_end(), config.vocab_size));
  for (int32_t id = 0; id < request.vocab_limit; ++id) {
    request.allowed.push_back(tokenizer.has_token(id));
  }
  return request;
}

void run(const RunOptions& options) {
  if (Status valid = model::check(options.sampling); !valid) throw LoadError(valid.error().message);
  const model::ModelConfig config = model::load_config(options.deployment.model_dir);
  const text::Tokenizer tokenizer = load_tokenizer(options.deployment.model_dir);
  const coordinator::GenerateRequest request = make_request(options, tokenizer, config);
  const auto prompt_tokens = static_cast<int64_t>(request.prompt.size());
  if (prompt_tokens > config.max_position_embeddings) {
    throw LoadError(fmt::format("the prompt has {} tokens, the model takes {}", prompt_tokens,
                                config.max_position_embeddings));
  }

  deployment::DeploymentOptions deployment_options = options.deployment;
  deployment_options.cache_tokens =
      std::min(prompt_tokens + options.max_tokens, config.max_position_embeddings);
  deployment_options.cache_option.advice = "fewer --max-tokens";
  deployment::Deployment deployment(deployment_options);
  const std::unique_ptr<ScopedThreadPin> pin = deployment.pin_engine_thread();

  model::Sampler sampler;
  text::StreamDecoder decoder(tokenizer, text::SpecialTokens::kSkip);
  std::string text;
  const auto say = [&](const std::string& piece) {
    text += piece;
    if (!options.json) write_stdout(piece);
  };
  auto result = coordinator::generate(deployment.engine(), deployment.clock(), request, sampler,
                                      [&](int32_t token) { say(decoder.push(token)); });
  say(decoder.flush());
  if (!options.json) write_stdout("\n");
  if (!result) throw LoadError(result.error().message);

  const RunFigures figures = run_figures(prompt_tokens, *result);
  if (options.json) {
    write_stdout(run_json(figures, text, *result, deployment) + "\n");
  }
  if (options.stats) print_stats(figures, deployment);
}

}  // namespace

void add_run_command(CLI::App& app, int* exit_code) {
  auto options = std::make_shared<RunOptions>();
  CLI::App* command =
      app.add_subcommand("run", "Continue a prompt; text goes to stdout as it comes");
  add_deployment_options(*command, &options->deployment);
  CLI::Option* prompt = command
                            ->add_option_function<std::string>(
                                "--prompt",
                                [options](const std::string& text) {
                                  options->prompt.is_given = true;
                                  options->prompt.text = text;
                                },
                                "Text to continue; without it and --prompt-file, what stdin says")
                            ->type_name("TEXT");
  command
      ->add_option(
          "--prompt-file", options->prompt.file,
          "File with the text to continue; - is stdin. A line break at its end is left out")
      ->type_name("PATH")
      ->excludes(prompt);
  command->add_flag("--chat", options->chat,
                    "The prompt is what a user says: put it into the model's chat template");
  command->add_option("--max-tokens", options->max_tokens, "Most tokens to generate")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 30))
      ->capture_default_str();
  command
      ->add_option("--temperature", options->sampling.temperature,
                   "0: always the likeliest token; else sample, logits divided by it")
      ->capture_default_str();
  command
      ->add_option("--top-p", options->sampling.top_p,
                   "Sample from the likeliest tokens that make up this probability")
      ->capture_default_str();
  command->add_option("--top-k", options->sampling.top_k, "Sample from the k likeliest; 0: all")
      ->capture_default_str();
  command
      ->add_option("--min-p", options->sampling.min_p,
                   "Leave out tokens below this share of the likeliest one's probability")
      ->capture_default_str();
  command
      ->add_option("--seed", options->sampling.seed,
                   "Seed of the sampling; equal seeds, equal text")
      ->capture_default_str();
  command->add_flag("--ignore-eos", options->ignore_eos, "Go on after an end-of-text token");
  command->add_flag("--stats", options->stats, "Speed, time per part and work per node, on stderr");
  command->add_flag("--json", options->json, "One JSON object on stdout instead of the text");
  group_options(*command, "Prompt", {"--prompt", "--prompt-file", "--chat"});
  group_options(
      *command, "Sampling",
      {"--max-tokens", "--temperature", "--top-p", "--top-k", "--min-p", "--seed", "--ignore-eos"});
  group_options(*command, "Report", {"--stats", "--json"});
  command->footer(
      "Example:\n  atoll run tests/models/tiny-fp8 --prompt \"And God said,\" --nodes 3 "
      "--max-tokens 64 --stats\n"
      "  git diff | atoll run MODEL_DIR --chat --max-tokens 512");
  command->callback([options, exit_code] {
    const PromptSource& source = options->prompt;
    if (!source.is_given && source.file.empty() && isatty(STDIN_FILENO)) {
      throw CLI::RequiredError("--prompt, --prompt-file or text on stdin");
    }
    run(*options);
    *exit_code = 0;
  });
}

}  // namespace atl::cli
