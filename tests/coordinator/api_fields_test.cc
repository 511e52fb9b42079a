// Every field that public servers and packages know is read, refused, or among those that change
// nothing; none that would change the answer is dropped in silence.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <sstream>
#include <string>
#include <string_view>

#include "coordinator/api/refused_fields.h"
#include "tests/coordinator/api_server.h"

namespace atl::test {
namespace {

using coordinator::RefusedField;
using ::testing::HasSubstr;

struct Door {
  const char* path;
  std::string right;  // a body that is answered, without its closing brace
};
const Door kChat{"/v1/chat/completions", R"({"messages": [{"role": "user", "content": "hi"}])"};
const Door kText{"/v1/completions", R"({"prompt": "Once")"};
const Door kResponses{"/v1/responses", R"({"input": "hi")"};
const Door kMessages{"/v1/messages",
                     R"({"max_tokens": 9, "messages": [{"role": "user", "content": "hi"}])"};

RawResponse ask(ApiServer& server, const Door& door, std::string_view field,
                std::string_view value) {
  std::string body = door.right;
  body.append(", \"").append(field).append("\": ").append(value).append("}");
  return server.post(door.path, body);
}

void expect_refused(ApiServer& server, const Door& door, std::span<const RefusedField> fields) {
  for (const RefusedField& field : fields) {
    SCOPED_TRACE(std::string(door.path) + " " + std::string(field.name));
    const RawResponse response = ask(server, door, field.name, "\"strange\"");
    EXPECT_EQ(response.status, 400) << response.body;
    EXPECT_THAT(response.body, HasSubstr(std::string(field.name) + ": this server has no such"));
    EXPECT_THAT(response.body, HasSubstr(field.instead));
    if (door.path != kMessages.path) {  // Anthropic's errors have no code
      EXPECT_THAT(response.body, HasSubstr(R"("code":"unsupported")"));
    }
    if (field.neutral.empty()) continue;
    EXPECT_EQ(ask(server, door, field.name, field.neutral).status, 200) << field.neutral;
  }
}

TEST(ApiFields, that_are_not_built_are_refused_at_every_door) {
  ApiServer server;
  for (const Door& door : {kChat, kText, kResponses, kMessages}) {
    expect_refused(server, door, coordinator::refused_fields());
  }
  expect_refused(server, kChat, coordinator::refused_fields_of_chats());
  expect_refused(server, kText, coordinator::refused_fields_of_completions());
  expect_refused(server, kResponses, coordinator::refused_fields_of_responses());
  expect_refused(server, kMessages, coordinator::refused_fields_of_messages());
}

TEST(ApiFields, that_are_not_built_are_in_the_documentation) {
  std::ostringstream page;
  page << std::ifstream(ATOLL_SOURCE_DIR "/docs/serving.md").rdbuf();
  for (const auto fields :
       {coordinator::refused_fields(), coordinator::refused_fields_of_chats(),
        coordinator::refused_fields_of_completions(), coordinator::refused_fields_of_responses(),
        coordinator::refused_fields_of_messages()}) {
    for (const RefusedField& field : fields) {
      EXPECT_THAT(page.str(), HasSubstr("`" + std::string(field.name) + "`"));
    }
  }
}

// Of the request types of openai-python 3.54, vLLM (chat_completion/protocol.py and
// completion/protocol.py of November 2026), SGLang (openai/protocol.py), llama.cpp's server and
// DeepSeek's, Mistral's and OpenRouter's documentation.
constexpr std::string_view kOfChats[] = {"add_generation_prompt",
                                         "allowed_token_ids",
                                         "audio",
                                         "bad_words",
                                         "bootstrap_room",
                                         "cache_prompt",
                                         "cache_salt",
                                         "chat_template",
                                         "chat_template_kwargs",
                                         "continue_final_message",
                                         "custom_logit_processor",
                                         "custom_params",
                                         "documents",
                                         "dry_multiplier",
                                         "dynatemp_range",
                                         "ebnf",
                                         "echo",
                                         "enable_thinking",
                                         "extra_key",
                                         "frequency_penalty",
                                         "function_call",
                                         "functions",
                                         "grammar",
                                         "guided_choice",
                                         "guided_decoding_backend",
                                         "guided_grammar",
                                         "guided_json",
                                         "guided_regex",
                                         "guided_whitespace_pattern",
                                         "id_slot",
                                         "ignore_eos",
                                         "include_reasoning",
                                         "include_stop_str_in_output",
                                         "json_schema",
                                         "kv_transfer_params",
                                         "length_penalty",
                                         "logit_bias",
                                         "logits_processors",
                                         "logprob_token_ids",
                                         "logprobs",
                                         "lora",
                                         "lora_path",
                                         "max_completion_tokens",
                                         "max_tokens",
                                         "metadata",
                                         "min_keep",
                                         "min_p",
                                         "min_tokens",
                                         "mirostat",
                                         "mm_processor_kwargs",
                                         "modalities",
                                         "moderation",
                                         "n",
                                         "n_indent",
                                         "n_keep",
                                         "n_predict",
                                         "n_probs",
                                         "no_stop_trim",
                                         "parallel_tool_calls",
                                         "parse_tool_calls",
                                         "post_sampling_probs",
                                         "prediction",
                                         "presence_penalty",
                                         "priority",
                                         "prompt_cache_key",
                                         "prompt_cache_retention",
                                         "prompt_logprobs",
                                         "prompt_mode",
                                         "reasoning",
                                         "reasoning_effort",
                                         "reasoning_format",
                                         "regex",
                                         "repeat_last_n",
                                         "repeat_penalty",
                                         "repetition_detection",
                                         "repetition_penalty",
                                         "request_id",
                                         "response_format",
                                         "return_hidden_states",
                                         "return_progress",
                                         "return_prompt_text",
                                         "return_routed_experts",
                                         "return_token_ids",
                                         "return_tokens_as_token_ids",
                                         "rid",
                                         "routed_dp_rank",
                                         "safe_prompt",
                                         "safety_identifier",
                                         "samplers",
                                         "seed",
                                         "separate_reasoning",
                                         "service_tier",
                                         "session_id",
                                         "session_params",
                                         "skip_special_tokens",
                                         "spaces_between_special_tokens",
                                         "stop",
                                         "stop_regex",
                                         "stop_token_ids",
                                         "store",
                                         "stream",
                                         "stream_options",
                                         "stream_reasoning",
                                         "structural_tag",
                                         "structured_outputs",
                                         "t_max_predict_ms",
                                         "temperature",
                                         "thinking",
                                         "thinking_token_budget",
                                         "timings_per_token",
                                         "tool_choice",
                                         "tools",
                                         "top_k",
                                         "top_logprobs",
                                         "top_p",
                                         "transforms",
                                         "truncate_prompt_tokens",
                                         "truncation_side",
                                         "typical_p",
                                         "use_beam_search",
                                         "user",
                                         "verbosity",
                                         "vllm_xargs",
                                         "watermarking",
                                         "web_search_options",
                                         "xtc_probability"};
constexpr std::string_view kOfCompletions[] = {
    "add_special_tokens", "best_of", "echo",          "guided_json",     "logprobs",
    "min_tokens",         "n",       "prompt_embeds", "prompt_logprobs", "response_format",
    "return_token_ids",   "stop",    "suffix",        "tools",           "truncate_prompt_tokens"};

TEST(ApiFields, of_public_servers_are_read_refused_or_change_nothing) {
  ApiServer server;
  const auto ignored = coordinator::ignored_fields();
  const auto expect = [&](const Door& door, std::string_view field) {
    const bool changes_nothing = std::find(ignored.begin(), ignored.end(), field) != ignored.end();
    // No field has a value like this one.
    const RawResponse response = ask(server, door, field, R"([{"strange": [1]}])");
    EXPECT_EQ(response.status, changes_nothing ? 200 : 400) << door.path << " " << field;
  };
  for (const std::string_view field : kOfChats) expect(kChat, field);
  for (const std::string_view field : kOfCompletions) expect(kText, field);
}

}  // namespace
}  // namespace atl::test
