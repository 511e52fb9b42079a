#include "text/reply_parser.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <random>

namespace atl::text {
namespace {

using testing::HasSubstr;

// What a reply is in the end; calls as "name(arguments)" or "id=name(arguments)".
struct Whole {
  std::string reasoning, content;
  std::vector<std::string> calls;
  friend bool operator==(const Whole&, const Whole&) = default;
  friend void PrintTo(const Whole& whole, std::ostream* os) {
    *os << "reasoning \"" << whole.reasoning << "\" content \"" << whole.content << "\" calls";
    for (const auto& call : whole.calls) *os << " [" << call << "]";
  }
};

bool ignore_ids = false;

class Joiner {
 public:
  void add(const ReplyDelta& delta) {
    whole_.reasoning += delta.reasoning;
    whole_.content += delta.content;
    for (const auto& call : delta.tool_calls) {
      if (static_cast<size_t>(call.index) == names_.size()) {
        EXPECT_NE(call.name, "") << "the first delta of a call names it";
        names_.push_back(call.id.empty() || ignore_ids ? call.name : call.id + "=" + call.name);
        arguments_.emplace_back();
      } else {
        EXPECT_EQ(call.name, "");
        EXPECT_EQ(call.id, "");
      }
      if (static_cast<size_t>(call.index) + 1 != names_.size()) {
        ADD_FAILURE() << "call " << call.index << " after " << names_.size();
        return;
      }
      arguments_.back() += call.arguments;
    }
  }
  Whole whole() const {
    Whole out = whole_;
    for (size_t i = 0; i < names_.size(); ++i) {
      out.calls.push_back(names_[i] + "(" + arguments_[i] + ")");
    }
    return out;
  }

 private:
  Whole whole_;
  std::vector<std::string> names_, arguments_;
};

Whole parse(const ReplyParserOptions& options, const std::vector<std::string>& pieces,
            bool cut = false) {
  ReplyParser parser(options);
  Joiner joiner;
  for (const auto& piece : pieces) joiner.add(parser.push(piece));
  joiner.add(parser.finish(cut));
  Whole whole = joiner.whole();
  EXPECT_EQ(static_cast<size_t>(parser.num_tool_calls()), whole.calls.size());
  return whole;
}

std::vector<std::string> characters(const std::string& text) {
  std::vector<std::string> out;
  for (char c : text) {
    if ((c & 0xC0) == 0x80 && !out.empty()) {
      out.back() += c;
    } else {
      out.emplace_back(1, c);
    }
  }
  return out;
}

std::string joined(const std::vector<std::string>& parts, size_t begin, size_t end) {
  std::string out;
  for (size_t i = begin; i < end; ++i) out += parts[i];
  return out;
}

// Whole, by characters, cut in two anywhere, and cut at random: all must agree.
void expect_reply(const ReplyParserOptions& options, const std::string& text, const Whole& expected,
                  bool cut = false) {
  EXPECT_EQ(parse(options, {text}, cut), expected) << text;
  const auto chars = characters(text);
  EXPECT_EQ(parse(options, chars, cut), expected) << text << " by characters";
  for (size_t at = 0; at <= chars.size(); ++at) {
    EXPECT_EQ(parse(options, {joined(chars, 0, at), joined(chars, at, chars.size())}, cut),
              expected)
        << text << " cut at character " << at;
  }
  std::mt19937 random(7);
  for (int round = 0; round < 50; ++round) {
    std::vector<std::string> pieces;
    for (size_t at = 0; at < chars.size();) {
      const size_t end = std::min(chars.size(), at + 1 + random() % 9);
      pieces.push_back(joined(chars, at, end));
      at = end;
    }
    EXPECT_EQ(parse(options, pieces, cut), expected) << text << " round " << round;
  }
}

const ReplyParserOptions kReasoning{.reasoning = true};
const ReplyParserOptions kOpen{.reasoning = true, .reasoning_open = true};

const std::vector<std::string> kTools = {"f",   "a",     "b",       "b.c-d_e",
                                         "get", "plain", "weather", "time"};
ReplyParserOptions tools(ReplyFormat format) { return {.format = format, .tools = kTools}; }
const ReplyParserOptions kV3 = tools(ReplyFormat::kDeepseekV3);
const ReplyParserOptions kV31 = tools(ReplyFormat::kDeepseekV31);
const ReplyParserOptions kKimi = tools(ReplyFormat::kKimiK2);

TEST(ReplyParser, plain_text_is_content) {
  expect_reply({}, "Hello <think>x</think> <｜tool▁calls▁begin｜>",
               {"", "Hello <think>x</think> <｜tool▁calls▁begin｜>", {}});
  expect_reply({}, "", {});
  expect_reply({}, " \n", {"", " \n", {}});
}

TEST(ReplyParser, splits_reasoning_at_the_first_closing_mark) {
  expect_reply(kOpen, "first\nsecond\n</think>\n\nanswer</think>more",
               {"first\nsecond", "\n\nanswer</think>more", {}});
  expect_reply(kOpen, "\n\n<think>\n\nhm <think> again\n\n</think>yes",
               {"hm <think> again", "yes", {}});
  expect_reply(kOpen, "</think>yes", {"", "yes", {}});
  expect_reply(kOpen, "\n\n</think>yes", {"", "yes", {}});
  expect_reply(kOpen, " a \n b \n</think>", {" a \n b ", "", {}});
}

TEST(ReplyParser, reasoning_that_never_closes_is_all_there_is) {
  expect_reply(kOpen, "still thinking </thi", {"still thinking </thi", "", {}});
  expect_reply(kOpen, "still\n\n", {"still", "", {}});
  expect_reply(kOpen, "", {});
  expect_reply(kOpen, "<thin", {"<thin", "", {}});
  expect_reply(kReasoning, "<think>\nand", {"and", "", {}});
}

TEST(ReplyParser, reasoning_not_opened_by_the_prompt_starts_with_its_mark) {
  expect_reply(kReasoning, "<think>\nhm\n</think>\nyes", {"hm", "\nyes", {}});
  expect_reply(kReasoning, "\n <think>hm</think>yes", {"hm", "yes", {}});
  expect_reply(kReasoning, "yes <think>hm</think>", {"", "yes <think>hm</think>", {}});
  expect_reply(kReasoning, "\n\nyes</think>", {"", "\n\nyes</think>", {}});
  expect_reply(kReasoning, "<thin", {"", "<thin", {}});
}

TEST(ReplyParser, tells_whether_it_is_in_reasoning) {
  ReplyParser parser(kOpen);
  EXPECT_TRUE(parser.in_reasoning());
  (void)parser.push("hm");
  EXPECT_TRUE(parser.in_reasoning());
  (void)parser.push("</think>");
  EXPECT_FALSE(parser.in_reasoning());
  EXPECT_FALSE(ReplyParser(kReasoning).in_reasoning());
}

TEST(ReplyParser, takes_calls_of_v3_and_r1_apart) {
  const std::string one =
      "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n```json\n"
      "{\"city\": \"Köln\"}\n```<｜tool▁call▁end｜>";
  const std::string two = one +
                          "\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>time\n```json\n{}\n```"
                          "<｜tool▁call▁end｜><｜tool▁calls▁end｜>";
  expect_reply(kV3, one, {"", "", {"weather({\"city\": \"Köln\"})"}});  // as V3's template has it
  expect_reply(kV3, one + "\n", {"", "", {"weather({\"city\": \"Köln\"})"}});
  expect_reply(kV3, two, {"", "", {"weather({\"city\": \"Köln\"})", "time({})"}});
  expect_reply(kV3, "\n\nLet me look. " + two + "\n",
               {"", "\n\nLet me look. ", {"weather({\"city\": \"Köln\"})", "time({})"}});
  ReplyParserOptions r1 = kV3;
  r1.reasoning = r1.reasoning_open = true;
  expect_reply(
      r1, "which <｜tool▁calls▁begin｜>?\n</think>\n\n" + two,
      {"which <｜tool▁calls▁begin｜>?", "", {"weather({\"city\": \"Köln\"})", "time({})"}});
}

TEST(ReplyParser, takes_fences_around_v3_arguments_off_and_inside_them_leaves_them) {
  const std::string begin = "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n";
  const std::string end = "<｜tool▁call▁end｜><｜tool▁calls▁end｜>";
  expect_reply(kV3, begin + "```json\n{\"a\":\"```x `` \"}\n```" + end,
               {"", "", {"f({\"a\":\"```x `` \"})"}});
  expect_reply(kV3, begin + "```\n {}  \n ```\n" + end, {"", "", {"f({})"}});
  expect_reply(kV3, begin + "{\"a\":1}" + end, {"", "", {"f({\"a\":1})"}});
  expect_reply(kV3, begin + "```json\n```" + end, {"", "", {"f({})"}});
}

TEST(ReplyParser, takes_calls_of_v31_apart) {
  expect_reply(
      kV31,
      "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>a<｜tool▁sep｜>{\"x\": [1, 2]}"
      "<｜tool▁call▁end｜><｜tool▁call▁begin｜>b.c-d_e<｜tool▁sep｜> {} \n<｜tool▁call▁end｜>"
      "<｜tool▁calls▁end｜>",
      {"", "", {"a({\"x\": [1, 2]})", "b.c-d_e({})"}});
}

TEST(ReplyParser, takes_calls_of_kimi_apart_with_their_ids) {
  expect_reply(kKimi,
               "Sure.<|tool_calls_section_begin|><|tool_call_begin|>functions.get:0"
               "<|tool_call_argument_begin|>{\"a\": 1}<|tool_call_end|><|tool_call_begin|> plain "
               "<|tool_call_argument_begin|>{}<|tool_call_end|><|tool_calls_section_end|>",
               {"", "Sure.", {"functions.get:0=get({\"a\": 1})", "plain=plain({})"}});
}

TEST(ReplyParser, text_after_calls_is_content_and_more_calls_may_follow) {
  const std::string call =
      "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>a<｜tool▁sep｜>{}<｜tool▁call▁end｜>"
      "<｜tool▁calls▁end｜>";
  expect_reply(kV31, call + " done", {"", " done", {"a({})"}});
  expect_reply(kV31, call + "\n\n", {"", "", {"a({})"}});
  expect_reply(kV31, "one " + call + "\n" + call + " two", {"", "one  two", {"a({})", "a({})"}});
}

TEST(ReplyParser, malformed_calls_become_content) {
  for (const std::string text :
       {"<｜tool▁calls▁begin｜>", "<｜tool▁calls▁begin｜>text", "<｜tool▁calls▁begin｜> ",
        "<｜tool▁calls▁begin｜><｜tool▁calls▁end｜>",
        "<｜tool▁calls▁begin｜>\n<｜tool▁call▁begin｜>a b<｜tool▁sep｜>{}<｜tool▁call▁end｜>",
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜><｜tool▁sep｜>{}<｜tool▁call▁end｜>",
        "<｜tool▁call▁begin｜>z<｜tool▁sep｜>{}<｜tool▁call▁end｜>", "<｜tool▁calls▁beg", "<｜"}) {
    expect_reply(kV31, text, {"", text, {}});
  }
  for (const std::string text :
       {"<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>z\n```json\n{}\n```",
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>hello f\n"}) {
    expect_reply(kV3, text, {"", text, {}});
  }
  expect_reply(kV31,
               "<｜tool▁calls▁begin｜>x<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>a<｜tool▁sep｜>{}"
               "<｜tool▁call▁end｜>y",
               {"", "<｜tool▁calls▁begin｜>xy", {"a({})"}});
}

TEST(ReplyParser, a_call_behind_what_closes_a_quotation_is_a_call) {
  const std::string call =
      "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>a<｜tool▁sep｜>{}<｜tool▁call▁end｜>"
      "<｜tool▁calls▁end｜>";
  for (const std::string said :
       {"I look up \"Rome\"", "\"Rome, \"", "\"Let me look.\"", "'Rome'", "the users'", "“Rome”",
        "„Rom“", "«Rome»", "»Rom«", "`get`", "``get``", "`a` and `b`", "```\nx = 1\n```",
        "```py\nx = \"1\n```", "it is 12\"\nso \"yes\"", "(\"x\")", "\"\""}) {
    expect_reply(kV31, said + call, {"", said, {"a({})"}});
  }
  for (const std::string said :
       {"\"", "say \"", "(\"", "x=\"", "\"a\" or \"", "'", "the ('", "“", "say „", " «", "`", "``",
        "`a` or `", "```\n", "```\n\"x\"", "a `b\n`"}) {
    expect_reply(kV31, said + call, {"", said + call, {}});
  }
}

TEST(ReplyParser, marks_within_strings_of_arguments_belong_to_them) {
  const std::string begin = "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>a<｜tool▁sep｜>";
  const std::string end = "<｜tool▁call▁end｜><｜tool▁calls▁end｜>";
  const std::string more = "<｜tool▁call▁begin｜>b.c-d_e<｜tool▁sep｜>{\"y\": \"z\"}";
  const std::string spoken = "{\"x\": \"" + begin + "{}" + end + ", \\\"it\\\" says\"}";
  expect_reply(kV31, begin + spoken + end, {"", "", {"a(" + spoken + ")"}});
  expect_reply(kV31, begin + spoken + "<｜tool▁call▁end｜>" + more + end + "ok",
               {"", "ok", {"a(" + spoken + ")", "b.c-d_e({\"y\": \"z\"})"}});
  // A string that was never closed doesn't swallow what follows.
  expect_reply(kV31, begin + "{\"x\": \"y" + "<｜tool▁call▁end｜>" + more + end + "ok",
               {"", "ok", {"a({\"x\": \"y)", "b.c-d_e({\"y\": \"z\"})"}});
  expect_reply(kV31, begin + "{\"x\": \"y" + end + "ok", {"", "ok", {"a({\"x\": \"y)"}});
  // A cut may lie within the string that speaks of marks.
  expect_reply(kV31, begin + "{\"x\": \"y" + end + "z", {"", "", {"a({\"x\": \"y" + end + "z)"}},
               true);
  const std::string much(20 << 10, 'm');
  const std::string unclosed = begin + "{\"x\": \"y" + end + much;
  const Whole expected{"", much, {"a({\"x\": \"y)"}};
  EXPECT_EQ(parse(kV31, {unclosed}), expected);
  EXPECT_EQ(parse(kV31, characters(unclosed)), expected);
}

TEST(ReplyParser, takes_an_object_out_of_the_string_it_is_written_in) {
  const std::string begin = "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>a<｜tool▁sep｜>";
  const std::string end = "<｜tool▁call▁end｜><｜tool▁calls▁end｜>";
  expect_reply(kV31, begin + R"("{\"x\": \"\\\"y\\\"\"}")" + end,
               {"", "", {R"(a({"x": "\"y\""}))"}});
  expect_reply(kV31, begin + R"(" {\"x\": 1}" )" + end, {"", "", {R"(a( {"x": 1}))"}});
  expect_reply(kV31, begin + R"("{\"x\": ")" + end, {"", "", {R"(a("{\"x\": "))"}});
  expect_reply(kV31, begin + R"("x")" + end, {"", "", {R"(a("x"))"}});
  expect_reply(kV31, begin + R"("{\"x)", {"", "", {"a()"}}, true);
  const std::string large = R"("{\"x\": \")" + std::string(20 << 10, 'm') + R"(\"}")";
  const Whole as_it_is{"", "", {"a(" + large + ")"}};  // not held back so long
  EXPECT_EQ(parse(kV31, {begin + large + end}), as_it_is);
  EXPECT_EQ(parse(kV31, characters(begin + large + end)), as_it_is);
}

TEST(ReplyParser, a_header_without_end_is_given_back_before_it_grows) {
  const std::string text =
      "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>" + std::string(600, 'a') + "<｜tool▁sep｜>{}";
  expect_reply(kV31, text, {"", text, {}});
  ReplyParser parser(kV31);
  std::string content;
  for (const auto& piece : characters(text.substr(0, 590))) content += parser.push(piece).content;
  EXPECT_NE(content, "");
}

TEST(ReplyParser, a_call_that_is_cut_off_keeps_its_arguments) {
  expect_reply(kV31, "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>a<｜tool▁sep｜>{\"x\": \"<｜tool",
               {"", "", {"a({\"x\": \"<｜tool)"}});
  expect_reply(
      kV3, "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>a\n```json\n{}\n```",
      {"", "", {"a({})"}});
}

TEST(ReplyParser, gives_text_and_arguments_as_they_come) {
  ReplyParser parser(kV31);
  EXPECT_EQ(parser.push("Hello <").content, "Hello ");
  EXPECT_EQ(parser.push("b>").content, "<b>");
  EXPECT_TRUE(parser.push("<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>a").empty());
  const ReplyDelta first = parser.push("<｜tool▁sep｜>{\"x\":");
  ASSERT_EQ(first.tool_calls.size(), 1u);
  EXPECT_EQ(first.tool_calls[0].name, "a");
  EXPECT_EQ(first.tool_calls[0].arguments, "{\"x\":");
  EXPECT_EQ(parser.push(" 1}").tool_calls.at(0).arguments, " 1}");

  ReplyParser thinking(kOpen);
  EXPECT_EQ(thinking.push("a\n").reasoning, "a");
  EXPECT_EQ(thinking.push("b</th").reasoning, "\nb");
}

// Random strings of marks, parts of marks and text: the split never matters and no byte of text
// outside of marks and white space gets lost.
TEST(ReplyParser, any_split_of_any_text_gives_the_same) {
  const std::vector<std::string> words = {"<think>",
                                          "</think>",
                                          "\n",
                                          " ",
                                          "```",
                                          "```json\n",
                                          "{}",
                                          "{\"k\":\"ä\"}",
                                          "f",
                                          "function",
                                          "<｜tool▁calls▁begin｜>",
                                          "<｜tool▁calls▁end｜>",
                                          "<｜tool▁call▁begin｜>",
                                          "<｜tool▁call▁end｜>",
                                          "<｜tool▁sep｜>",
                                          "<｜tool▁",
                                          "<|tool_calls_section_begin|>",
                                          "<|tool_calls_section_end|>",
                                          "<|tool_call_begin|>",
                                          "<|tool_call_end|>",
                                          "<|tool_call_argument_begin|>",
                                          "functions.f:3",
                                          "`",
                                          "<"};
  std::mt19937 random(11);
  size_t num_with_calls = 0;
  for (int round = 0; round < 20000; ++round) {
    const ReplyFormat format = std::vector{ReplyFormat::kDeepseekV3, ReplyFormat::kDeepseekV31,
                                           ReplyFormat::kKimiK2}[random() % 3];
    const ReplyParserOptions options{
        .format = format,
        .tools = random() % 8 != 0 ? kTools : std::vector<std::string>(),
        .calls_max = random() % 8 == 0 ? 1 : 100,
        .reasoning = random() % 2 == 0,
        .reasoning_open = random() % 4 == 0,
        .stop =
            random() % 4 == 0 ? std::vector<std::string>{"f`", " f"} : std::vector<std::string>()};
    const bool cut = random() % 2 == 0;
    std::string text;
    if (random() % 2 == 0) {  // half of them begin well
      text = format == ReplyFormat::kKimiK2
                 ? words[16] + words[18] + words[21] + words[20]
                 : words[10] + words[12] +
                       (format == ReplyFormat::kDeepseekV3 ? "function<｜tool▁sep｜>f\n```json\n"
                                                           : "f<｜tool▁sep｜>");
    }
    for (size_t n = random() % 12; n > 0; --n) text += words[random() % words.size()];
    const Whole expected = parse(options, {text}, cut);
    num_with_calls += !expected.calls.empty();
    const auto chars = characters(text);
    EXPECT_EQ(parse(options, chars, cut), expected) << text;
    std::vector<std::string> pieces;
    for (size_t at = 0; at < chars.size();) {
      const size_t end = std::min(chars.size(), at + 1 + random() % 30);
      pieces.push_back(joined(chars, at, end));
      at = end;
    }
    EXPECT_EQ(parse(options, pieces, cut), expected) << text;
    if (HasFailure()) break;
  }
  EXPECT_GT(num_with_calls, 2000u);
}

// Replies of the kinds that people reported of servers, and what is right.
TEST(ReplyParser, reads_what_models_write) {
  std::ifstream in(ATOLL_SOURCE_DIR "/tests/cases/replies.jsonl");
  const std::map<std::string, ReplyFormat> formats = {{"v3", ReplyFormat::kDeepseekV3},
                                                      {"v31", ReplyFormat::kDeepseekV31},
                                                      {"kimi", ReplyFormat::kKimiK2}};
  size_t num_cases = 0;
  for (std::string line; std::getline(in, line); ++num_cases) {
    const auto json = nlohmann::json::parse(line);
    SCOPED_TRACE(json["name"].get<std::string>());
    const std::vector<std::string> offered = {"get_weather", "get_time"};
    const ReplyParserOptions options{.format = formats.at(json["format"]),
                                     .tools = json.value("tools", offered),
                                     .calls_max = json.value("calls_max", 100),
                                     .reasoning = true,
                                     .reasoning_open = json.value("reasoning_open", false),
                                     .stop = json.value("stop", std::vector<std::string>())};
    Whole expected{.reasoning = json["reasoning"], .content = json["content"], .calls = {}};
    for (const auto& call : json["calls"]) {
      expected.calls.push_back(call[0].get<std::string>() + "(" + call[1].get<std::string>() + ")");
    }
    ignore_ids = true;
    expect_reply(options, json["reply"], expected, json.value("cut", false));
    ignore_ids = false;
  }
  EXPECT_GT(num_cases, 100u);
}

TEST(ReplyFormat, is_recognised_by_the_templates_marks) {
  EXPECT_EQ(recognise_reply_format(""), ReplyFormat::kPlain);
  EXPECT_EQ(recognise_reply_format("{{ '<｜User｜>' + m.content }}"), ReplyFormat::kPlain);
  const std::string marks = "'<｜tool▁call▁begin｜>' + name + '<｜tool▁sep｜>'";
  EXPECT_EQ(recognise_reply_format(marks), ReplyFormat::kDeepseekV31);
  EXPECT_EQ(recognise_reply_format(marks + " + '\\n' + '```json'"), ReplyFormat::kDeepseekV3);
  EXPECT_EQ(recognise_reply_format("<|tool_calls_section_begin|>"), ReplyFormat::kKimiK2);
}

}  // namespace
}  // namespace atl::text
