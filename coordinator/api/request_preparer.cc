#include "coordinator/api/request_preparer.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <random>

#include "coordinator/api/anthropic.h"
#include "coordinator/api/door_words.h"

namespace atl::coordinator {
namespace {

using Json = nlohmann::ordered_json;

const ChatPrompt kNoThoughts{.text = {}, .reasoning_open = false, .reasoning_closed = true};
constexpr int64_t kCompletionTokensDefault = 16;  // OpenAI's
constexpr size_t kGrammarsMax = 1024;             // compiled and refused schemas kept
constexpr size_t kGrammarBytesMax = size_t{256} << 20;
constexpr size_t kSchemaBytesMax = 1 << 20;
constexpr size_t kStoredBytesMax = size_t{64} << 20;  // of conversations of /v1/responses

int64_t context_of(const ApiOptions& options, const model::ModelConfig& config) {
  if (options.context_tokens <= 0) return config.max_position_embeddings;
  return std::min(options.context_tokens, config.max_position_embeddings);
}

uint64_t random_seed() {
  std::random_device device;
  return (uint64_t{device()} << 32) | device();
}

PreparedGeneration prepare(const GenerationFields& fields) {
  PreparedGeneration prepared;
  prepared.stream = fields.stream;
  prepared.include_usage = fields.include_usage;
  prepared.logprobs = fields.top_logprobs >= 0;
  prepared.user = fields.user;
  return prepared;
}

DoorOptions door_options(const PreparedGeneration& asked) {
  return {.prompt_tokens = asked.prompt_tokens,
          .reasoning = asked.reasoning,
          .call_ids = asked.call_ids};
}

}  // namespace

RequestPreparer::RequestPreparer(const ApiOptions& options, const model::ModelConfig& config,
                                 const text::Tokenizer& tokenizer,
                                 const text::ChatTemplate* chat_template)
    : options_(options),
      config_(config),
      tokenizer_(tokenizer),
      chat_template_(chat_template),
      traits_(chat_template ? chat_traits(*chat_template) : ChatTraits()),
      context_tokens_(context_of(options, config)),
      limits_{.choices_max = options.choices_max,
              .vocab_limit =
                  static_cast<int32_t>(std::min<int64_t>(tokenizer.id_end(), config.vocab_size))},
      vocabulary_(tokenizer, config.eos_token_ids),
      any_object_(constrain::json_object_grammar()),
      grammars_(kGrammarsMax, kGrammarBytesMax),
      stored_(kStoredBytesMax) {}

std::optional<ApiError> RequestPreparer::check_model(const std::string& name) const {
  const auto& others = options_.other_names;
  const bool known =
      name == options_.model_name || std::find(others.begin(), others.end(), name) != others.end();
  if (name.empty() || known) return std::nullopt;
  return no_such_model(name, options_.model_name, others);
}

Parsed<ChatPrompt> RequestPreparer::render(const ChatInput& input,
                                           const std::stop_token& stop) const {
  if (chat_template_ == nullptr) {
    return invalid_request("messages", "this model has no chat template; use /v1/completions",
                           "no_chat_template");
  }
  return render_chat(*chat_template_, traits_, input, stop);
}

Parsed<std::vector<int32_t>> RequestPreparer::encode_text(std::string_view text,
                                                          const std::string& param,
                                                          const std::stop_token& stop) const {
  auto ids = tokenizer_.encode(text, {.stop = stop});
  if (!ids) return invalid_request(param, ids.error().message);
  return std::move(*ids);
}

Parsed<std::vector<int32_t>> RequestPreparer::encode_raw(const RawPrompt& prompt, bool add_bos,
                                                         const std::string& param,
                                                         const std::stop_token& stop) const {
  if (const auto* given = std::get_if<std::vector<int32_t>>(&prompt)) {
    for (const int32_t id : *given) {
      if (!tokenizer_.has_token(id)) {
        return invalid_request(param, fmt::format("{}: the model has no token {}", param, id));
      }
    }
    if (given->empty()) return invalid_request(param, param + ": empty");
    return *given;
  }
  auto ids = encode_text(std::get<std::string>(prompt), param, stop);
  if (!ids) return ids.error();
  const auto bos = bos_id();
  // What starts with the BOS already is a rendered template.
  if (add_bos && tokenizer_.add_bos_token() && bos && (ids->empty() || ids->front() != *bos)) {
    ids->insert(ids->begin(), *bos);
  }
  return ids;
}

Parsed<int64_t> RequestPreparer::tokens_to_generate(const GenerationFields& fields,
                                                    int64_t otherwise, size_t prompt_tokens,
                                                    const std::string& param) const {
  const int64_t room = context_tokens_ - static_cast<int64_t>(prompt_tokens);
  if (room <= 0) {
    return invalid_request(
        param,
        fmt::format("this server's context has {} tokens, the prompt {}; shorten it",
                    context_tokens_, prompt_tokens),
        "context_length_exceeded");
  }
  const int64_t wanted = fields.max_tokens.value_or(otherwise > 0 ? otherwise : room);
  return std::min(wanted, room);
}

PreparedChoice RequestPreparer::make_choice(const GenerationFields& fields,
                                            const std::vector<int32_t>& prompt, int64_t max_tokens,
                                            int64_t sample) const {
  PreparedChoice choice;
  GenerationRequest& request = choice.request;
  request.prompt = prompt;
  request.max_tokens = max_tokens;
  request.min_tokens = std::min(fields.min_tokens, max_tokens);
  request.sample = static_cast<uint64_t>(sample);
  request.sampling.temperature =
      fields.temperature.value_or(options_.model.temperature.value_or(1));
  request.sampling.top_p = fields.top_p.value_or(options_.model.top_p.value_or(1));
  request.sampling.top_k = fields.top_k;
  request.sampling.min_p = fields.min_p;
  request.sampling.seed = *fields.seed;
  request.logits = fields.logits;
  if (!fields.ignore_eos) request.stop_ids = config_.eos_token_ids;
  request.stop_ids.insert(request.stop_ids.end(), fields.stop_token_ids.begin(),
                          fields.stop_token_ids.end());
  request.top_logprobs = fields.top_logprobs;
  choice.options.stop = fields.stop;
  choice.options.stop_ids = request.stop_ids;
  choice.options.logprobs = fields.top_logprobs >= 0;
  if (!fields.skip_special_tokens) choice.options.special = text::SpecialTokens::kKeep;
  request.prompt_logprobs = fields.prompt_logprobs;
  choice.options.prompt_top = fields.prompt_logprobs;
  if (fields.prompt_logprobs >= 0) choice.options.prompt = prompt;
  return choice;
}

std::optional<Parsed<PreparedGeneration>> RequestPreparer::completion(std::string_view body,
                                                                      const PrepareTurn& turn) {
  auto request = parse_completion_request(body, limits_);
  if (!request) return request.error();
  GenerationFields& fields = request->fields;
  if (auto error = check_model(fields.model)) return *error;
  if (!fields.seed) fields.seed = random_seed();

  auto grammar = guided_grammar(request->guided, turn);
  if (!grammar) return std::nullopt;
  if (!*grammar) return grammar->error();
  if (**grammar) fields.ignore_eos = false;
  // The prompt is computed with its first answer token.
  const bool prompt_alone = fields.max_tokens == 0;
  if (prompt_alone) fields.max_tokens = 1;
  PreparedGeneration prepared = prepare(fields);
  prepared.tokens_of_echo = request->echo && fields.top_logprobs >= 0;
  for (size_t index = 0; index < request->prompts.size(); ++index) {
    const RawPrompt& prompt = request->prompts[index];
    auto ids = encode_raw(prompt, request->add_special_tokens, "prompt", turn.stop);
    if (!ids) return ids.error();
    truncate(fields, *ids);
    if (ids->empty()) return invalid_request("prompt", "prompt: empty");
    auto max_tokens = tokens_to_generate(fields, kCompletionTokensDefault, ids->size(), "prompt");
    if (!max_tokens) return max_tokens.error();
    prepared.prompt_tokens += static_cast<int64_t>(ids->size());
    for (int64_t i = 0; i < fields.n; ++i) {
      PreparedChoice choice = make_choice(fields, *ids, *max_tokens, i);
      choice.prompt_index = index;
      choice.options.prompt_alone = prompt_alone;
      if (request->echo && fields.top_logprobs >= 0) {
        choice.request.prompt_logprobs = std::max(fields.prompt_logprobs, fields.top_logprobs);
        choice.options.echo_top = fields.top_logprobs;
        choice.options.prompt = *ids;
      }
      if (**grammar) {
        auto constraint = this->constraint(**grammar, kNoThoughts, *max_tokens);
        if (!constraint) return constraint.error();
        choice.request.constraint = std::move(*constraint);
      }
      if (request->echo) {
        const auto* text = std::get_if<std::string>(&prompt);
        choice.echo = text ? *text : tokenizer_.decode(*ids, text::SpecialTokens::kSkip);
      }
      prepared.choices.push_back(std::move(choice));
    }
  }
  return prepared;
}

std::optional<Parsed<PreparedGeneration>> RequestPreparer::chat(std::string_view body,
                                                                const PrepareTurn& turn) {
  auto request = parse_chat_request(body, limits_);
  if (!request) return request.error();
  if (auto error = check_model(request->fields.model)) return *error;
  auto grammar = grammar_of(*request, turn);
  if (!grammar) return std::nullopt;
  if (!*grammar) return grammar->error();
  return chat_now(*request, **grammar, turn.stop);
}

std::optional<Parsed<PreparedGeneration>> RequestPreparer::messages(std::string_view body,
                                                                    const PrepareTurn& turn) {
  auto chat_body = chat_of_messages(body);
  if (!chat_body) return chat_body.error();
  auto prepared = chat(*chat_body, turn);
  if (!prepared) return std::nullopt;
  if (!*prepared) return in_words_of_messages(prepared->error());
  (*prepared)->id_prefix = "msg_";
  (*prepared)->make_format = [](AnswerHead head, const PreparedGeneration& asked) {
    return make_messages_format(std::move(head), door_options(asked));
  };
  return prepared;
}

std::optional<Parsed<PreparedGeneration>> RequestPreparer::responses(std::string_view body,
                                                                     const PrepareTurn& turn) {
  auto request = chat_of_responses(body, turn.client, stored_);
  if (!request) return request.error();
  auto prepared = chat(request->chat_body, turn);
  if (!prepared) return std::nullopt;
  if (!*prepared) return in_words_of_responses(prepared->error());
  (*prepared)->id_prefix = "resp_";
  (*prepared)->make_format = [this, request = *request, client = turn.client](
                                 AnswerHead head, const PreparedGeneration& asked) {
    return make_responses_format(std::move(head), request, client, stored_, door_options(asked));
  };
  return prepared;
}

Parsed<int64_t> RequestPreparer::count_message_tokens(std::string_view body,
                                                      const std::stop_token& stop) {
  auto chat_body = chat_of_messages(body, true);
  if (!chat_body) return chat_body.error();
  auto request = parse_chat_request(*chat_body, limits_);
  if (!request) return in_words_of_messages(request.error());
  if (auto error = check_model(request->fields.model)) return *error;
  auto prompt = render(request->input, stop);
  if (!prompt) return prompt.error();
  auto ids = encode_text(prompt->text, "messages", stop);
  if (!ids) return ids.error();
  return static_cast<int64_t>(ids->size());
}

// grammar: null if anything may be said.
Parsed<PreparedGeneration> RequestPreparer::chat_now(ChatRequest& request, const Grammar& grammar,
                                                     const std::stop_token& stop) {
  GenerationFields& fields = request.fields;
  if (!fields.seed) fields.seed = random_seed();
  if (auto error = switch_thinking(request)) return *error;
  auto prompt = render(request.input, stop);
  if (!prompt) return prompt.error();
  auto ids = encode_text(prompt->text, "messages", stop);
  if (!ids) return ids.error();
  if (ids->empty()) return invalid_request("messages", "messages: rendered to an empty prompt");
  truncate(fields, *ids);
  auto max_tokens =
      tokens_to_generate(fields, options_.max_tokens_default, ids->size(), "messages");
  if (!max_tokens) return max_tokens.error();
  if (grammar && fields.min_tokens > 0) {
    return invalid_request("min_tokens",
                           "min_tokens: not together with response_format or a forced call");
  }
  // A text that may only end where its grammar allows it needs the tokens that end it.
  if (grammar) fields.ignore_eos = false;

  PreparedGeneration prepared = prepare(fields);
  prepared.chat = true;
  prepared.reasoning = request.include_reasoning;
  prepared.call_ids = {.kimi = traits_.reply_format == text::ReplyFormat::kKimiK2,
                       .num_before = count_tool_calls(request.input)};
  prepared.prompt_tokens = static_cast<int64_t>(ids->size());
  const text::ReplyParserOptions reply = reply_options(request, *prompt, grammar != nullptr);
  for (int64_t i = 0; i < fields.n; ++i) {
    PreparedChoice choice = make_choice(fields, *ids, *max_tokens, i);
    choice.options.reply = reply;
    if (i > 0) choice.request.prompt_logprobs = choice.options.prompt_top = -1;  // told once
    // Marks of calls may be special tokens.
    if (!reply.tools.empty()) choice.options.special = text::SpecialTokens::kKeep;
    if (grammar) {
      auto constraint = this->constraint(grammar, *prompt, *max_tokens);
      if (!constraint) return constraint.error();
      choice.request.constraint = std::move(*constraint);
    }
    prepared.choices.push_back(std::move(choice));
  }
  return prepared;
}

text::ReplyParserOptions RequestPreparer::reply_options(const ChatRequest& request,
                                                        const ChatPrompt& prompt,
                                                        bool constrained) const {
  text::ReplyParserOptions options{.format = traits_.reply_format,
                                   .reasoning = traits_.reasoning,
                                   .reasoning_open = prompt.reasoning_open,
                                   // No schema holds for what the model thinks.
                                   .calls_in_reasoning = !constrained};
  // What goes on with an answer doesn't begin with reasoning any more.
  if (request.input.continue_final_message) options.reasoning = prompt.reasoning_open;
  for (const ChatTool& tool : request.input.tools) options.tools.push_back(tool.name);
  if (!request.parallel_tool_calls) options.calls_max = 1;
  return options;
}

// Keeps the last tokens of a prompt.
void RequestPreparer::truncate(const GenerationFields& fields, std::vector<int32_t>& ids) const {
  if (!fields.truncate_prompt_tokens) return;
  const int64_t most =
      *fields.truncate_prompt_tokens > 0 ? *fields.truncate_prompt_tokens : context_tokens_ - 1;
  const int64_t extra = std::ssize(ids) - most;
  if (extra > 0) ids.erase(ids.begin(), ids.begin() + extra);
}

// Sets the variable of the template that says so. What the model can't do is refused.
std::optional<ApiError> RequestPreparer::switch_thinking(ChatRequest& request) const {
  if (!request.thinking || chat_template_ == nullptr) return std::nullopt;
  Json kwargs = Json::parse(request.input.template_kwargs_json);
  bool has_switch = false;
  for (const char* name : {"thinking", "enable_thinking"}) {
    if (!chat_template_->reads(name)) continue;
    has_switch = true;
    if (!kwargs.contains(name)) kwargs[name] = *request.thinking;
  }
  if (!request.reasoning_effort.empty() && chat_template_->reads("reasoning_effort")) {
    has_switch = true;
    if (!kwargs.contains("reasoning_effort")) kwargs["reasoning_effort"] = request.reasoning_effort;
  }
  request.input.template_kwargs_json = kwargs.dump();
  if (has_switch || *request.thinking || !traits_.reasoning) return std::nullopt;
  return invalid_request("thinking",
                         "thinking: this model's chat template has no switch for it; the model "
                         "always thinks",
                         "unsupported");
}

std::optional<Parsed<RequestPreparer::Grammar>> RequestPreparer::guided_grammar(
    const GuidedOutput& guided, const PrepareTurn& turn) {
  using Kind = GuidedOutput::Kind;
  std::string key;
  switch (guided.kind) {
    case Kind::kNone:
      return Grammar();
    case Kind::kJsonObject:
      return any_object_;
    case Kind::kJson:
      key = "schema\n" + guided.schema_json;
      break;
    case Kind::kRegex:
      key = "regex\n" + guided.regex;
      break;
    case Kind::kChoice:
      key = "choice\n" + Json(guided.choices).dump(-1, ' ', false, Json::error_handler_t::replace);
      break;
  }
  return compiled(key, guided.param, turn, [&](std::stop_token stop) -> Result<Grammar> {
    if (guided.kind == Kind::kJson) return constrain::compile_json_schema(guided.schema_json, stop);
    if (guided.kind == Kind::kRegex) return constrain::compile_regex(guided.regex, stop);
    return constrain::compile_choice(guided.choices, stop);
  });
}

// Null: anything may be said.
std::optional<Parsed<RequestPreparer::Grammar>> RequestPreparer::grammar_of(
    const ChatRequest& request, const PrepareTurn& turn) {
  const bool forced_call = request.tool_choice == ToolChoice::kRequired;
  std::string key;
  if (forced_call) {
    key = fmt::format("tools {} {}", request.tool_name, request.parallel_tool_calls);
    for (const ChatTool& tool : request.input.tools) key += "\n" + tool.json;
  } else if (request.response_format == ResponseFormat::kJsonSchema) {
    key = "schema\n" + request.schema_json;
  } else if (request.response_format == ResponseFormat::kJsonObject) {
    return any_object_;
  } else {
    return guided_grammar(request.guided, turn);
  }
  const bool guided = request.guided.kind != GuidedOutput::Kind::kNone;
  const std::string param = forced_call ? "tools"
                            : guided    ? request.guided.param
                                        : "response_format.json_schema.schema";
  return compiled(key, param, turn,
                  [&](std::stop_token stop) { return compile(request, std::move(stop)); });
}

std::optional<Parsed<RequestPreparer::Grammar>> RequestPreparer::compiled(
    const std::string& key, const std::string& param, const PrepareTurn& turn,
    const GrammarCache::Compile& compile) {
  if (key.size() > kSchemaBytesMax) {
    return invalid_request(param, fmt::format("{}: schemas of more than {} bytes are refused",
                                              param, kSchemaBytesMax));
  }
  auto grammar = grammars_.find(key);
  if (!grammar && turn.length == http::WorkLength::kShort) return std::nullopt;
  if (!grammar) {
    grammar = grammars_.get(key, turn.stop, compile);
  }
  if (!*grammar) return invalid_request(param, param + ": " + grammar->error().message);
  return **grammar;
}

Result<RequestPreparer::Grammar> RequestPreparer::compile(const ChatRequest& request,
                                                          std::stop_token stop) const {
  if (request.tool_choice != ToolChoice::kRequired) {
    return constrain::compile_json_schema(request.schema_json, std::move(stop));
  }
  std::vector<constrain::ToolSchema> tools;
  for (const ChatTool& tool : request.input.tools) {
    if (!request.tool_name.empty() && tool.name != request.tool_name) continue;
    tools.push_back({.name = tool.name, .parameters_json = tool.parameters_json});
  }
  return constrain::compile_tool_calls(traits_.reply_format, tools, request.parallel_tool_calls,
                                       std::move(stop));
}

Parsed<std::unique_ptr<constrain::TokenConstraint>> RequestPreparer::constraint(
    const Grammar& grammar, const ChatPrompt& prompt, int64_t max_tokens) const {
  constrain::ConstraintOptions options;
  const bool may_think = traits_.reasoning && !prompt.reasoning_closed;
  if (may_think) options.begin_after = "</think>";
  if (may_think && !prompt.reasoning_open) options.may_begin_with = "<think>";
  auto constraint = grammar->make(vocabulary_, options);
  const int64_t needed = constraint->tokens_min();
  if (needed > max_tokens) {
    return invalid_request(
        "max_tokens",
        fmt::format("max_tokens: the shortest answer of this form takes up to {} tokens, {} are "
                    "left for it",
                    needed, max_tokens));
  }
  return constraint;
}

Parsed<PreparedTokens> RequestPreparer::tokenize(std::string_view body,
                                                 const std::stop_token& stop) {
  if (auto chat = parse_tokenize_chat_request(body)) {
    if (!*chat) return chat->error();
    TokenizeChatRequest& request = **chat;
    if (auto error = check_model(request.model)) return *error;
    auto prompt = render(request.input, stop);
    if (!prompt) return prompt.error();
    auto ids = encode_raw(std::move(prompt->text), request.add_special_tokens, "messages", stop);
    if (!ids) return ids.error();
    return PreparedTokens{.ids = std::move(*ids), .with_strings = request.return_token_strs};
  }
  auto request = parse_tokenize_text_request(body);
  if (!request) return request.error();
  if (auto error = check_model(request->model)) return *error;
  auto ids = encode_raw(std::move(request->prompt), request->add_special_tokens, "prompt", stop);
  if (!ids) return ids.error();
  return PreparedTokens{.ids = std::move(*ids), .with_strings = request->return_token_strs};
}

Parsed<std::string> RequestPreparer::detokenize(std::string_view body) {
  auto request = parse_detokenize_request(body, limits_.vocab_limit);
  if (!request) return request.error();
  if (auto error = check_model(request->model)) return *error;
  return tokenizer_.decode(request->tokens, text::SpecialTokens::kKeep);
}

std::optional<int32_t> RequestPreparer::bos_id() const {
  return tokenizer_.bos_id() ? tokenizer_.bos_id() : config_.bos_token_id;
}

std::optional<int32_t> RequestPreparer::eos_id() const {
  if (tokenizer_.eos_id() || config_.eos_token_ids.empty()) return tokenizer_.eos_id();
  return config_.eos_token_ids.front();
}

std::vector<int32_t> RequestPreparer::canary_prompt() const {
  const auto bos = bos_id();
  if (bos && tokenizer_.has_token(*bos)) return {*bos};
  for (int32_t id = 0; id < limits_.vocab_limit; ++id) {
    if (tokenizer_.has_token(id)) return {id};
  }
  return {0};
}

}  // namespace atl::coordinator
