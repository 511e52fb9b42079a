#include "coordinator/api/refused_fields.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

namespace atl::coordinator {
namespace {

constexpr std::string_view kGuided = "use guided_json, guided_regex or guided_choice";
constexpr std::string_view kTruncate = "use truncate_prompt_tokens";
constexpr std::string_view kBeside = "put its fields beside the others";

constexpr RefusedField kRefused[] = {
    // What the answer may say.
    {"guided_grammar", "", kGuided},
    {"guided_whitespace_pattern"},
    {"guided_decoding", "", kGuided},
    {"plugins", "[]"},
    {"grammar", "", kGuided},
    {"ebnf", "", kGuided},
    {"regex", "", "use guided_regex"},
    {"json_schema", "", "use response_format"},
    {"structural_tag"},
    {"bad_words", "[]", "use logit_bias"},
    {"allowed_token_ids", "", "use logit_bias"},
    {"logits_processors", "[]"},
    {"logits_processor_pattern"},
    {"custom_logit_processor"},
    {"stop_regex", "", "use stop"},
    {"format", "", "use response_format"},
    {"include_stop_str_in_output", "false"},
    {"no_stop_trim", "false"},
    {"functions", "[]", "use tools"},
    {"function_call", "\"none\"", "use tool_choice"},
    {"modalities", "[\"text\"]"},
    {"audio"},
    {"web_search_options"},
    {"verbosity", "\"medium\"", "say it in the prompt"},
    // What the prompt is.
    {"documents", "[]", "put them into a message"},
    {"chat_template", "", "the model's own is used"},
    {"mm_processor_kwargs"},
    {"prompt_embeds", "", "use prompt"},
    {"input_ids", "", "use prompt of /v1/completions"},
    {"truncation_side", "\"left\"", "the last tokens are kept"},
    {"prompt_truncate_len", "", kTruncate},
    {"context_length_exceeded_behavior", "\"error\"", kTruncate},
    {"transforms", "[]", kTruncate},
    {"safe_prompt", "false", "put it into the system message"},
    {"prompt_mode", "", "use reasoning_effort"},
    {"session_params"},
    // How it is sampled.
    {"length_penalty", "1"},
    {"use_beam_search", "false"},
    {"num_beams", "1"},
    {"early_stopping", "false"},
    {"do_sample", "true", "use temperature 0"},
    {"no_repeat_ngram_size", "0", "use repetition_penalty"},
    {"repeat_penalty", "1", "use repetition_penalty"},
    {"repetition_detection"},
    {"repeat_last_n", "", "use repetition_penalty"},
    {"typical_p", "1"},
    {"typ_p", "1"},
    {"top_a", "0"},
    {"tfs_z", "1"},
    {"mirostat", "0"},
    {"mirostat_mode", "0"},
    {"dry_multiplier", "0"},
    {"xtc_probability", "0"},
    {"dynatemp_range", "0"},
    {"samplers", "", "their order is fixed: temperature, top_k, top_p, min_p"},
    {"sampling_seed", "", "use seed"},
    {"watermarking", "false"},
    {"lora_path"},
    {"lora", "[]"},
    {"min_keep", "0"},
    {"custom_params"},
    {"vllm_xargs"},
    // How long it is.
    {"max_new_tokens", "", "use max_tokens"},
    {"max_length", "", "use max_tokens"},
    {"max_tokens_to_sample", "", "use max_tokens"},
    {"n_predict", "", "use max_tokens"},
    {"num_predict", "", "use max_tokens"},
    {"min_new_tokens", "0", "use min_tokens"},
    {"thinking_token_budget", "", "use max_tokens"},
    {"thinking_budget", "", "use max_tokens"},
    {"t_max_predict_ms", "0", "use max_tokens"},
    {"n_indent", "0"},
    {"n_keep", "0", "use truncate_prompt_tokens"},
    // What is told of it.
    {"detokenize", "true", "use /tokenize for the ids of a text"},
    {"spaces_between_special_tokens", "true"},
    {"separate_reasoning", "true", "use include_reasoning"},
    {"stream_reasoning", "true", "use include_reasoning"},
    {"reasoning_format", "\"auto\"", "use include_reasoning"},
    {"return_token_ids", "false", "use /tokenize"},
    {"return_tokens_as_token_ids", "false"},
    {"return_prompt_text", "false"},
    {"return_hidden_states", "false"},
    {"return_routed_experts", "false"},
    {"logprob_token_ids", "[]", "use top_logprobs"},
    {"n_probs", "0", "use top_logprobs"},
    {"post_sampling_probs", "false"},
    {"return_tokens", "false", "use /tokenize"},
    {"response_fields", "[]"},
    {"parse_tool_calls", "true", "use tool_choice none"},
    {"timings_per_token", "false"},
    {"return_progress", "false"},
    // Where other programs put fields.
    {"extra_body", "{}", kBeside},
    {"options", "{}", kBeside},
    {"parameters", "{}", kBeside},
    {"sampling_params", "{}", kBeside},
};

constexpr std::string_view kSystem = "put it into a message of role system";

constexpr RefusedField kRefusedOfChats[] = {
    {"prompt", "", "use messages, or /v1/completions"},
    {"input", "", "use messages, or /v1/responses"},
    {"text", "", "use messages; for what the answer may say response_format"},
    {"system", "", kSystem},
    {"instructions", "", kSystem},
    {"think", "", "use thinking"},
    {"previous_response_id", "", "use /v1/responses"},
    {"stop_sequences", "", "use stop"},
    {"max_output_tokens", "", "use max_tokens"},
    {"output_format", "", "use response_format"},
    {"output_config", "{}", "use response_format"},
    {"echo", "false", "it is one of /v1/completions"},
    {"suffix"},
    {"add_special_tokens", "false", "the chat template adds them"},
};

constexpr RefusedField kRefusedOfCompletions[] = {
    {"input", "", "use prompt"},
    {"text", "", "use prompt"},
    {"system", "", "use /v1/chat/completions"},
    {"instructions", "", "use /v1/chat/completions"},
    {"think", "", "use /v1/chat/completions"},
    {"raw", "true"},
    {"stop_sequences", "", "use stop"},
    {"max_output_tokens", "", "use max_tokens"},
    {"messages", "", "use /v1/chat/completions"},
    {"tools", "[]", "use /v1/chat/completions"},
    {"tool_choice", "\"none\"", "use /v1/chat/completions"},
    {"chat_template_kwargs", "{}", "use /v1/chat/completions"},
    {"continue_final_message", "false", "a completion goes on with its prompt"},
    {"thinking", "", "use /v1/chat/completions"},
    {"enable_thinking", "", "use /v1/chat/completions"},
    {"reasoning_effort", "", "use /v1/chat/completions"},
    {"reasoning", "", "use /v1/chat/completions"},
    {"top_logprobs", "", "use logprobs"},
};

constexpr RefusedField kRefusedOfResponses[] = {
    {"background", "false"},
    {"conversation", "", "use previous_response_id"},
    {"prompt", "", "use input"},
    {"messages", "", "use input"},
    {"truncation", "\"disabled\"", "send what fits"},
    {"context_management", "[]"},
    {"top_logprobs", "0", "use /v1/chat/completions"},
    {"logprobs", "false", "use /v1/chat/completions"},
    {"prompt_logprobs", "", "use /v1/chat/completions"},
    {"n", "1", "use /v1/chat/completions"},
    {"response_format", "", "use text.format"},
    {"max_tokens", "", "use max_output_tokens"},
    {"max_completion_tokens", "", "use max_output_tokens"},
};

constexpr RefusedField kRefusedOfMessages[] = {
    {"mcp_servers", "[]"},
    {"container"},
    {"top_logprobs", "0", "use /v1/chat/completions"},
    {"logprobs", "false", "use /v1/chat/completions"},
    {"prompt_logprobs", "", "use /v1/chat/completions"},
    {"n", "1", "use /v1/chat/completions"},
    {"response_format", "", "use output_config.format"},
    {"stop", "", "use stop_sequences"},
    {"max_completion_tokens", "", "use max_tokens"},
};

// Who asks, where it runs, what is billed, cached or logged, and how others would compute it.
constexpr std::string_view kIgnored[] = {"bootstrap_host",
                                         "bootstrap_port",
                                         "bootstrap_room",
                                         "cache_prompt",
                                         "cache_salt",
                                         "custom_labels",
                                         "data_parallel_rank",
                                         "extra_key",
                                         "guided_decoding_backend",
                                         "id_slot",
                                         "kv_transfer_params",
                                         "metadata",
                                         "moderation",
                                         "prediction",
                                         "priority",
                                         "prompt_cache_key",
                                         "prompt_cache_options",
                                         "prompt_cache_retention",
                                         "request_id",
                                         "return_cached_tokens_details",
                                         "return_mm_kwargs",
                                         "rid",
                                         "routed_dp_rank",
                                         "routed_experts_prompt_start",
                                         "safety_identifier",
                                         "service_tier",
                                         "session_id",
                                         "store"};

// As JSON: null (left out before), what is neutral, the same number with a fraction, or nothing.
bool changes_nothing(const RefusedField& field, const std::string& json) {
  if (json == "[]" || json == "\"\"") return true;
  if (field.neutral.empty()) return false;
  return json == field.neutral || json == std::string(field.neutral) + ".0";
}

}  // namespace

std::span<const RefusedField> refused_fields() { return kRefused; }
std::span<const RefusedField> refused_fields_of_chats() { return kRefusedOfChats; }
std::span<const RefusedField> refused_fields_of_completions() { return kRefusedOfCompletions; }
std::span<const RefusedField> refused_fields_of_responses() { return kRefusedOfResponses; }
std::span<const RefusedField> refused_fields_of_messages() { return kRefusedOfMessages; }
std::span<const std::string_view> ignored_fields() { return kIgnored; }

void pass_on(const JsonValue& root, std::span<const std::string_view> read,
             nlohmann::ordered_json& chat) {
  for (const std::string& key : root.keys()) {
    if (root[key].missing() || chat.contains(key)) continue;
    if (std::find(read.begin(), read.end(), key) != read.end()) continue;
    chat[key] = nlohmann::ordered_json::parse(root[key].text());
  }
}

void refuse(std::span<const RefusedField> fields, const JsonValue& root) {
  for (const RefusedField& field : fields) {
    const JsonValue value = root[field.name];
    if (value.missing() || changes_nothing(field, value.text())) continue;
    value.refuse(fmt::format("{}: this server has no such field{}{}", value.path(),
                             field.instead.empty() ? "" : "; ", field.instead),
                 "unsupported");
  }
}

}  // namespace atl::coordinator
