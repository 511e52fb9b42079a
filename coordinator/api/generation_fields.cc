#include "coordinator/api/generation_fields.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>
#include <limits>

#include "base/log.h"
#include "coordinator/api/refused_fields.h"
#include "storage/io/printable.h"

namespace atl::coordinator {
namespace {

constexpr std::string_view kKnown[] = {"model",
                                       "user",
                                       "stream",
                                       "stream_options",
                                       "max_tokens",
                                       "min_tokens",
                                       "ignore_eos",
                                       "temperature",
                                       "top_p",
                                       "top_k",
                                       "min_p",
                                       "n",
                                       "best_of",
                                       "stop",
                                       "stop_token_ids",
                                       "seed",
                                       "logit_bias",
                                       "presence_penalty",
                                       "frequency_penalty",
                                       "logprobs",
                                       "max_completion_tokens",
                                       "prompt_logprobs",
                                       "repetition_penalty",
                                       "skip_special_tokens",
                                       "truncate_prompt_tokens"};

constexpr size_t kChoicesMax = 1000;

std::optional<float> read_float(const JsonValue& value, double min, double max) {
  const auto number = value.number(min, max);
  if (!number) return std::nullopt;
  return static_cast<float>(*number);
}

std::vector<std::string> read_stop(const JsonValue& stop) {
  std::vector<std::string> strings;
  if (stop.is_array()) {
    for (const JsonValue& element : stop.elements(kStopStringsMax)) {
      if (element.missing()) element.complain("a string");
      if (auto text = element.string()) strings.push_back(std::move(*text));
    }
  } else if (stop.is_string()) {
    strings.push_back(*stop.string());
  } else if (!stop.missing()) {
    stop.complain("a string or an array of strings");
  }
  for (const std::string& text : strings) {
    if (text.empty() || text.size() > kStopStringBytesMax) {
      stop.refuse(fmt::format("{}: expected strings of 1 to {} bytes, found one of {}", stop.path(),
                              kStopStringBytesMax, text.size()));
    }
  }
  return strings;
}

std::vector<std::pair<int32_t, float>> read_logit_bias(const JsonValue& bias, int32_t vocab_limit) {
  std::vector<std::pair<int32_t, float>> pairs;
  if (!bias.missing() && !bias.is_object()) {
    bias.complain("an object of token ids and numbers");
    return pairs;
  }
  for (const std::string& key : bias.keys()) {
    int32_t id = -1;
    const auto [end, error] = std::from_chars(key.data(), key.data() + key.size(), id);
    if (error != std::errc() || end != key.data() + key.size() || id < 0 || id >= vocab_limit) {
      bias.refuse(fmt::format("{}: expected token ids from 0 to {} as keys, found \"{}\"",
                              bias.path(), vocab_limit - 1, key.substr(0, 40)));
      return pairs;
    }
    const JsonValue value = bias[key];
    if (value.missing()) value.complain("a number from -100 to 100");
    pairs.emplace_back(id, read_float(value, -100, 100).value_or(0.0f));
  }
  // "1" and "01" are one id; the model's processor wants each once.
  std::sort(pairs.begin(), pairs.end());
  const auto twice = std::adjacent_find(
      pairs.begin(), pairs.end(), [](const auto& a, const auto& b) { return a.first == b.first; });
  if (twice != pairs.end()) {
    bias.refuse(fmt::format("{}: names token {} twice", bias.path(), twice->first));
  }
  return pairs;
}

void read_stream(const JsonValue& root, GenerationFields& fields) {
  fields.stream = root["stream"].boolean().value_or(false);
  const JsonValue options = root["stream_options"];
  if (options.missing()) return;
  if (!options.is_object()) {
    options.complain("an object");
  } else if (!fields.stream) {
    options.refuse("stream_options: only allowed with \"stream\": true");
  }
  fields.include_usage = options["include_usage"].boolean().value_or(false);
}

void read_lengths(const JsonValue& root, GenerationFields& fields) {
  // 0: the prompt's log probabilities alone.
  const JsonValue echo = root["echo"];
  const int64_t least = !echo.missing() && echo.text() == "true" ? 0 : 1;
  fields.max_tokens = root["max_tokens"].integer(least, INT64_MAX);
  if (const auto newer = root["max_completion_tokens"].integer(1, INT64_MAX)) {
    fields.max_tokens = newer;
  }
  fields.min_tokens = root["min_tokens"].integer(0, INT64_MAX).value_or(0);
  if (fields.max_tokens && fields.min_tokens > *fields.max_tokens) {
    root["min_tokens"].refuse(fmt::format("min_tokens: {} is more than max_tokens, {}",
                                          fields.min_tokens, *fields.max_tokens));
  }
  fields.ignore_eos = root["ignore_eos"].boolean().value_or(false);
}

void read_sampling(const JsonValue& root, GenerationFields& fields) {
  fields.temperature = read_float(root["temperature"], 0, 2);
  fields.top_p = read_float(root["top_p"], 0, 1);
  // 0 keeps the likeliest token alone; the sampler's range begins just above it.
  if (fields.top_p) fields.top_p = std::max(*fields.top_p, std::numeric_limits<float>::min());
  // -1 says "all" to vLLM.
  const int64_t top_k = root["top_k"].integer(-1, INT32_MAX).value_or(0);
  fields.top_k = static_cast<int32_t>(std::max<int64_t>(top_k, 0));
  fields.min_p = read_float(root["min_p"], 0, 1).value_or(0.0f);
  if (const auto seed = root["seed"].integer(INT64_MIN, INT64_MAX)) {
    fields.seed = static_cast<uint64_t>(*seed);
  }
}

}  // namespace

void read_guided(const JsonValue& root, GuidedOutput& guided) {
  using Kind = GuidedOutput::Kind;
  const auto take = [&](const JsonValue& value, Kind kind) {
    if (value.missing()) return false;
    if (guided.kind != Kind::kNone) value.refuse(value.path() + ": one form of output at most");
    guided.kind = kind;
    guided.param = value.path();
    return true;
  };
  const auto read = [&](const JsonValue& json, const JsonValue& regex, const JsonValue& choice) {
    if (take(json, Kind::kJson)) {
      // A text that is a schema is taken, too.
      guided.schema_json = json.is_string() ? *json.string() : json.text();
      if (!json.is_string() && !json.is_object()) json.complain("a JSON Schema (an object)");
    }
    if (take(regex, Kind::kRegex)) {
      guided.regex = regex.string().value_or("");
      if (guided.regex.empty()) regex.complain("a regular expression");
    }
    if (!take(choice, Kind::kChoice)) return;
    for (const JsonValue& one : choice.elements(kChoicesMax)) {
      guided.choices.push_back(one.string().value_or(""));
      if (guided.choices.back().empty()) one.complain("a text");
    }
    if (guided.choices.empty()) choice.complain("an array of texts");
  };
  read(root["guided_json"], root["guided_regex"], root["guided_choice"]);
  const JsonValue outputs = root["structured_outputs"];
  if (outputs.missing()) return;
  if (!outputs.is_object()) outputs.complain("an object");
  read(outputs["json"], outputs["regex"], outputs["choice"]);
  if (outputs["json_object"].boolean().value_or(false)) {
    take(outputs["json_object"], Kind::kJsonObject);
  }
  static constexpr std::string_view kRead[] = {"json", "regex", "choice", "json_object"};
  static constexpr std::string_view kHow[] = {"disable_fallback", "disable_any_whitespace"};
  for (const std::string& key : outputs.keys()) {
    const auto is_key = [&](std::string_view name) { return name == key; };
    const JsonValue other = outputs[key];
    const bool off = other.missing() || other.text() == "false";
    if (off || std::any_of(std::begin(kRead), std::end(kRead), is_key)) continue;
    if (std::any_of(std::begin(kHow), std::end(kHow), is_key)) continue;
    other.refuse(other.path() + ": not supported; use json, regex or choice", "unsupported");
  }
}

GenerationFields read_generation_fields(const JsonValue& root, const RequestLimits& limits) {
  GenerationFields fields;
  refuse(refused_fields(), root);
  fields.logits.repetition_penalty = read_float(root["repetition_penalty"], 0, 10).value_or(1.0f);
  if (fields.logits.repetition_penalty <= 0) root["repetition_penalty"].complain("more than 0");
  fields.skip_special_tokens = root["skip_special_tokens"].boolean().value_or(true);
  fields.truncate_prompt_tokens = root["truncate_prompt_tokens"].integer(-1, INT64_MAX);
  if (fields.truncate_prompt_tokens == 0) {
    root["truncate_prompt_tokens"].complain("an integer from 1, or -1");
  }
  fields.model = root["model"].string().value_or("");
  fields.user = root["user"].string().value_or("");
  read_stream(root, fields);
  read_lengths(root, fields);
  read_sampling(root, fields);
  fields.n = root["n"].integer(1, limits.choices_max).value_or(1);
  if (const auto best_of = root["best_of"].integer(1, INT64_MAX); best_of && *best_of != fields.n) {
    root["best_of"].refuse("best_of: only the value of n is supported", "unsupported");
  }
  fields.stop = read_stop(root["stop"]);
  fields.stop_token_ids =
      root["stop_token_ids"].integers(0, limits.vocab_limit - 1).value_or(std::vector<int32_t>());
  if (fields.stop_token_ids.size() > kStopStringsMax) {
    root["stop_token_ids"].complain(fmt::format("an array of at most {}", kStopStringsMax));
  }
  const JsonValue prompt_logprobs = root["prompt_logprobs"];
  fields.prompt_logprobs =
      static_cast<int32_t>(prompt_logprobs.integer(0, kTopLogprobsMax).value_or(-1));
  if (fields.prompt_logprobs >= 0 && fields.stream) {
    prompt_logprobs.refuse("prompt_logprobs: not together with \"stream\": true", "unsupported");
  }
  fields.logits.presence_penalty = read_float(root["presence_penalty"], -2, 2).value_or(0.0f);
  fields.logits.frequency_penalty = read_float(root["frequency_penalty"], -2, 2).value_or(0.0f);
  fields.logits.bias = read_logit_bias(root["logit_bias"], limits.vocab_limit);
  return fields;
}

void log_ignored_fields(const JsonValue& root, std::vector<std::string_view> known) {
  if (!log_enabled(LogLevel::kDebug)) return;
  const auto hints = ignored_fields();
  known.insert(known.end(), std::begin(kKnown), std::end(kKnown));
  constexpr size_t kNamedMax = 10, kNameBytesMax = 40;
  std::vector<std::string> ignored;
  for (const std::string& key : root.keys()) {
    if (std::find(known.begin(), known.end(), key) != known.end()) continue;
    if (std::find(hints.begin(), hints.end(), key) != hints.end()) continue;
    ignored.push_back(storage::printable(key, kNameBytesMax));
    if (ignored.size() == kNamedMax) break;
  }
  if (!ignored.empty()) log_debug("fields ignored: {}", fmt::join(ignored, ", "));
}

}  // namespace atl::coordinator
