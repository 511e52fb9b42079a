// What all requests for generated text may say, whatever the prompt: sampling, limits, streaming.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "coordinator/api/api_json.h"
#include "model/logits_processor.h"

namespace atl::coordinator {

// What the served model allows.
struct RequestLimits {
  int64_t choices_max = 16;
  int32_t vocab_limit = 0;  // token ids lie below
};

struct GenerationFields {
  std::string model;  // empty: not said
  std::string user;
  bool stream = false;
  bool include_usage = false;         // stream_options
  std::optional<int64_t> max_tokens;  // >= 1
  int64_t min_tokens = 0;
  bool ignore_eos = false;
  std::optional<float> temperature, top_p;
  int32_t top_k = 0;
  float min_p = 0;
  int64_t n = 1;
  std::vector<std::string> stop;
  std::vector<int32_t> stop_token_ids;
  std::optional<uint64_t> seed;
  model::LogitsProcessor logits;
  // As in GenerationRequest. Of the prompt: what vLLM's field of this name asks for.
  int32_t top_logprobs = -1, prompt_logprobs = -1;
  bool skip_special_tokens = true;
  std::optional<int64_t>
      truncate_prompt_tokens;  // the last ones are kept; -1: what the context holds
};

// What vLLM calls structured outputs: at most one of them.
struct GuidedOutput {
  enum class Kind : uint8_t { kNone, kJsonObject, kJson, kRegex, kChoice };
  Kind kind = Kind::kNone;
  std::string param;                 // the field that says so
  std::string schema_json;           // kJson
  std::string regex;                 // kRegex: of the whole text
  std::vector<std::string> choices;  // kChoice
};
// guided_json, guided_regex, guided_choice, and structured_outputs with the same.
void read_guided(const JsonValue& root, GuidedOutput& guided);

inline constexpr size_t kStopStringsMax = 16;
inline constexpr size_t kStopStringBytesMax = 1024;
inline constexpr int32_t kTopLogprobsMax = 20;

// All but top_logprobs, which chats and completions say differently. Complaints are noted in the
// document of `root`.
GenerationFields read_generation_fields(const JsonValue& root, const RequestLimits& limits);

// A debug line that names the keys of `root` that are not among `known`, nor among those of
// read_generation_fields().
void log_ignored_fields(const JsonValue& root, std::vector<std::string_view> known);

}  // namespace atl::coordinator
