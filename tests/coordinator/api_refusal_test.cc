// Requests that are wrong, and the answer to each: status, and OpenAI's error object.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "tests/coordinator/api_server.h"

namespace atl::test {
namespace {

using ::testing::HasSubstr;

constexpr const char* kChat = "/v1/chat/completions";
constexpr const char* kText = "/v1/completions";

struct Refusal {
  const char* name;
  const char* path;
  std::string body;
  int status;
  const char* param;    // "" for null
  const char* code;     // "" for null
  const char* message;  // part of it
};

// Bodies of one field beside what is right, so that nothing else can be wrong.
std::string chat(const std::string& field) {
  return R"({"model": "tiny", "messages": [{"role": "user", "content": "hi"}])" +
         (field.empty() ? "" : ", " + field) + "}";
}
std::string text(const std::string& field) {
  return R"({"model": "tiny", "prompt": "Once")" + (field.empty() ? "" : ", " + field) + "}";
}
std::string messages(const std::string& list) {
  return R"({"model": "tiny", "messages": )" + list + "}";
}
std::string with_tool(const std::string& field) {
  return chat(R"("tools": [{"type": "function", "function": {"name": "f"}}])" +
              (field.empty() ? "" : ", " + field));
}
std::string nested(int depth) {
  return chat(R"("x": )" + std::string(depth, '[') + std::string(depth, ']'));
}

std::string many_keys(int count) {
  std::string keys;
  for (int i = 0; i < count; ++i) keys += "\"k" + std::to_string(i) + "\":0,";
  return "{" + keys + "\"prompt\":\"a\"}";
}
std::string many_values(int count) {
  std::string values;
  for (int i = 0; i < count; ++i) values += "0,";
  return text("\"x\": [" + values + "0]");
}

const Refusal kRefusals[] = {
    // Not JSON.
    {"empty_body", kChat, "", 400, "", "invalid_json", "empty body"},
    {"blank_body", kText, " \r\n ", 400, "", "invalid_json", "empty body"},
    {"not_json", kChat, "hello", 400, "", "invalid_json", "not JSON"},
    {"half_json", kChat, R"({"model": "tiny", "messages": [{"role)", 400, "", "invalid_json",
     "not JSON"},
    {"two_values", kChat, "{} {}", 400, "", "invalid_json", "not JSON"},
    {"single_quotes", kChat, "{'model': 'tiny'}", 400, "", "invalid_json", "not JSON"},
    {"trailing_comma", kText, R"({"prompt": "a",})", 400, "", "invalid_json", "not JSON"},
    {"nan", kText, R"({"prompt": "a", "temperature": NaN})", 400, "", "invalid_json", "not JSON"},
    {"array_body", kChat, "[1, 2]", 400, "", "invalid_json", "found array"},
    {"string_body", kChat, "\"hi\"", 400, "", "invalid_json", "found string"},
    {"null_body", kChat, "null", 400, "", "invalid_json", "found null"},
    {"number_body", kText, "17", 400, "", "invalid_json", "found number"},
    {"bad_utf8", kChat, messages("[{\"role\": \"user\", \"content\": \"\xC3\x28\"}]"), 400, "",
     "invalid_json", "UTF-8"},
    {"overlong_utf8", kText, "{\"prompt\": \"\xC0\xAF\"}", 400, "", "invalid_json", "UTF-8"},
    {"utf8_surrogate", kText, "{\"prompt\": \"\xED\xA0\x80\"}", 400, "", "invalid_json", "UTF-8"},
    {"lone_surrogate_escape", kText, R"({"prompt": "\ud800"})", 400, "", "invalid_json",
     "surrogate"},
    {"raw_control_byte", kText, "{\"prompt\": \"a\x01\"}", 400, "", "invalid_json", "not JSON"},
    {"zero_byte", kText, std::string("{\"prompt\": \"a\"}\0", 16), 400, "", "invalid_json",
     "zero byte"},
    {"too_deep", kChat, nested(129), 400, "", "invalid_json", "nested deeper than 128"},
    {"absurdly_deep", kChat, nested(1'000'000), 400, "", "invalid_json", "nested deeper"},
    {"open_brackets_only", kChat, std::string(1'000'000, '['), 400, "", "invalid_json",
     "nested deeper"},
    {"too_many_keys", kText, many_keys(400'000), 400, "", "invalid_json", "bytes of memory hold"},
    {"too_many_values", kText, many_values(4'000'000), 400, "", "invalid_json", "more values than"},
    {"number_overflow", kText, text(R"("x": 1e999)"), 400, "", "invalid_json", "overflow"},

    // The model's name.
    {"unknown_model_chat", kChat,
     R"({"model": "gpt-4", "messages": [{"role":"user","content":"a"}]})", 404, "model",
     "model_not_found", "gpt-4"},
    {"unknown_model_text", kText, R"({"model": "gpt-4", "prompt": "a"})", 404, "model",
     "model_not_found", "`tiny`"},
    {"model_at_its_path", "/v1/models/gpt-4", "", 404, "model", "model_not_found", "gpt-4"},
    {"model_number", kText, R"({"model": 4, "prompt": "a"})", 400, "model", "",
     "model: expected a string, found 4"},

    // Messages.
    {"no_messages", kChat, R"({"model": "tiny"})", 400, "messages", "", "found nothing"},
    {"null_messages", kChat, messages("null"), 400, "messages", "", "found null"},
    {"empty_messages", kChat, messages("[]"), 400, "messages", "", "at least one message"},
    {"messages_string", kChat, messages("\"hi\""), 400, "messages", "", "found the string \"hi\""},
    {"messages_object", kChat, messages(R"({"role": "user"})"), 400, "messages", "",
     "found an object"},
    {"message_string", kChat, messages(R"(["hi"])"), 400, "messages[0]", "", "expected an object"},
    {"message_null", kChat, messages("[null]"), 400, "messages[0]", "", "found null"},
    {"no_role", kChat, messages(R"([{"content": "hi"}])"), 400, "messages[0].role", "",
     "found nothing"},
    {"unknown_role", kChat, messages(R"([{"role": "robot", "content": "hi"}])"), 400,
     "messages[0].role", "", "found the string \"robot\""},
    {"role_number", kChat, messages(R"([{"role": 1, "content": "hi"}])"), 400, "messages[0].role",
     "", "found 1"},
    {"no_content", kChat, messages(R"([{"role": "user"}])"), 400, "messages[0].content", "",
     "found nothing"},
    {"null_content_of_user", kChat, messages(R"([{"role": "user", "content": null}])"), 400,
     "messages[0].content", "", "found null"},
    {"null_content_of_tool", kChat,
     messages(R"([{"role": "tool", "tool_call_id": "a", "content": null}])"), 400,
     "messages[0].content", "", "found null"},
    {"content_number", kChat, messages(R"([{"role": "user", "content": 5}])"), 400,
     "messages[0].content", "", "found 5"},
    {"second_message", kChat,
     messages(R"([{"role": "user", "content": "a"}, {"role": "user", "content": true}])"), 400,
     "messages[1].content", "", "found true"},
    {"image_part", kChat,
     messages(
         R"([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}])"),
     400, "messages[0].content[0].type", "unsupported", "reads text only"},
    {"audio_part", kChat,
     messages(
         R"([{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "input_audio"}]}])"),
     400, "messages[0].content[1].type", "unsupported", "input_audio"},
    {"part_without_type", kChat, messages(R"([{"role": "user", "content": [{"text": "a"}]}])"), 400,
     "messages[0].content[0]", "", "\"type\": \"text\""},
    {"part_without_text", kChat, messages(R"([{"role": "user", "content": [{"type": "text"}]}])"),
     400, "messages[0].content[0].text", "", "expected a string"},
    {"part_number", kChat, messages(R"([{"role": "user", "content": [3]}])"), 400,
     "messages[0].content[0]", "", "found 3"},
    {"name_number", kChat, messages(R"([{"role": "user", "content": "a", "name": 3}])"), 400,
     "messages[0].name", "", "expected a string"},
    {"tool_calls_object", kChat, messages(R"([{"role": "assistant", "tool_calls": {}}])"), 400,
     "messages[0].tool_calls", "", "expected an array"},
    {"tool_call_without_function", kChat,
     messages(R"([{"role": "assistant", "tool_calls": [{"id": "a"}]}])"), 400,
     "messages[0].tool_calls[0].function", "", "expected an object"},
    {"tool_call_of_other_type", kChat,
     messages(
         R"([{"role": "assistant", "tool_calls": [{"type": "x", "function": {"name": "f"}}]}])"),
     400, "messages[0].tool_calls[0].type", "", "\"function\""},

    // Prompts.
    {"no_prompt", kText, R"({"model": "tiny"})", 400, "prompt", "", "found nothing"},
    {"null_prompt", kText, R"({"prompt": null})", 400, "prompt", "", "found null"},
    {"empty_prompts", kText, R"({"prompt": []})", 400, "prompt", "", "an array of 0"},
    {"prompt_object", kText, R"({"prompt": {}})", 400, "prompt", "", "found an object"},
    {"prompt_number", kText, R"({"prompt": 3})", 400, "prompt", "", "found 3"},
    {"prompt_mixed", kText, R"({"prompt": ["a", 3]})", 400, "prompt[1]", "", "expected a string"},
    {"prompt_ids_then_text", kText, R"({"prompt": [3, "a"]})", 400, "prompt[1]", "",
     "expected an integer from 0 to 3327"},
    {"prompt_id_too_big", kText, R"({"prompt": [3328]})", 400, "prompt[0]", "", "found 3328"},
    {"prompt_id_negative", kText, R"({"prompt": [-1]})", 400, "prompt[0]", "", "found -1"},
    {"prompt_id_fraction", kText, R"({"prompt": [1.5]})", 400, "prompt[0]", "", "found 1.5"},
    {"prompt_id_huge", kText, R"({"prompt": [18446744073709551615]})", 400, "prompt[0]", "",
     "found 18446744073709551615"},
    {"prompt_empty_ids", kText, R"({"prompt": [[]]})", 400, "prompt", "", "empty"},
    {"prompt_too_many", kText,
     R"({"n": 16, "prompt": ["1","2","3","4","5","6","7","8","9","10","11","12","13","14","15","16","17"]})",
     400, "prompt", "", "at most 256"},
    {"suffix", kText, text(R"("suffix": "end")"), 400, "suffix", "unsupported", "not supported"},
    // Fields of other servers that would change the answer.
    {"guided_grammar", kChat, chat(R"("guided_grammar": "root ::= x")"), 400, "guided_grammar",
     "unsupported", "use guided_json"},
    {"bad_words", kText, text(R"("bad_words": ["a"])"), 400, "bad_words", "unsupported",
     "use logit_bias"},
    {"functions", kChat, chat(R"("functions": [{"name": "f"}])"), 400, "functions", "unsupported",
     "use tools"},
    {"function_call", kChat, chat(R"("function_call": {"name": "f"})"), 400, "function_call",
     "unsupported", "use tool_choice"},
    {"prompt_logprobs_of_a_stream", kText, text(R"("prompt_logprobs": 1, "stream": true)"), 400,
     "prompt_logprobs", "unsupported", "not together with \"stream\""},
    {"prompt_logprobs_of_all", kChat, chat(R"("prompt_logprobs": -1)"), 400, "prompt_logprobs", "",
     "from 0 to 20"},
    {"reasoning_budget", kChat, chat(R"("reasoning": {"max_tokens": 100})"), 400,
     "reasoning.max_tokens", "unsupported", "use max_tokens"},
    {"a_completion_of_two_forms", kText,
     text(R"("guided_regex": "a", "response_format": {"type": "json_object"})"), 400,
     "response_format", "", "not together with guided output"},
    {"length_penalty", kChat, chat(R"("length_penalty": 1.5)"), 400, "length_penalty",
     "unsupported", "no such field"},
    {"beam_search", kChat, chat(R"("use_beam_search": true)"), 400, "use_beam_search",
     "unsupported", ""},
    {"modalities", kChat, chat(R"("modalities": ["text", "audio"])"), 400, "modalities",
     "unsupported", ""},
    {"echo_of_a_chat", kChat, chat(R"("echo": true)"), 400, "echo", "unsupported",
     "/v1/completions"},
    {"structural_tag", kChat, chat(R"("structured_outputs": {"structural_tag": "x"})"), 400,
     "structured_outputs.structural_tag", "unsupported", "use json, regex or choice"},
    {"schema_of_guided_json", kChat, chat(R"("guided_json": {"$ref": "#/x"})"), 400, "guided_json",
     "", "guided_json: "},
    {"schema_of_structured_outputs", kText,
     text(R"("structured_outputs": {"json": {"$ref": "#/x"}})"), 400, "structured_outputs.json", "",
     "structured_outputs.json: "},
    {"unknown_structured_output", kChat,
     chat(R"("structured_outputs": {"json_object": true, "disable_additional_properties": true})"),
     400, "structured_outputs.disable_additional_properties", "unsupported", "use json"},
    {"regex_as_a_format", kChat, chat(R"("response_format": {"type": "regex", "pattern": "a"})"),
     400, "response_format.type", "unsupported", "guided_regex"},
    {"custom_tool", kChat, chat(R"("tools": [{"type": "custom", "custom": {"name": "x"}}])"), 400,
     "tools[0].type", "unsupported", "only functions"},
    {"allowed_tools", kChat,
     with_tool(R"("tool_choice": {"type": "allowed_tools", "mode": "auto"})"), 400,
     "tool_choice.type", "unsupported", "send only the tools"},
    {"no_tokens_of_a_chat", kChat, chat(R"("max_tokens": 0)"), 400, "max_tokens", "", "from 1"},
    {"no_tokens_without_echo", kText, text(R"("max_tokens": 0)"), 400, "max_tokens", "", "from 1"},
    {"two_guided", kChat, chat(R"("guided_regex": "a", "guided_choice": ["a"])"), 400,
     "guided_choice", "", "at most"},
    {"guided_and_response_format", kChat,
     chat(R"("guided_regex": "a", "response_format": {"type": "json_object"})"), 400,
     "response_format", "", "not together with guided_regex"},
    {"guided_choice_of_none", kText, text(R"("guided_choice": [])"), 400, "guided_choice", "",
     "an array of texts"},
    {"guided_regex_with_back_reference", kText, text(R"("guided_regex": "(a)\\1")"), 400,
     "guided_regex", "", "not supported"},
    {"repetition_penalty_of_0", kText, text(R"("repetition_penalty": 0)"), 400,
     "repetition_penalty", "", "more than 0"},
    {"truncate_to_nothing", kText, text(R"("truncate_prompt_tokens": 0)"), 400,
     "truncate_prompt_tokens", "", "from 1"},
    {"reasoning_effort", kChat, chat(R"("reasoning_effort": "lots")"), 400, "reasoning_effort", "",
     "none, minimal, low"},
    {"thinking_type", kChat, chat(R"("thinking": {"type": "maybe"})"), 400, "thinking.type", "",
     "enabled or disabled"},
    {"embeddings", "/v1/embeddings", R"({"input": "a"})", 404, "", "unsupported",
     "has no embeddings"},
    {"best_of", kText, text(R"("best_of": 3)"), 400, "best_of", "unsupported", "value of n"},

    // Types and ranges.
    {"temperature_negative", kChat, chat(R"("temperature": -0.1)"), 400, "temperature", "",
     "expected a number from 0 to 2, found -0.1"},
    {"temperature_high", kChat, chat(R"("temperature": 2.01)"), 400, "temperature", "",
     "found 2.01"},
    {"temperature_string", kText, text(R"("temperature": "hot")"), 400, "temperature", "",
     "found the string \"hot\""},
    {"top_p_high", kChat, chat(R"("top_p": 1.5)"), 400, "top_p", "", "found 1.5"},
    {"top_k_negative", kChat, chat(R"("top_k": -2)"), 400, "top_k", "", "found -2"},
    {"top_k_fraction", kChat, chat(R"("top_k": 1.5)"), 400, "top_k", "", "found 1.5"},
    {"min_p_high", kText, text(R"("min_p": 2)"), 400, "min_p", "", "found 2"},
    {"n_zero", kChat, chat(R"("n": 0)"), 400, "n", "", "expected an integer from 1 to 16, found 0"},
    {"n_many", kChat, chat(R"("n": 17)"), 400, "n", "", "found 17"},
    {"n_string", kText, text(R"("n": "2")"), 400, "n", "", "found the string \"2\""},
    {"max_tokens_zero", kChat, chat(R"("max_tokens": 0)"), 400, "max_tokens", "", "found 0"},
    {"max_tokens_negative", kText, text(R"("max_tokens": -1)"), 400, "max_tokens", "", "found -1"},
    {"max_tokens_fraction", kText, text(R"("max_tokens": 1.5)"), 400, "max_tokens", "",
     "found 1.5"},
    {"max_tokens_huge", kText, text(R"("max_tokens": 1e30)"), 400, "max_tokens", "", "found 1e+30"},
    {"max_completion_tokens", kChat, chat(R"("max_completion_tokens": [])"), 400,
     "max_completion_tokens", "", "an array of 0"},
    {"min_tokens_above_max", kText, text(R"("min_tokens": 9, "max_tokens": 8)"), 400, "min_tokens",
     "", "more than max_tokens"},
    {"presence_penalty", kChat, chat(R"("presence_penalty": 3)"), 400, "presence_penalty", "",
     "from -2 to 2"},
    {"frequency_penalty", kChat, chat(R"("frequency_penalty": -3)"), 400, "frequency_penalty", "",
     "from -2 to 2"},
    {"stop_number", kChat, chat(R"("stop": 3)"), 400, "stop", "", "found 3"},
    {"stop_of_numbers", kText, text(R"("stop": ["a", 3])"), 400, "stop[1]", "", "found 3"},
    {"stop_null_inside", kText, text(R"("stop": [null])"), 400, "stop[0]", "", "found null"},
    {"stop_empty", kText, text(R"("stop": "")"), 400, "stop", "", "strings of 1 to"},
    {"stop_many", kText,
     text(
         R"("stop": ["1","2","3","4","5","6","7","8","9","10","11","12","13","14","15","16","17"])"),
     400, "stop", "", "at most 16"},
    {"stop_long", kText, text("\"stop\": \"" + std::string(1025, 'x') + "\""), 400, "stop", "",
     "found one of 1025"},
    {"stop_token_ids", kText, text(R"("stop_token_ids": [9999])"), 400, "stop_token_ids[0]", "",
     "found 9999"},
    {"seed_string", kChat, chat(R"("seed": "7")"), 400, "seed", "", "64 bits"},
    {"seed_huge", kChat, chat(R"("seed": 18446744073709551615)"), 400, "seed", "", "64 bits"},
    {"logit_bias_array", kChat, chat(R"("logit_bias": [1])"), 400, "logit_bias", "",
     "an array of 1"},
    {"logit_bias_key", kChat, chat(R"("logit_bias": {"the": 1})"), 400, "logit_bias", "",
     "found \"the\""},
    {"logit_bias_key_range", kChat, chat(R"("logit_bias": {"3328": 1})"), 400, "logit_bias", "",
     "from 0 to 3327"},
    {"logit_bias_twice", kChat, chat(R"("logit_bias": {"1": 1, "01": 2})"), 400, "logit_bias", "",
     "token 1 twice"},
    {"logit_bias_value", kChat, chat(R"("logit_bias": {"5": 101})"), 400, "logit_bias.5", "",
     "from -100 to 100"},
    {"logprobs_number_in_chat", kChat, chat(R"("logprobs": 3)"), 400, "logprobs", "",
     "true or false"},
    {"logprobs_bool_in_text", kText, text(R"("logprobs": true)"), 400, "logprobs", "",
     "found true"},
    {"logprobs_many", kText, text(R"("logprobs": 21)"), 400, "logprobs", "", "from 0 to 20"},
    {"top_logprobs_alone", kChat, chat(R"("top_logprobs": 3)"), 400, "top_logprobs", "",
     "\"logprobs\": true"},
    {"top_logprobs_many", kChat, chat(R"("logprobs": true, "top_logprobs": 21)"), 400,
     "top_logprobs", "", "from 0 to 20"},
    {"stream_string", kChat, chat(R"("stream": "yes")"), 400, "stream", "", "true or false"},
    {"stream_options_alone", kChat, chat(R"("stream_options": {"include_usage": true})"), 400,
     "stream_options", "", "\"stream\": true"},
    {"stream_options_bool", kChat, chat(R"("stream": true, "stream_options": true)"), 400,
     "stream_options", "", "expected an object"},
    {"user_number", kChat, chat(R"("user": 7)"), 400, "user", "", "found 7"},
    {"ignore_eos_number", kText, text(R"("ignore_eos": 1)"), 400, "ignore_eos", "",
     "true or false"},
    {"template_kwargs", kChat, chat(R"("chat_template_kwargs": "thinking")"), 400,
     "chat_template_kwargs", "", "expected an object"},

    // Tools and structured output.
    {"tools_object", kChat, chat(R"("tools": {})"), 400, "tools", "", "expected an array"},
    {"tool_string", kChat, chat(R"("tools": ["f"])"), 400, "tools[0].type", "", "\"function\""},
    {"tool_of_other_type", kChat, chat(R"("tools": [{"type": "web_search"}])"), 400,
     "tools[0].type", "unsupported", "only functions"},
    {"tool_without_function", kChat, chat(R"("tools": [{"type": "function"}])"), 400,
     "tools[0].function", "", "found nothing"},
    {"tool_without_name", kChat, chat(R"("tools": [{"type": "function", "function": {}}])"), 400,
     "tools[0].function.name", "", "found nothing"},
    {"tool_name_blank", kChat,
     chat(R"("tools": [{"type": "function", "function": {"name": "a b"}}])"), 400,
     "tools[0].function.name", "", "\"a b\""},
    {"tool_twice", kChat,
     chat(
         R"("tools": [{"type": "function", "function": {"name": "f"}}, {"type": "function", "function": {"name": "f"}}])"),
     400, "tools[1].function.name", "", "there already"},
    {"tool_parameters", kChat,
     chat(R"("tools": [{"type": "function", "function": {"name": "f", "parameters": []}}])"), 400,
     "tools[0].function.parameters", "", "JSON Schema"},
    {"tool_choice_word", kChat, with_tool(R"("tool_choice": "maybe")"), 400, "tool_choice", "",
     "found the string \"maybe\""},
    {"tool_choice_number", kChat, with_tool(R"("tool_choice": 1)"), 400, "tool_choice", "",
     "found 1"},
    {"tool_choice_unknown", kChat,
     with_tool(R"("tool_choice": {"type": "function", "function": {"name": "g"}})"), 400,
     "tool_choice.function.name", "", "no tool is called \"g\""},
    {"tool_choice_nameless", kChat, with_tool(R"("tool_choice": {"type": "function"})"), 400,
     "tool_choice", "", "names a function"},
    {"required_without_tools", kChat, chat(R"("tool_choice": "required")"), 400, "tool_choice", "",
     "without tools"},
    {"parallel_string", kChat, with_tool(R"("parallel_tool_calls": "no")"), 400,
     "parallel_tool_calls", "", "true or false"},
    {"response_format_string", kChat, chat(R"("response_format": "json")"), 400,
     "response_format.type", "", "json_schema"},
    {"response_format_type", kChat, chat(R"("response_format": {"type": "xml"})"), 400,
     "response_format.type", "", "found the string \"xml\""},
    {"schema_missing", kChat, chat(R"("response_format": {"type": "json_schema"})"), 400,
     "response_format.json_schema.schema", "", "JSON Schema"},
    {"schema_string", kChat,
     chat(
         R"("response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": "x"}})"),
     400, "response_format.json_schema.schema", "", "JSON Schema"},
    {"schema_impossible", kChat,
     chat(
         R"("response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "nothing"}}})"),
     400, "response_format.json_schema.schema", "", ""},
    {"format_and_min_tokens", kChat,
     chat(R"("min_tokens": 4, "response_format": {"type": "json_object"})"), 400, "min_tokens", "",
     "response_format"},
    {"no_room_for_the_form", kChat,
     chat(
         R"("max_tokens": 3, "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"], "additionalProperties": false}}})"),
     400, "max_tokens", "", "shortest answer"},

    // Too long.
    {"chat_too_long", kChat,
     messages("[{\"role\": \"user\", \"content\": \"" + std::string(20'000, '!') + "\"}]"), 400,
     "messages", "context_length_exceeded", "2048"},
    {"text_too_long", kText, "{\"prompt\": \"" + std::string(20'000, '!') + "\"}", 400, "prompt",
     "context_length_exceeded", "2048"},

    // Tokens.
    {"tokenize_nothing", "/tokenize", "{}", 400, "prompt", "", "messages"},
    {"tokenize_number", "/tokenize", R"({"prompt": 3})", 400, "prompt", "", "found 3"},
    {"tokenize_unknown_model", "/tokenize", R"({"model": "x", "prompt": "a"})", 404, "model",
     "model_not_found", "`x`"},
    {"tokenize_bad_message", "/tokenize", R"({"messages": [{"role": "user"}]})", 400,
     "messages[0].content", "", "found nothing"},
    {"tokenize_not_json", "/tokenize", "hello", 400, "", "invalid_json", "not JSON"},
    {"detokenize_nothing", "/detokenize", "{}", 400, "tokens", "", "found nothing"},
    {"detokenize_text", "/detokenize", R"({"tokens": "a"})", 400, "tokens", "",
     "array of integers"},
    {"detokenize_range", "/detokenize", R"({"tokens": [5, 99999]})", 400, "tokens[1]", "",
     "found 99999"},
    {"detokenize_unknown_model", "/detokenize", R"({"model": "x", "tokens": [5]})", 404, "model",
     "model_not_found", "`x`"},
};

void PrintTo(const Refusal& refusal, std::ostream* out) { *out << refusal.name; }

class Refusals : public ::testing::TestWithParam<Refusal> {};

TEST_P(Refusals, names_field_and_reason) {
  const Refusal& refusal = GetParam();
  ApiServer server;
  const RawResponse response = server.post(refusal.path, refusal.body);
  ASSERT_EQ(response.status, refusal.status) << response.body;
  EXPECT_EQ(response.headers.at("content-type"), "application/json");
  const Json error = Json::parse(response.body).at("error");
  EXPECT_EQ(error.at("type"), "invalid_request_error");
  EXPECT_EQ(error.at("param"), *refusal.param ? Json(refusal.param) : Json());
  EXPECT_EQ(error.at("code"), *refusal.code ? Json(refusal.code) : Json());
  EXPECT_THAT(error.at("message").get<std::string>(), HasSubstr(refusal.message));
  EXPECT_THAT(server.backend().submitted(), ::testing::IsEmpty());
}

TEST(ApiLoading, is_alive_and_asks_for_patience) {
  http::HttpOptions options;
  options.admit = coordinator::Api::answer_while_loading;
  RunningServer server(options);
  server.start();
  const RawResponse health = RawClient(server.port()).ask(get("/health"));
  EXPECT_EQ(health.status, 200);
  EXPECT_EQ(Json::parse(health.body), Json({{"status", "ok"}}));
  EXPECT_EQ(server.server().stats().refused.size(), 0u);
  for (const std::string& request :
       {get("/ready"), get("/v1/models"), post(kText, text(""), "Content-Type: text/plain\r\n")}) {
    const RawResponse response = RawClient(server.port()).ask(request);
    EXPECT_EQ(response.status, 503) << request;
    EXPECT_EQ(response.headers.at("retry-after"), "5");
    EXPECT_THAT(Json::parse(response.body).at("error").at("message").get<std::string>(),
                HasSubstr("the model is being loaded"));
  }
  EXPECT_EQ(server.server().stats().refused.at(503), 3u);
}

INSTANTIATE_TEST_SUITE_P(Api, Refusals, ::testing::ValuesIn(kRefusals),
                         [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace atl::test
