// Requests that are right: what the backend is asked, and parts of the answer.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "tests/coordinator/api_server.h"

namespace atl::test {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using ::testing::StartsWith;
using Submitted = ScriptedBackend::Submitted;

constexpr const char* kChat = "/v1/chat/completions";
constexpr const char* kText = "/v1/completions";

// The backend says " the" * 4 unless the case says otherwise.
struct Answer {
  const char* name;
  const char* path;
  std::string body;
  std::vector<std::pair<std::string, std::string>> parts;  // JSON pointer, JSON text
  std::function<void(const Submitted&)> asked = {};        // the first choice
  const char* reply = " the the the the";
};

std::string chat(const std::string& field) {
  return R"({"model": "tiny", "messages": [{"role": "user", "content": "hi"}])" +
         (field.empty() ? "" : ", " + field) + "}";
}
std::string text(const std::string& field) {
  return R"({"model": "tiny", "prompt": "Once")" + (field.empty() ? "" : ", " + field) + "}";
}
std::string messages(const std::string& list) { return R"({"messages": )" + list + "}"; }

constexpr const char* kWhole = R"(" the the the the")";

// Which ids a text has doesn't matter here, but whether one prompt is another's.
std::vector<int32_t> ids(const std::string& text) {
  static const text::Tokenizer tokenizer = text::Tokenizer::load(ApiServer::model_dir());
  return *tokenizer.encode(text);
}
const std::string kBos = "<｜begin▁of▁sentence｜>";
const std::string kUser = "<｜User｜>", kAssistant = "<｜Assistant｜>";

auto prompt_is(const std::string& text) {
  return [text](const Submitted& request) { EXPECT_EQ(request.prompt, ids(text)); };
}

const Answer kAnswers[] = {
    // Shape.
    {"chat",
     kChat,
     chat(""),
     {{"/object", "\"chat.completion\""},
      {"/model", "\"tiny\""},
      {"/system_fingerprint", "\"atoll-0.0-test\""},
      {"/choices/0/index", "0"},
      {"/choices/0/message/role", "\"assistant\""},
      {"/choices/0/message/content", kWhole},
      {"/choices/0/logprobs", "null"},
      {"/choices/0/finish_reason", "\"stop\""},
      {"/usage/completion_tokens", "5"},
      {"/usage/prompt_tokens_details/cached_tokens", "0"},
      {"/usage/completion_tokens_details/reasoning_tokens", "0"}}},
    {"text",
     kText,
     text(""),
     {{"/object", "\"text_completion\""},
      {"/choices/0/text", kWhole},
      {"/choices/0/finish_reason", "\"stop\""},
      {"/choices/0/logprobs", "null"}}},
    {"no_model_given", kText, R"({"prompt": "Once"})", {{"/model", "\"tiny\""}}},

    // Length.
    {"max_tokens",
     kChat,
     chat(R"("max_tokens": 2)"),
     {{"/choices/0/message/content", R"(" the the")"},
      {"/choices/0/finish_reason", "\"length\""},
      {"/usage/completion_tokens", "2"}},
     [](const Submitted& request) { EXPECT_EQ(request.max_tokens, 2); }},
    {"max_completion_tokens",
     kChat,
     chat(R"("max_completion_tokens": 3, "max_tokens": 1)"),
     {{"/usage/completion_tokens", "3"}}},
    {"max_tokens_as_16_0",
     kChat,
     chat(R"("max_tokens": 16.0)"),
     {},
     [](const Submitted& request) { EXPECT_EQ(request.max_tokens, 16); }},
    {"max_tokens_beyond_context",
     kChat,
     chat(R"("max_tokens": 1000000)"),
     {},
     [](const Submitted& request) {
       EXPECT_EQ(request.max_tokens + static_cast<int64_t>(request.prompt.size()), 2048);
     }},
    {"chat_goes_to_the_end_of_the_context",
     kChat,
     chat(""),
     {},
     [](const Submitted& request) {
       EXPECT_EQ(request.max_tokens + static_cast<int64_t>(request.prompt.size()), 2048);
     }},
    {"text_has_16_tokens_unless_told",
     kText,
     text(""),
     {},
     [](const Submitted& request) { EXPECT_EQ(request.max_tokens, 16); }},
    {"min_tokens",
     kText,
     text(R"("min_tokens": 7)"),
     {},
     [](const Submitted& request) { EXPECT_EQ(request.min_tokens, 7); }},
    {"ignore_eos",
     kText,
     text(R"("ignore_eos": true)"),
     {},
     [](const Submitted& request) { EXPECT_THAT(request.stop_ids, IsEmpty()); }},
    {"eos_ends",
     kText,
     text(""),
     {},
     [](const Submitted& request) { EXPECT_THAT(request.stop_ids, ElementsAre(1)); }},
    {"stop_token_ids",
     kText,
     text(R"("stop_token_ids": [262])"),
     {{"/choices/0/text", "\"\""}},
     [](const Submitted& request) { EXPECT_THAT(request.stop_ids, ElementsAre(1, 262)); }},

    // Sampling.
    {"defaults_are_openais",
     kChat,
     chat(""),
     {},
     [](const Submitted& request) {
       EXPECT_EQ(request.sampling.temperature, 1.0f);
       EXPECT_EQ(request.sampling.top_p, 1.0f);
       EXPECT_EQ(request.sampling.top_k, 0);
       EXPECT_EQ(request.sampling.min_p, 0.0f);
       EXPECT_TRUE(request.logits.idle());
     }},
    {"sampling",
     kChat,
     chat(R"("temperature": 0.5, "top_p": 0.9, "top_k": 40, "min_p": 0.05, "seed": 7)"),
     {},
     [](const Submitted& request) {
       EXPECT_EQ(request.sampling.temperature, 0.5f);
       EXPECT_EQ(request.sampling.top_p, 0.9f);
       EXPECT_EQ(request.sampling.top_k, 40);
       EXPECT_EQ(request.sampling.min_p, 0.05f);
       EXPECT_EQ(request.sampling.seed, 7u);
     }},
    {"nulls_are_as_if_not_there",
     kChat,
     chat(R"("temperature": null, "top_p": null, "n": null, "stop": null, "seed": null, )"
          R"("logit_bias": null, "tools": null, "tool_choice": null, "response_format": null, )"
          R"("stream_options": null, "max_tokens": null, "user": null, "logprobs": null)"),
     {{"/choices/0/message/content", kWhole}}},
    {"greedy",
     kText,
     text(R"("temperature": 0)"),
     {},
     [](const Submitted& request) { EXPECT_EQ(request.sampling.temperature, 0.0f); }},
    {"top_p_zero_keeps_one",
     kText,
     text(R"("top_p": 0)"),
     {},
     [](const Submitted& request) {
       EXPECT_TRUE(model::check(request.sampling).ok());
       EXPECT_LT(request.sampling.top_p, 1e-30f);
     }},
    {"top_k_minus_one_is_all",
     kText,
     text(R"("top_k": -1)"),
     {},
     [](const Submitted& request) { EXPECT_EQ(request.sampling.top_k, 0); }},
    {"negative_seed",
     kText,
     text(R"("seed": -1)"),
     {},
     [](const Submitted& request) { EXPECT_EQ(request.sampling.seed, UINT64_MAX); }},
    {"penalties",
     kChat,
     chat(R"("presence_penalty": 0.5, "frequency_penalty": -2)"),
     {},
     [](const Submitted& request) {
       EXPECT_EQ(request.logits.presence_penalty, 0.5f);
       EXPECT_EQ(request.logits.frequency_penalty, -2.0f);
     }},
    {"logit_bias",
     kChat,
     chat(R"("logit_bias": {"262": -100, "5": 2.5})"),
     {},
     [](const Submitted& request) {
       EXPECT_THAT(request.logits.bias, ElementsAre(std::pair(5, 2.5f), std::pair(262, -100.0f)));
     }},

    // Choices.
    {"choices",
     kChat,
     chat(R"("n": 3, "seed": 5)"),
     {{"/choices/2/index", "2"},
      {"/choices/2/message/content", kWhole},
      {"/usage/completion_tokens", "15"}}},
    {"best_of_equal_to_n", kText, text(R"("n": 2, "best_of": 2)"), {{"/choices/1/index", "1"}}},

    // Stop strings.
    {"stop",
     kText,
     text(R"("stop": "the the")"),
     {{"/choices/0/text", R"(" ")"}, {"/choices/0/finish_reason", "\"stop\""}}},
    {"stop_list",
     kChat,
     chat(R"("stop": ["nothing", "e t"])"),
     {{"/choices/0/message/content", R"(" th")"}}},
    {"stop_that_does_not_come",
     kText,
     text(R"("stop": ["the thing"])"),
     {{"/choices/0/text", kWhole}}},

    // Log probabilities.
    {"chat_logprobs",
     kChat,
     chat(R"("logprobs": true, "top_logprobs": 2)"),
     {{"/choices/0/logprobs/content/0/token", "\" the\""},
      {"/choices/0/logprobs/content/0/logprob", "-0.5"},
      {"/choices/0/logprobs/content/0/bytes", "[32,116,104,101]"},
      {"/choices/0/logprobs/content/0/top_logprobs/1/logprob", "-1.5"},
      {"/choices/0/logprobs/content/3/token", "\" the\""}},
     [](const Submitted& request) { EXPECT_EQ(request.top_logprobs, 2); }},
    {"chat_logprobs_alone",
     kChat,
     chat(R"("logprobs": true)"),
     {{"/choices/0/logprobs/content/0/top_logprobs", "[]"}},
     [](const Submitted& request) { EXPECT_EQ(request.top_logprobs, 0); }},
    {"chat_logprobs_false",
     kChat,
     chat(R"("logprobs": false, "top_logprobs": 0)"),
     {{"/choices/0/logprobs", "null"}},
     [](const Submitted& request) { EXPECT_EQ(request.top_logprobs, -1); }},
    {"text_logprobs",
     kText,
     text(R"("logprobs": 2)"),
     {{"/choices/0/logprobs/tokens", R"([" the"," the"," the"," the"])"},
      {"/choices/0/logprobs/token_logprobs", "[-0.5,-0.5,-0.5,-0.5]"},
      {"/choices/0/logprobs/text_offset", "[0,4,8,12]"},
      {"/choices/0/logprobs/top_logprobs/0/ the", "-0.5"}}},
    {"text_logprobs_zero",
     kText,
     text(R"("logprobs": 0)"),
     {{"/choices/0/logprobs/top_logprobs/0", R"({" the":-0.5})"}}},
    {"logprobs_of_what_a_stop_string_cut",
     kText,
     text(R"("logprobs": 0, "stop": "e the")"),
     {{"/choices/0/text", "\" th\""}, {"/choices/0/logprobs/tokens", R"([" the"])"}}},

    // Prompts of completions.
    {"prompt_gets_a_bos", kText, text(""), {}, prompt_is(kBos + "Once")},
    {"prompt_with_a_bos",
     kText,
     R"({"prompt": ")" + kBos + R"(Once"})",
     {},
     prompt_is(kBos + "Once")},
    {"prompt_of_ids",
     kText,
     R"({"prompt": [5, 6, 7]})",
     {{"/usage/prompt_tokens", "3"}},
     [](const Submitted& request) { EXPECT_THAT(request.prompt, ElementsAre(5, 6, 7)); }},
    {"prompts",
     kText,
     R"({"prompt": ["a", "b"], "n": 2})",
     {{"/choices/3/index", "3"}, {"/usage/prompt_tokens", "4"}}},
    {"prompts_of_ids",
     kText,
     R"({"prompt": [[5, 6], [7]]})",
     {{"/choices/1/text", kWhole}, {"/usage/prompt_tokens", "3"}}},
    {"empty_prompt_starts_from_bos", kText, R"({"prompt": ""})", {}, prompt_is(kBos)},
    {"echo", kText, text(R"("echo": true)"), {{"/choices/0/text", R"("Once the the the the")"}}},
    {"echo_of_ids",
     kText,
     R"({"prompt": [262], "echo": true})",
     {{"/choices/0/text", R"(" the the the the the")"}}},
    {"empty_suffix", kText, text(R"("suffix": "")"), {{"/choices/0/text", kWhole}}},

    // Messages.
    {"chat_is_rendered", kChat, chat(""), {}, prompt_is(kBos + kUser + "hi" + kAssistant)},
    {"system",
     kChat,
     messages(R"([{"role":"system","content":"S"},{"role":"user","content":"hi"}])"),
     {},
     prompt_is(kBos + "S" + kUser + "hi" + kAssistant)},
    {"developer_is_system",
     kChat,
     messages(R"([{"role":"developer","content":"S"},{"role":"user","content":"hi"}])"),
     {},
     prompt_is(kBos + "S" + kUser + "hi" + kAssistant)},
    {"history",
     kChat,
     messages(R"([{"role":"user","content":"a"},{"role":"assistant","content":"b"},)"
              R"({"role":"user","content":"c"}])"),
     {},
     prompt_is(kBos + kUser + "a" + kAssistant + "b" + "<｜end▁of▁sentence｜>" + kUser + "c" +
               kAssistant)},
    {"text_parts",
     kChat,
     messages(
         R"([{"role":"user","content":[{"type":"text","text":"a"},{"type":"text","text":"b"}]}])"),
     {},
     prompt_is(kBos + kUser + "a\nb" + kAssistant)},
    {"string_parts",
     kChat,
     messages(R"([{"role":"user","content":["a","b"]}])"),
     {},
     prompt_is(kBos + kUser + "a\nb" + kAssistant)},
    {"no_parts",
     kChat,
     messages(R"([{"role":"user","content":[]}])"),
     {},
     prompt_is(kBos + kUser + kAssistant)},
    {"reasoning_of_history_is_dropped",
     kChat,
     messages(R"([{"role":"user","content":"a"},{"role":"assistant","content":"b",)"
              R"("reasoning_content":"hm"},{"role":"user","content":"c"}])"),
     {},
     prompt_is(kBos + kUser + "a" + kAssistant + "b" + "<｜end▁of▁sentence｜>" + kUser + "c" +
               kAssistant)},
    {"assistant_without_content",
     kChat,
     messages(R"([{"role":"assistant","content":null},{"role":"user","content":"c"}])"),
     {},
     prompt_is(kBos + kAssistant + "<｜end▁of▁sentence｜>" + kUser + "c" + kAssistant)},
    {"name_is_fine",
     kChat,
     messages(R"([{"role":"user","name":"ann","content":"hi"}])"),
     {},
     prompt_is(kBos + kUser + "hi" + kAssistant)},
    {"calls_in_history_are_spelled_out",
     kChat,
     messages(R"([{"role":"user","content":"a"},{"role":"assistant","content":"","tool_calls":[)"
              R"({"id":"1","type":"function","function":{"name":"f","arguments":"{\"x\":1}"}}]},)"
              R"({"role":"tool","tool_call_id":"1","content":"42"}])"),
     {},
     prompt_is(kBos + kUser + "a" + kAssistant +
               "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f<｜tool▁sep｜>{\"x\":1}"
               "<｜tool▁call▁end｜><｜tool▁calls▁end｜><｜end▁of▁sentence｜>" +
               kUser + "<｜tool▁output▁begin｜>42<｜tool▁output▁end｜>" + kAssistant)},

    // What clients send and nobody needs.
    {"ignored_fields",
     kChat,
     chat(
         R"("metadata": {"a": 1}, "store": true, "reasoning_effort": "low", "service_tier": null, )"
         R"("unheard_of": [[[]]], "modalities": ["text"])"),
     {{"/choices/0/message/content", kWhole}}},
    {"same_key_twice",
     kText,
     R"({"prompt": "a", "max_tokens": 1, "max_tokens": 2})",
     {{"/usage/completion_tokens", "2"}}},
    {"huge_numbers",
     kText,
     text(R"("x": 123456789012345678901234567890, "y": 1e308)"),
     {{"/choices/0/text", kWhole}}},
    {"escaped_characters",
     kText,
     R"({"prompt": "\u0041\ud83d\ude00\n"})",
     {},
     prompt_is(kBos + "A😀\n")},
    // Values that change nothing.
    {"neutral_fields",
     kChat,
     chat(R"("length_penalty": 1.0, "use_beam_search": false, "functions": [], "bad_words": [],)"
          R"("skip_special_tokens": true, "function_call": "none", "repetition_penalty": 1)"),
     {{"/choices/0/message/content", kWhole}}},
    {"repetition_penalty",
     kChat,
     chat(R"("repetition_penalty": 1.25)"),
     {},
     [](const Submitted& request) { EXPECT_EQ(request.logits.repetition_penalty, 1.25f); }},
    {"truncated_prompt",
     kText,
     R"({"prompt": "Once upon a time", "truncate_prompt_tokens": 2})",
     {},
     [](const Submitted& request) { EXPECT_EQ(request.prompt.size(), 2u); }},
    {"without_bos",
     kText,
     R"({"prompt": "Once", "add_special_tokens": false})",
     {},
     prompt_is("Once")},
    {"prefix_goes_on",
     kChat,
     messages(
         R"([{"role":"user","content":"a"},{"role":"assistant","content":"b c","prefix":true}])"),
     {{"/choices/0/message/content", kWhole}},
     prompt_is(kBos + kUser + "a" + kAssistant + "b c")},
    {"echo_with_log_probabilities",
     kText,
     R"({"prompt": [262, 263], "echo": true, "logprobs": 1, "max_tokens": 1})",
     {{"/choices/0/logprobs/token_logprobs/0", "null"},
      {"/choices/0/logprobs/top_logprobs/0", "null"},
      {"/choices/0/logprobs/text_offset/0", "0"}},
     [](const Submitted& request) { EXPECT_EQ(request.prompt_logprobs, 1); }},
    {"echo_alone",
     kText,
     R"({"prompt": [262, 263], "echo": true, "logprobs": 1, "max_tokens": 0})",
     {{"/choices/0/logprobs/tokens", R"([" the","in"])"},
      {"/choices/0/logprobs/token_logprobs", "[null,-0.5]"},
      {"/choices/0/text", R"(" thein")"},
      {"/choices/0/finish_reason", R"("length")"},
      {"/usage/completion_tokens", "0"}},
     [](const Submitted& request) { EXPECT_EQ(request.max_tokens, 1); }},
    {"offsets_of_an_echo_are_those_of_its_text",
     kText,
     R"({"prompt": "ab", "echo": true, "logprobs": 1, "max_tokens": 0})",
     {{"/choices/0/text", R"("ab")"},
      {"/choices/0/logprobs/text_offset/0", "0"},
      {"/choices/0/logprobs/text_offset/1", "0"}},
     {}},
    {"prompt_log_probabilities",
     kText,
     R"({"prompt": [262, 263, 264], "prompt_logprobs": 2, "max_tokens": 1})",
     {{"/choices/0/logprobs", "null"},
      {"/choices/0/prompt_logprobs/0", "null"},
      {"/choices/0/prompt_logprobs/1/263/rank", "1"},
      {"/choices/0/prompt_logprobs/1/263/logprob", "-0.5"},
      {"/choices/0/prompt_logprobs/2/264/decoded_token", "\" o\""},
      {"/choices/0/prompt_logprobs/2/265/rank", "2"}},
     [](const Submitted& request) { EXPECT_EQ(request.prompt_logprobs, 2); }},
    {"prompt_log_probabilities_of_a_chat",
     kChat,
     chat(R"("prompt_logprobs": 0, "n": 2)"),
     {{"/prompt_logprobs/0", "null"}, {"/choices/1/index", "1"}}},
    {"completion_of_a_schema",
     kText,
     text(R"("response_format": {"type": "json_object"}, "max_tokens": 60)"),
     {{"/object", "\"text_completion\""}},
     [](const Submitted& request) { EXPECT_TRUE(request.constrained); }},
    {"reasoning_excluded",
     kChat,
     chat(R"("reasoning": {"enabled": true, "exclude": true, "effort": "high"})"),
     {{"/choices/0/message/content", kWhole}}},
    {"byte_order_mark", kText, "\xEF\xBB\xBF" + text(""), {{"/choices/0/text", kWhole}}},
    {"as_deep_as_allowed",
     kText,
     text(R"("x": )" + std::string(127, '[') + std::string(127, ']')),
     {{"/choices/0/text", kWhole}}},

    // Tools and structured output that ask nothing of the model.
    {"tool_choice_none",
     kChat,
     chat(R"("tools": [{"type":"function","function":{"name":"f"}}], "tool_choice": "none")"),
     {},
     prompt_is(kBos + kUser + "hi" + kAssistant)},
    {"no_tools",
     kChat,
     chat(R"("tools": [], "tool_choice": "auto", "parallel_tool_calls": true)"),
     {},
     prompt_is(kBos + kUser + "hi" + kAssistant)},
    {"response_format_text",
     kChat,
     chat(R"("response_format": {"type": "text"})"),
     {{"/choices/0/message/content", kWhole}},
     [](const Submitted& request) { EXPECT_FALSE(request.constrained); }},
    {"a_call",
     kChat,
     chat(R"("tools": [{"type":"function","function":{"name":"f"}}])"),
     {{"/choices/0/finish_reason", "\"tool_calls\""},
      {"/choices/0/message/content", "null"},
      {"/choices/0/message/tool_calls/0/type", "\"function\""},
      {"/choices/0/message/tool_calls/0/function/name", "\"f\""},
      {"/choices/0/message/tool_calls/0/function/arguments", R"("{\"x\":1}")"}},
     {},
     "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f<｜tool▁sep｜>{\"x\":1}<｜tool▁call▁end｜>"
     "<｜tool▁calls▁end｜>"},
    {"marks_without_tools_are_text",
     kChat,
     chat(""),
     {{"/choices/0/finish_reason", "\"stop\""},
      {"/choices/0/message/content", "\"<｜tool▁calls▁begin｜>x\""}},
     {},
     "<｜tool▁calls▁begin｜>x"},
};

void PrintTo(const Answer& answer, std::ostream* out) { *out << answer.name; }

class Answers : public ::testing::TestWithParam<Answer> {};

TEST_P(Answers, have_what_was_asked_for) {
  const Answer& answer = GetParam();
  ApiServer server;
  server.backend().say(answer.reply);
  const RawResponse response = server.post(answer.path, answer.body);
  ASSERT_EQ(response.status, 200) << response.body;
  EXPECT_EQ(response.headers.at("content-type"), "application/json");
  const Json json = Json::parse(response.body);
  for (const auto& [pointer, expected] : answer.parts) {
    const auto at = Json::json_pointer(pointer);
    ASSERT_TRUE(json.contains(at)) << pointer << " of " << json;
    EXPECT_EQ(json.at(at).dump(), Json::parse(expected).dump()) << pointer;
  }
  ASSERT_THAT(server.backend().submitted(), Not(IsEmpty()));
  if (answer.asked) answer.asked(server.backend().submitted().front());
}

INSTANTIATE_TEST_SUITE_P(Api, Answers, ::testing::ValuesIn(kAnswers),
                         [](const auto& info) { return std::string(info.param.name); });

// --- what a table can't say ---

TEST(ApiAnswer, seeds_are_random_unless_given_and_choices_are_samples_of_one) {
  ApiServer server;
  server.post(kChat, chat(R"("n": 2)"));
  server.post(kChat, chat(R"("n": 2)"));
  const auto submitted = server.backend().submitted();
  ASSERT_EQ(submitted.size(), 4u);
  EXPECT_EQ(submitted[0].sampling.seed, submitted[1].sampling.seed);
  EXPECT_EQ(submitted[0].sample, 0u);
  EXPECT_EQ(submitted[1].sample, 1u);
  EXPECT_NE(submitted[0].sampling.seed, submitted[2].sampling.seed);
}

TEST(ApiAnswer, choices_differ_and_share_the_prompt_in_usage) {
  ApiServer server;
  server.backend().say_each({" a", " b b"});
  server.backend().set_cached_tokens(2);
  const Json json = Json::parse(server.post(kText, text(R"("n": 2)")).body);
  EXPECT_EQ(json.at("choices")[0].at("text"), " a");
  EXPECT_EQ(json.at("choices")[1].at("text"), " b b");
  EXPECT_EQ(json.at("usage").at("prompt_tokens"), ids(kBos + "Once").size());
  EXPECT_EQ(json.at("usage").at("prompt_tokens_details").at("cached_tokens"), 2);
}

TEST(ApiAnswer, the_models_own_sampling_is_the_default) {
  ApiServerOptions options;
  options.api.model.temperature = 0.6f;
  options.api.model.top_p = 0.95f;
  ApiServer server(options);
  server.post(kChat, chat(""));
  server.post(kChat, chat(R"("temperature": 1)"));
  const auto submitted = server.backend().submitted();
  EXPECT_EQ(submitted.at(0).sampling.temperature, 0.6f);
  EXPECT_EQ(submitted.at(0).sampling.top_p, 0.95f);
  EXPECT_EQ(submitted.at(1).sampling.temperature, 1.0f);
}

TEST(ApiAnswer, the_servers_context_may_be_less_than_the_models) {
  ApiServerOptions options;
  options.api.context_tokens = 10;
  ApiServer server(options);
  server.post(kChat, chat(""));
  EXPECT_EQ(server.backend().submitted().at(0).max_tokens, 10 - 4);
  const RawResponse refused = server.post(kText, R"({"prompt": [5,5,5,5,5,5,5,5,5,5]})");
  EXPECT_EQ(refused.status, 400);
  EXPECT_THAT(refused.body, HasSubstr("context_length_exceeded"));
}

TEST(ApiAnswer, chats_of_a_model_without_template_are_refused) {
  ApiServerOptions options;
  options.chat_template = "";
  ApiServer server(options);
  const RawResponse refused = server.post(kChat, chat(""));
  EXPECT_EQ(refused.status, 400);
  EXPECT_EQ(Json::parse(refused.body)["error"]["code"], "no_chat_template");
  EXPECT_EQ(server.post(kText, text("")).status, 200);
}

TEST(ApiAnswer, what_the_template_refuses_is_a_400) {
  ApiServerOptions options;
  options.chat_template = "{{ raise_exception('only one user turn') }}";
  ApiServer server(options);
  const RawResponse refused = server.post(kChat, chat(""));
  EXPECT_EQ(refused.status, 400);
  EXPECT_THAT(refused.body, HasSubstr("only one user turn"));
}

TEST(ApiAnswer, template_kwargs_are_variables_but_never_messages) {
  ApiServerOptions options;
  options.chat_template =
      "{{ messages[0]['content'] }}|{{ thinking }}|{% if thinking %}<think>{% endif %}";
  ApiServer server(options);
  server.post(kChat, chat(R"("chat_template_kwargs": {"thinking": true, "messages": []})"));
  EXPECT_EQ(server.backend().submitted().at(0).prompt, ids("hi|True|<think>"));
}

TEST(ApiAnswer, template_kwargs_bring_no_tools) {
  ApiServerOptions options;
  options.chat_template = "{{ tools is defined }}";
  ApiServer server(options);
  server.post(kChat, chat(R"("chat_template_kwargs": {"tools": [1]})"));
  EXPECT_EQ(server.backend().submitted().at(0).prompt, ids("False"));
}

TEST(ApiAnswer, reasoning_is_split_off) {
  ApiServerOptions options;
  options.chat_template = "{{ messages[0]['content'] }}<think>\n";
  ApiServer server(options);
  server.backend().say("I wonder</think>42");
  const Json json = Json::parse(server.post(kChat, chat("")).body);
  const Json& message = json["choices"][0]["message"];
  EXPECT_EQ(message["reasoning_content"], "I wonder");
  EXPECT_EQ(message["content"], "42");
  EXPECT_GT(json["usage"]["completion_tokens_details"]["reasoning_tokens"], 0);
  EXPECT_LT(json["usage"]["completion_tokens_details"]["reasoning_tokens"],
            json["usage"]["completion_tokens"]);
}

TEST(ApiAnswer, tools_are_described_where_the_template_does_not_read_them) {
  ApiServer server;
  server.post(kChat, chat(R"("tools": [{"type": "function", "function": {"name": "get_weather", )"
                          R"("description": "Looks out", "parameters": {"type": "object"}}}])"));
  const auto prompt = server.backend().submitted().at(0).prompt;
  const std::string said = server.tokenizer().decode(prompt, text::SpecialTokens::kKeep);
  EXPECT_THAT(said, StartsWith(kBos + "## Tools"));
  EXPECT_THAT(said, HasSubstr("### get_weather\nDescription: Looks out"));
  EXPECT_THAT(said, HasSubstr("tool_call_name<｜tool▁sep｜>tool_call_arguments"));
}

TEST(ApiAnswer, tools_go_to_a_template_that_reads_them) {
  ApiServerOptions options;
  options.chat_template = "{{ tools | tojson }}{{ messages[0]['content'] }}";
  ApiServer server(options);
  server.post(
      kChat, chat(R"("tools": [{"type": "function", "function": {"name": "f", "b": 1, "a": 2}}])"));
  const auto prompt = server.backend().submitted().at(0).prompt;
  const std::string said = server.tokenizer().decode(prompt, text::SpecialTokens::kKeep);
  EXPECT_THAT(said, HasSubstr(R"("name": "f", "b": 1, "a": 2)"));
  EXPECT_THAT(said, Not(HasSubstr("## Tools")));
}

TEST(ApiAnswer, clients_are_keys_else_users_else_addresses) {
  ApiServer open;
  open.post(kText, text(""));
  open.post(kText, text(R"("user": "ann")"));
  EXPECT_EQ(open.backend().submitted().at(0).client, "127.0.0.1");
  EXPECT_EQ(open.backend().submitted().at(1).client, "ann");

  ApiServerOptions options;
  options.api.keys = {{.name = "team", .key = "sk-0123456789"}};
  ApiServer locked(options);
  locked.post(kText, text(R"("user": "ann")"), "Authorization: Bearer sk-0123456789\r\n");
  EXPECT_EQ(locked.backend().submitted().at(0).client, "team");
}

TEST(ApiAnswer, the_request_id_goes_to_the_backend_and_back) {
  ApiServer server;
  const RawResponse response = server.post(kText, text(""), "X-Request-Id: abc-123\r\n");
  EXPECT_EQ(server.backend().submitted().at(0).request_id, "abc-123");
  EXPECT_EQ(response.headers.at("x-request-id"), "abc-123");
}

TEST(ApiAnswer, deadlines_come_of_the_request_timeout) {
  ApiServerOptions options;
  options.api.request_timeout = std::chrono::seconds(60);
  ApiServer server(options);
  server.post(kText, text(""));
  const auto deadline = server.backend().submitted().at(0).deadline;
  ASSERT_TRUE(deadline);
  const auto left = *deadline - std::chrono::steady_clock::now();
  EXPECT_GT(left, std::chrono::seconds(30));
  EXPECT_LE(left, std::chrono::seconds(60));
}

TEST(ApiAnswer, any_content_type_is_taken_for_json) {
  ApiServer server;
  const RawResponse response =
      RawClient(server.port()).ask(post(kText, text(""), "Content-Type: text/plain\r\n"));
  EXPECT_EQ(response.status, 200);
}

// --- errors of the backend ---

struct BackendFailure {
  ErrorCode code;
  int status;
  const char* type;
  const char* error_code;
  bool retry_after;
};

TEST(ApiAnswer, what_the_backend_refuses_has_its_status) {
  const BackendFailure failures[] = {
      {ErrorCode::kOverloaded, 429, "rate_limit_error", "queue_full", true},
      {ErrorCode::kUnavailable, 503, "service_unavailable_error", "unavailable", true},
      {ErrorCode::kInvalid, 400, "invalid_request_error", "context_length_exceeded", false},
      {ErrorCode::kInternal, 500, "server_error", "internal_error", false}};
  for (const BackendFailure& failure : failures) {
    ApiServer server;
    server.backend().fail_submits({failure.code, "no room"});
    const RawResponse response = server.post(kChat, chat(""));
    EXPECT_EQ(response.status, failure.status);
    const Json error = Json::parse(response.body)["error"];
    EXPECT_EQ(error["type"], failure.type);
    EXPECT_EQ(error["code"], failure.error_code);
    EXPECT_EQ(error["message"], "no room");
    EXPECT_EQ(response.headers.contains("retry-after"), failure.retry_after);
  }
}

TEST(ApiAnswer, what_ends_on_the_way_has_its_status) {
  const BackendFailure failures[] = {
      {ErrorCode::kTimeout, 504, "timeout_error", "timeout", false},
      {ErrorCode::kUnavailable, 503, "service_unavailable_error", "unavailable", true},
      {ErrorCode::kInternal, 500, "server_error", "internal_error", false}};
  for (const BackendFailure& failure : failures) {
    ApiServer server;
    server.backend().say(" the the the");
    server.backend().fail_after(2, {failure.code, "layer 3 is on fire"});
    const RawResponse response = server.post(kChat, chat(""));
    EXPECT_EQ(response.status, failure.status);
    EXPECT_EQ(Json::parse(response.body)["error"]["code"], failure.error_code);
    EXPECT_EQ(response.headers.contains("retry-after"), failure.retry_after);
  }
}

TEST(ApiAnswer, a_failing_engine_takes_no_requests) {
  ApiServer server;
  coordinator::GenerationStats stats;
  stats.failure = "no living node has tile 3";
  server.backend().set_stats(stats);
  const RawResponse response = server.post(kChat, chat(""));
  EXPECT_EQ(response.status, 503);
  EXPECT_TRUE(response.headers.contains("retry-after"));
  EXPECT_THAT(response.body, HasSubstr("no living node has tile 3"));
}

// --- other paths ---

TEST(ApiPaths, tell_what_the_server_is) {
  ApiServer server;
  EXPECT_EQ(server.get("/health").status, 200);
  EXPECT_EQ(server.get("/version").body, R"({"version":"0.0-test"})");
  for (const char* path : {"/v1/models", "/models"}) {
    const Json models = Json::parse(server.get(path).body);
    EXPECT_EQ(models["object"], "list");
    EXPECT_EQ(models["data"][0]["id"], "tiny");
    EXPECT_EQ(models["data"][0]["max_model_len"], 2048);
  }
  for (const char* path : {"/v1/models/tiny", "/models/tiny"}) {
    EXPECT_EQ(Json::parse(server.get(path).body)["id"], "tiny");
  }
  EXPECT_EQ(server.get("/v1/models/other").status, 404);
}

TEST(ApiPaths, the_page_is_at_the_root) {
  ApiServer server;
  const RawResponse page = server.get("/");
  EXPECT_EQ(page.status, 200);
  EXPECT_THAT(page.headers.at("content-type"), StartsWith("text/html"));
  EXPECT_THAT(page.body, HasSubstr("</html>"));
}

TEST(ApiPaths, unknown_paths_and_methods_have_openais_error) {
  ApiServer server;
  const RawResponse unknown = server.get("/v1/nothing");
  EXPECT_EQ(unknown.status, 404);
  EXPECT_EQ(Json::parse(unknown.body)["error"]["code"], "not_found");
  const RawResponse method = server.get("/v1/chat/completions");
  EXPECT_EQ(method.status, 405);
  EXPECT_EQ(Json::parse(method.body)["error"]["type"], "invalid_request_error");
  EXPECT_TRUE(method.headers.contains("allow"));
}

TEST(ApiPaths, tokenize_and_back) {
  ApiServer server;
  const Json tokens = Json::parse(
      server.post("/tokenize", R"({"prompt": "Once", "return_token_strs": true})").body);
  EXPECT_EQ(tokens["tokens"].get<std::vector<int32_t>>(), ids(kBos + "Once"));
  EXPECT_EQ(tokens["count"], tokens["tokens"].size());
  EXPECT_EQ(tokens["max_model_len"], 2048);
  EXPECT_EQ(tokens["token_strs"][0], kBos);
  const Json text =
      Json::parse(server.post("/detokenize", Json{{"tokens", tokens["tokens"]}}.dump()).body);
  EXPECT_EQ(text["prompt"], kBos + "Once");

  const Json bare = Json::parse(
      server.post("/tokenize", R"({"prompt": "Once", "add_special_tokens": false})").body);
  EXPECT_EQ(bare["tokens"].get<std::vector<int32_t>>(), ids("Once"));
  EXPECT_TRUE(bare["token_strs"].is_null());
  EXPECT_EQ(server.post("/detokenize", R"({"tokens": []})").body, R"({"prompt":""})");
}

TEST(ApiPaths, the_tokenizer_is_told) {
  ApiServer server;
  const Json info = Json::parse(server.get("/tokenizer_info").body);
  EXPECT_EQ(info["bos_token"], kBos);
  EXPECT_EQ(info["eos_token"], "<｜end▁of▁sentence｜>");
  EXPECT_EQ(info["model_max_length"], 2048);
  EXPECT_THAT(info["chat_template"].get<std::string>(), HasSubstr("add_generation_prompt"));
}

TEST(ApiPaths, tokenize_renders_messages) {
  ApiServer server;
  const auto tokens = [&](const std::string& fields) {
    return Json::parse(server
                           .post("/tokenize",
                                 R"({"messages": [{"role":"user","content":"hi"}])" + fields + "}")
                           .body)["tokens"]
        .get<std::vector<int32_t>>();
  };
  EXPECT_EQ(tokens(""), ids(kBos + kUser + "hi" + kAssistant));
  EXPECT_EQ(tokens(R"(, "add_generation_prompt": false)"), ids(kBos + kUser + "hi"));
}

// --- keys ---

TEST(ApiKeysOverHttp, are_asked_for_wherever_there_is_data) {
  ApiServerOptions options;
  options.api.keys = {{.name = "a", .key = "sk-0123456789"}, {.name = "b", .key = "sk-9876543210"}};
  ApiServer server(options);
  for (const char* path : {"/v1/models", "/models", "/metrics", "/stats", "/tokenizer_info"}) {
    EXPECT_EQ(server.get(path).status, 401) << path;
    EXPECT_EQ(server.get(path, "Authorization: Bearer sk-9876543210\r\n").status, 200) << path;
  }
  for (const char* path : {"/", "/health", "/version"}) {
    EXPECT_EQ(server.get(path).status, 200) << path;
  }
  for (const char* header :
       {"", "Authorization: Bearer \r\n", "Authorization: Bearer sk-012345678\r\n",
        "Authorization: Bearer sk-01234567890\r\n", "Authorization: sk-0123456789\r\n",
        "Authorization: Basic sk-0123456789\r\n"}) {
    const RawResponse refused = server.post(kText, text(""), header);
    EXPECT_EQ(refused.status, 401) << header;
    EXPECT_EQ(Json::parse(refused.body)["error"]["code"], "invalid_api_key");
    EXPECT_EQ(refused.headers.at("www-authenticate"), "Bearer");
  }
  EXPECT_EQ(server.post(kText, text(""), "Authorization: bearer   sk-0123456789\r\n").status, 200);
}

}  // namespace
}  // namespace atl::test
