// Bodies of /v1/completions, /tokenize and /detokenize.
#pragma once

#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "coordinator/api/generation_fields.h"

namespace atl::coordinator {

using RawPrompt = std::variant<std::string, std::vector<int32_t>>;  // text or token ids

inline constexpr size_t kPromptsMax = 256;  // prompts times choices of one request

struct CompletionRequest {
  GenerationFields fields;
  std::vector<RawPrompt> prompts;  // at least one
  bool echo = false;
  bool add_special_tokens = true;
  GuidedOutput guided;
};
Parsed<CompletionRequest> parse_completion_request(std::string_view body,
                                                   const RequestLimits& limits);

struct TokenizeTextRequest {
  std::string model;
  std::string prompt;
  bool add_special_tokens = true;
  bool return_token_strs = false;
};
Parsed<TokenizeTextRequest> parse_tokenize_text_request(std::string_view body);

struct DetokenizeRequest {
  std::string model;
  std::vector<int32_t> tokens;
};
Parsed<DetokenizeRequest> parse_detokenize_request(std::string_view body, int32_t vocab_limit);

}  // namespace atl::coordinator
