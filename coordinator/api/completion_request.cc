#include "coordinator/api/completion_request.h"

#include <fmt/format.h>

#include <algorithm>

#include "coordinator/api/refused_fields.h"

namespace atl::coordinator {
namespace {

constexpr std::string_view kExpectedPrompt =
    "a string, an array of strings, an array of token ids, or an array of such arrays";

std::vector<RawPrompt> read_prompts(const JsonValue& prompt, int32_t vocab_limit) {
  std::vector<RawPrompt> prompts;
  if (prompt.is_string()) {
    prompts.emplace_back(*prompt.string());
    return prompts;
  }
  if (!prompt.is_array() || prompt.size() == 0) {
    prompt.complain(kExpectedPrompt);
    return prompts;
  }
  const JsonValue first = prompt.element(0);
  if (!first.is_string() && !first.is_array()) {
    if (auto ids = prompt.integers(0, vocab_limit - 1)) prompts.emplace_back(std::move(*ids));
    return prompts;
  }
  for (const JsonValue& element : prompt.elements(kPromptsMax)) {
    if (first.is_string() && element.is_string()) {
      prompts.emplace_back(*element.string());
    } else if (first.is_array() && element.is_array()) {
      if (auto ids = element.integers(0, vocab_limit - 1)) prompts.emplace_back(std::move(*ids));
    } else {
      element.complain(first.is_string() ? "a string" : "an array of token ids");
    }
  }
  return prompts;
}

// A completion has it, too, in other servers.
void read_completion_format(const JsonValue& format, GuidedOutput& guided) {
  if (format.missing()) return;
  const std::string type = format["type"].is_string() ? *format["type"].string() : std::string();
  if (type != "text" && guided.kind != GuidedOutput::Kind::kNone) {
    format.refuse("response_format: not together with guided output");
  } else if (type == "json_object") {
    guided.kind = GuidedOutput::Kind::kJsonObject;
    guided.param = format.path();
  } else if (type == "json_schema") {
    const JsonValue schema = format["json_schema"]["schema"];
    guided.param = schema.path();
    if (!schema.is_object()) schema.complain("a JSON Schema (an object)");
    guided.kind = GuidedOutput::Kind::kJson;
    guided.schema_json = schema.text();
  } else if (type != "text") {
    format["type"].complain("text, json_object or json_schema");
  }
}

void refuse_suffix(const JsonValue& suffix) {
  if (const auto text = suffix.string(); text && !text->empty()) {
    suffix.refuse("suffix: filling in is not supported", "unsupported");
  }
}

}  // namespace

Parsed<CompletionRequest> parse_completion_request(std::string_view body,
                                                   const RequestLimits& limits) {
  auto document = JsonDocument::parse(body);
  if (!document) return document.error();
  const JsonValue root = document->root();
  CompletionRequest request;
  request.fields = read_generation_fields(root, limits);
  request.prompts = read_prompts(root["prompt"], limits.vocab_limit);
  if (request.prompts.size() * static_cast<size_t>(request.fields.n) > kPromptsMax) {
    root["prompt"].refuse(fmt::format("prompt: {} prompts of {} choices each, at most {} in all",
                                      request.prompts.size(), request.fields.n, kPromptsMax));
  }
  request.fields.top_logprobs =
      static_cast<int32_t>(root["logprobs"].integer(0, kTopLogprobsMax).value_or(-1));
  request.echo = root["echo"].boolean().value_or(false);
  request.add_special_tokens = root["add_special_tokens"].boolean().value_or(true);
  read_guided(root, request.guided);
  read_completion_format(root["response_format"], request.guided);
  refuse(refused_fields_of_completions(), root);
  refuse_suffix(root["suffix"]);
  if (document->error()) return *document->error();
  log_ignored_fields(
      root, {"prompt", "echo", "suffix", "add_special_tokens", "guided_json", "guided_regex",
             "guided_choice", "structured_outputs", "response_format"});
  return request;
}

Parsed<TokenizeTextRequest> parse_tokenize_text_request(std::string_view body) {
  auto document = JsonDocument::parse(body);
  if (!document) return document.error();
  const JsonValue root = document->root();
  TokenizeTextRequest request;
  request.model = root["model"].string().value_or("");
  if (root["prompt"].missing()) root["prompt"].complain("a string, or \"messages\" instead");
  request.prompt = root["prompt"].string().value_or("");
  request.add_special_tokens = root["add_special_tokens"].boolean().value_or(true);
  request.return_token_strs = root["return_token_strs"].boolean().value_or(false);
  if (document->error()) return *document->error();
  return request;
}

Parsed<DetokenizeRequest> parse_detokenize_request(std::string_view body, int32_t vocab_limit) {
  auto document = JsonDocument::parse(body);
  if (!document) return document.error();
  const JsonValue root = document->root();
  DetokenizeRequest request;
  request.model = root["model"].string().value_or("");
  if (root["tokens"].missing()) root["tokens"].complain("an array of token ids");
  request.tokens = root["tokens"].integers(0, vocab_limit - 1).value_or(std::vector<int32_t>());
  if (document->error()) return *document->error();
  return request;
}

}  // namespace atl::coordinator
