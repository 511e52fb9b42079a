// Chats with the templates of published models.
#include "coordinator/api/chat_prompt.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <iterator>
#include <string>

namespace atl::coordinator {
namespace {

using ::testing::EndsWith;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StartsWith;

text::ChatTemplate published(const std::string& name) {
  std::ifstream in(ATOLL_SOURCE_DIR "/tests/golden/chat/" + name);
  return {std::string(std::istreambuf_iterator<char>(in), {}), name};
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

TEST(ChatPrompt, counts_calls_for_the_ids_of_new_ones) {
  EXPECT_EQ(count_tool_calls(input_of(
                R"("messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f"}},)"
                R"({"function": {"name": "g"}}]}, {"role": "user", "content": "a"}])")),
            2);
}

}  // namespace
}  // namespace atl::coordinator
