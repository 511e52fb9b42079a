#include "coordinator/api/choice.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <string>
#include <vector>

#include "text/utf8.h"

namespace atl::coordinator {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

constexpr int32_t kEos = 1;

const text::Tokenizer& tokenizer() {
  static const text::Tokenizer instance =
      text::Tokenizer::load(ATOLL_SOURCE_DIR "/tests/models/tiny-bf16");
  return instance;
}

GenerationEvent token(int32_t id) {
  GenerationEvent event;
  event.token = id;
  event.logprob = -0.25f;
  return event;
}
GenerationEvent end(FinishReason reason) {
  GenerationEvent event;
  event.finish = reason;
  return event;
}

// All deltas together.
struct Told {
  std::string content, reasoning, finish_reason;
  std::vector<std::string> calls;  // name(arguments)
  std::vector<int32_t> tokens;
  friend bool operator==(const Told&, const Told&) = default;
};
void PrintTo(const Told& told, std::ostream* out) {
  *out << "content " << told.content << ", reasoning " << told.reasoning << ", "
       << told.finish_reason << ", calls " << told.calls.size();
}

void add(const ChoiceDelta& delta, Told& told) {
  told.content += delta.reply.content;
  told.reasoning += delta.reply.reasoning;
  for (const auto& call : delta.reply.tool_calls) {
    if (!call.name.empty()) told.calls.push_back(call.name + " ");
    told.calls.at(static_cast<size_t>(call.index)) += call.arguments;
  }
  for (const ChoiceToken& shown : delta.tokens) told.tokens.push_back(shown.id);
  if (!delta.finish_reason.empty()) {
    EXPECT_EQ(told.finish_reason, "");
    told.finish_reason = delta.finish_reason;
  }
}

Told told_of(const ChoiceOptions& options, const std::vector<int32_t>& ids, FinishReason reason) {
  Choice choice(tokenizer(), options);
  Told told;
  for (const int32_t id : ids) {
    const ChoiceDelta delta = choice.push(token(id));
    EXPECT_TRUE(text::is_valid_utf8(delta.reply.content));
    EXPECT_TRUE(text::is_valid_utf8(delta.reply.reasoning));
    add(delta, told);
  }
  add(choice.push(end(reason)), told);
  return told;
}

std::vector<int32_t> bytes(const std::string& text) {
  std::vector<int32_t> ids;
  for (const char byte : text) {
    for (int32_t id = 0; id < tokenizer().id_end(); ++id) {
      if (tokenizer().token_bytes(id) == std::string_view(&byte, 1)) {
        ids.push_back(id);
        break;
      }
    }
  }
  return ids;
}

TEST(Choice, ends_by_its_reason) {
  const ChoiceOptions options{.stop_ids = {kEos}};
  EXPECT_EQ(told_of(options, bytes("ab"), FinishReason::kLength).finish_reason, "length");
  EXPECT_EQ(told_of(options, bytes("ab"), FinishReason::kStop).finish_reason, "stop");
}

TEST(Choice, stop_tokens_are_counted_and_not_shown) {
  Choice choice(tokenizer(), {.stop_ids = {kEos}, .logprobs = true});
  Told told;
  add(choice.push(token(bytes("a")[0])), told);
  GenerationEvent last = token(kEos);
  last.finish = FinishReason::kStop;
  add(choice.push(last), told);
  EXPECT_EQ(told.content, "a");
  EXPECT_THAT(told.tokens, ElementsAre(bytes("a")[0]));
  EXPECT_EQ(choice.num_tokens(), 2);
}

TEST(Choice, says_nothing_after_a_stop_string) {
  Choice choice(tokenizer(), {.stop = {"b"}, .stop_ids = {}, .logprobs = true});
  Told told;
  for (const int32_t id : bytes("abc")) add(choice.push(token(id)), told);
  EXPECT_TRUE(choice.ended());
  add(choice.push(end(FinishReason::kLength)), told);
  EXPECT_EQ(told.content, "a");
  EXPECT_EQ(told.finish_reason, "stop");
  EXPECT_EQ(told.tokens, bytes("a"));
}

TEST(Choice, a_stop_string_that_the_end_completes) {
  // The unfinished character becomes U+FFFD, which is the stop string.
  const Told told =
      told_of({.stop = {"\xEF\xBF\xBD"}, .stop_ids = {}}, bytes("a\xE4"), FinishReason::kStop);
  EXPECT_EQ(told.content, "a");
  EXPECT_EQ(told.finish_reason, "stop");
}

TEST(Choice, a_character_that_is_cut_is_left_out) {
  const ChoiceOptions plain{.stop_ids = {kEos}};
  EXPECT_EQ(told_of(plain, bytes("a\xE4\xBD"), FinishReason::kLength).content, "a");
  EXPECT_EQ(told_of(plain, bytes("a\xE4\xBD"), FinishReason::kStop).content, "a\xEF\xBF\xBD");
  // With it the beginning of a mark.
  ChoiceOptions calls = plain;
  calls.reply.format = text::ReplyFormat::kDeepseekV31;
  calls.reply.tools = {"f"};
  EXPECT_EQ(told_of(calls, bytes("a<\xEF\xBD\x9Ctool\xE2\x96"), FinishReason::kLength).content,
            "a");
}

TEST(Choice, counts_tokens_of_reasoning) {
  Choice choice(tokenizer(),
                {.stop_ids = {kEos},
                 .reply = text::ReplyParserOptions{.reasoning = true, .reasoning_open = true}});
  Told told;
  const std::vector<int32_t> ids = *tokenizer().encode("hm</think>yes");
  for (const int32_t id : ids) add(choice.push(token(id)), told);
  add(choice.push(end(FinishReason::kStop)), told);
  EXPECT_EQ(told.reasoning, "hm");
  EXPECT_EQ(told.content, "yes");
  EXPECT_EQ(choice.reasoning_tokens(),
            static_cast<int64_t>(tokenizer().encode("hm</think>")->size()));
}

// One text, as tokens of the vocabulary and as single bytes, with everything that is looked for.
TEST(Choice, tells_the_same_for_any_split_into_tokens) {
  const std::string pieces[] = {
      "</think><｜tool▁calls▁begin｜><｜tool▁call▁begin｜>g<｜tool▁sep｜>{}"
      "<｜tool▁call▁end｜>",
      "<think>",
      "</think>",
      "<｜tool▁calls▁begin｜>",
      "<｜tool▁call▁begin｜>",
      "f<｜tool▁sep｜>",
      "{\"x\": 1}",
      "<｜tool▁call▁end｜>",
      "<｜tool▁calls▁end｜>",
      "STOP",
      "ST",
      " the ",
      "😀",
      "é",
      "\n"};
  std::mt19937 random(11);
  int with_calls = 0, stopped = 0;
  for (int round = 0; round < 2000; ++round) {
    std::string text;
    for (uint32_t i = random() % 14; i > 0; --i) text += pieces[random() % std::size(pieces)];
    const ChoiceOptions options{
        .stop = {"STOP", "the \n"},
        .stop_ids = {kEos},
        .special = text::SpecialTokens::kKeep,
        .reply = text::ReplyParserOptions{.format = text::ReplyFormat::kDeepseekV31,
                                          .tools = {"f", "g"},
                                          .reasoning = true,
                                          .reasoning_open = random() % 2 == 0}};
    const Told by_tokens = told_of(options, *tokenizer().encode(text), FinishReason::kStop);
    const Told by_bytes = told_of(options, bytes(text), FinishReason::kStop);
    ASSERT_EQ(by_tokens, by_bytes) << text;
    EXPECT_EQ(by_tokens.finish_reason == "tool_calls", !by_tokens.calls.empty());
    with_calls += !by_tokens.calls.empty();
    stopped += text.find("STOP") != text.npos;
  }
  EXPECT_GT(with_calls, 20);
  EXPECT_GT(stopped, 200);
}

TEST(Choice, tells_each_token_once_and_in_order_when_nothing_is_cut) {
  std::mt19937 random(13);
  for (int round = 0; round < 300; ++round) {
    std::vector<int32_t> ids;
    for (uint32_t i = random() % 20; i > 0; --i) {
      const auto id = static_cast<int32_t>(3 + random() % 3000);
      if (tokenizer().has_token(id)) ids.push_back(id);
    }
    const Told told = told_of({.stop = {"zzzz"}, .stop_ids = {kEos}, .logprobs = true}, ids,
                              FinishReason::kStop);
    EXPECT_EQ(told.tokens, ids);
    EXPECT_EQ(told.content, tokenizer().decode(ids, text::SpecialTokens::kSkip));
  }
}

}  // namespace
}  // namespace atl::coordinator
