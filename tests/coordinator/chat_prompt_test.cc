// Chats with the templates of published models.
#include "coordinator/api/chat_prompt.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <iterator>
#include <map>
#include <nlohmann/json.hpp>
#include <string>

namespace atl::coordinator {
namespace {

using ::testing::EndsWith;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StartsWith;

// With tokens: {bos,eos}_token are variables of it, as tokenizer_config.json gives them.
text::ChatTemplate published(const std::string& name, bool with_tokens = false) {
  std::ifstream in(ATOLL_SOURCE_DIR "/tests/golden/chat/" + name);
  std::string source(std::istreambuf_iterator<char>(in), {});
  if (with_tokens) {
    source.insert(0,
                  "{%- set bos_token = '<｜begin▁of▁sentence｜>' -%}"
                  "{%- set eos_token = '<｜end▁of▁sentence｜>' -%}");
  }
  return {source, name};
}

ChatInput input_of(const std::string& fields) {
  auto request = parse_chat_request("{" + fields + "}", {.vocab_limit = 100});
  EXPECT_TRUE(request) << request.error().message;
  return std::move(request->input);
}

ChatPrompt rendered(const text::ChatTemplate& chat_template, const std::string& fields) {
  auto prompt = render_chat(chat_template, chat_traits(chat_template), input_of(fields));
  EXPECT_TRUE(prompt) << prompt.error().message;
  return std::move(*prompt);
}

const std::string kHi = R"("messages": [{"role": "user", "content": "hi"}])";
const std::string kTool =
    R"("tools": [{"type": "function", "function": {"name": "get_weather", "description": "Looks out",)"
    R"("parameters": {"type": "object"}}}])";

TEST(ChatPrompt, r1_reasons_from_the_start) {
  const text::ChatTemplate r1 = published("deepseek-r1.jinja");
  const ChatTraits traits = chat_traits(r1);
  EXPECT_EQ(traits.reply_format, text::ReplyFormat::kDeepseekV3);
  EXPECT_TRUE(traits.reasoning);
  EXPECT_TRUE(traits.reads_tool_messages);
  EXPECT_FALSE(traits.reads_tools);
  const ChatPrompt prompt = rendered(r1, kHi);
  EXPECT_THAT(prompt.text, EndsWith("<｜User｜>hi<｜Assistant｜><think>\n"));
  EXPECT_TRUE(prompt.reasoning_open);
}

TEST(ChatPrompt, v31_reasons_if_so_asked) {
  const text::ChatTemplate v31 = published("deepseek-v3.1.jinja");
  EXPECT_EQ(chat_traits(v31).reply_format, text::ReplyFormat::kDeepseekV31);
  const ChatPrompt plain = rendered(v31, kHi);
  EXPECT_THAT(plain.text, EndsWith("<｜Assistant｜></think>"));
  EXPECT_FALSE(plain.reasoning_open);
  const ChatPrompt thinking =
      rendered(v31, kHi + R"(, "chat_template_kwargs": {"thinking": true})");
  EXPECT_THAT(thinking.text, EndsWith("<｜Assistant｜><think>"));
  EXPECT_TRUE(thinking.reasoning_open);
}

TEST(ChatPrompt, a_user_cannot_open_reasoning) {
  const text::ChatTemplate v31 = published("deepseek-v3.1.jinja");
  EXPECT_FALSE(
      rendered(v31, R"("messages": [{"role": "user", "content": "<think>"}])").reasoning_open);
}

TEST(ChatPrompt, describes_tools_in_the_models_own_marks) {
  const std::string system =
      R"("messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}])";
  const ChatPrompt v31 = rendered(published("deepseek-v3.1.jinja"), system + ", " + kTool);
  EXPECT_THAT(v31.text, StartsWith("Be brief.\n\n## Tools\n"));
  EXPECT_THAT(v31.text, HasSubstr("### get_weather\nDescription: Looks out\n\nParameters: "
                                  "{\"type\":\"object\"}\n"));
  EXPECT_THAT(v31.text, HasSubstr("<｜tool▁call▁begin｜>tool_call_name<｜tool▁sep｜>"
                                  "tool_call_arguments<｜tool▁call▁end｜>"));
  const ChatPrompt r1 = rendered(published("deepseek-r1.jinja"), kHi + ", " + kTool);
  EXPECT_THAT(r1.text, StartsWith("## Tools\n"));
  EXPECT_THAT(r1.text,
              HasSubstr("<｜tool▁call▁begin｜>function<｜tool▁sep｜>tool_call_name\n```json\n"
                        "tool_call_arguments\n```<｜tool▁call▁end｜>"));
}

TEST(ChatPrompt, leaves_calls_and_results_to_a_template_that_knows_them) {
  const std::string history =
      R"("messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "",)"
      R"("tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]},)"
      R"({"role": "tool", "tool_call_id": "1", "content": "42"}])";
  const ChatPrompt r1 = rendered(published("deepseek-r1.jinja"), history);
  EXPECT_THAT(r1.text, HasSubstr("<｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\n{}\n```"));
  EXPECT_THAT(r1.text, HasSubstr("<｜tool▁output▁begin｜>42<｜tool▁output▁end｜>"));
  EXPECT_THAT(r1.text, Not(HasSubstr("<｜User｜><｜tool▁output▁begin｜>")));
  const ChatPrompt v31 = rendered(published("deepseek-v3.1.jinja"), history);
  EXPECT_THAT(v31.text, HasSubstr("<｜tool▁call▁begin｜>f<｜tool▁sep｜>{}<｜tool▁call▁end｜>"));
}

// Requests of clients, and what transformers renders of them: tests/golden/chat/make_golden.py.
TEST(ChatPrompt, takes_the_form_of_calls_that_the_template_is_written_for) {
  std::map<std::string, text::ChatTemplate> templates;
  std::ifstream in(ATOLL_SOURCE_DIR "/tests/golden/chat/golden-forms.jsonl");
  size_t num_cases = 0;
  for (std::string line; std::getline(in, line); ++num_cases) {
    const auto row = nlohmann::ordered_json::parse(line);
    const std::string name = row["template"];
    if (!templates.contains(name)) templates.emplace(name, published(name, true));
    SCOPED_TRACE(name + " " + row["case"].get<std::string>());
    auto request = parse_chat_request(row["request"].dump(), {.vocab_limit = 100});
    ASSERT_TRUE(request) << request.error().message;
    const text::ChatTemplate& chat_template = templates.at(name);
    auto prompt = render_chat(chat_template, chat_traits(chat_template), request->input);
    ASSERT_TRUE(prompt) << prompt.error().message;
    EXPECT_EQ(prompt->text, row["rendered"].get<std::string>());
  }
  EXPECT_GT(num_cases, 100u);
}

TEST(ChatPrompt, text_beside_calls_is_shown_apart_where_the_template_would_lose_the_calls) {
  const ChatPrompt r1 = rendered(
      published("deepseek-r1.jinja"),
      R"("messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "I look.",)"
      R"("tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]},)"
      R"({"role": "tool", "tool_call_id": "1", "content": "42"}])");
  EXPECT_THAT(r1.text, HasSubstr("I look."));
  EXPECT_THAT(r1.text, HasSubstr("<｜tool▁sep｜>f\n```json\n{}\n```"));
}

TEST(ChatPrompt, a_form_that_fails_here_gives_way_to_another) {
  // Probed with one call it takes null; with two it doesn't.
  const text::ChatTemplate fickle(
      "{% for m in messages %}{% if m.tool_calls %}{% if m.tool_calls | length > 1 %}"
      "{{ 'said:' + m.content }}{% endif %}{% for c in m.tool_calls %}{{ c.function.name + "
      "c.function.arguments }}{% endfor %}{% endif %}{% endfor %}",
      "fickle");
  const std::string call = R"({"id": "1", "function": {"name": "f", "arguments": "{}"}})";
  const std::string turn = R"("messages": [{"role": "assistant", "content": null, "tool_calls": [)";
  EXPECT_EQ(rendered(fickle, turn + call + "]}]").text, "f{}");
  EXPECT_EQ(rendered(fickle, turn + call + "," + call + "]}]").text, "said:f{}f{}");
}

TEST(ChatPrompt, goes_on_with_the_last_message) {
  const std::string whale =
      R"("messages": [{"role": "user", "content": "Call me"}, {"role": "assistant", "content": )";
  const std::string flag = R"("continue_final_message": true, "add_generation_prompt": false, )";
  for (const char* name : {"deepseek-v3.1.jinja", "deepseek-r1.jinja", "deepseek-r1-0528.jinja",
                           "kimi-k2.jinja", "kimi-k2-thinking.jinja"}) {
    SCOPED_TRACE(name);
    const text::ChatTemplate chat_template = published(name, true);
    const ChatPrompt flagged = rendered(chat_template, flag + whale + R"("The whale is "}])");
    EXPECT_THAT(flagged.text, EndsWith("The whale is "));
    EXPECT_FALSE(flagged.reasoning_open);
    EXPECT_TRUE(flagged.reasoning_closed);
    const ChatPrompt prefixed =
        rendered(chat_template, whale + R"("The whale is", "prefix": true}])");
    EXPECT_THAT(prefixed.text, EndsWith("The whale is"));
  }
  const text::ChatTemplate trims("{{ messages[0].content | trim }}<end>", "trims");
  EXPECT_EQ(
      rendered(trims, flag + R"("messages": [{"role": "assistant", "content": "a \n"}])").text,
      "a");
  const ChatPrompt thinks =
      rendered(published("deepseek-r1.jinja"), flag + whale + R"("<think>\nLet me"}])");
  EXPECT_THAT(thinks.text, EndsWith("<think>\nLet me"));
  EXPECT_TRUE(thinks.reasoning_open);
  const ChatPrompt opened = rendered(published("deepseek-v3.1.jinja"),
                                     whale + R"("Let me", "prefix": true}], )"
                                             R"("chat_template_kwargs": {"thinking": true})");
  EXPECT_THAT(opened.text, EndsWith("<think>Let me"));
  EXPECT_TRUE(opened.reasoning_open);
}

TEST(ChatPrompt, says_when_there_is_nothing_to_go_on_with) {
  const auto refused = [](const std::string& fields) {
    const auto request = parse_chat_request("{" + fields + "}", {.vocab_limit = 100});
    return request ? "" : request.error().message;
  };
  const std::string flag = R"("continue_final_message": true, )";
  EXPECT_THAT(refused(flag + kHi), HasSubstr("the last message has to be the assistant's"));
  const std::string answered =
      R"("messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "a"}])";
  EXPECT_EQ(refused(flag + answered), "");
  EXPECT_THAT(refused(flag + R"("add_generation_prompt": true, )" + answered),
              HasSubstr("not together"));
  auto request = parse_chat_request("{" + flag + answered + "}", {.vocab_limit = 100});
  const text::ChatTemplate deaf("{% for m in messages %}{{ m.role }}{% endfor %}", "deaf");
  const auto prompt = render_chat(deaf, chat_traits(deaf), request->input);
  EXPECT_THAT(prompt.error().message, HasSubstr("doesn't show the last message"));
}

TEST(ChatPrompt, tells_whether_reasoning_may_still_come) {
  EXPECT_TRUE(rendered(published("deepseek-v3.1.jinja"), kHi).reasoning_closed);
  EXPECT_FALSE(rendered(published("kimi-k2-thinking.jinja"), kHi).reasoning_closed);
  EXPECT_FALSE(rendered(published("kimi-k2-thinking.jinja"), kHi).reasoning_open);
}

TEST(ChatPrompt, counts_calls_for_the_ids_of_new_ones) {
  EXPECT_EQ(count_tool_calls(input_of(
                R"("messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f"}},)"
                R"({"function": {"name": "g"}}]}, {"role": "user", "content": "a"}])")),
            2);
}

}  // namespace
}  // namespace atl::coordinator
