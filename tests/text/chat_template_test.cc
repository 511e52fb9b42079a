#include "text/chat_template.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <random>

namespace atl::text {
namespace {

using Json = nlohmann::ordered_json;
using testing::HasSubstr;

const std::filesystem::path kGolden = std::filesystem::path(ATOLL_SOURCE_DIR) / "tests/golden";
constexpr ChatTemplateLimits kSmall{
    .output_bytes_max = 1 << 16, .steps_max = 20000, .memory_bytes_max = 1 << 20};

std::string file_text(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  EXPECT_TRUE(in) << path;
  return {std::istreambuf_iterator<char>(in), {}};
}

std::vector<Json> json_lines(const std::filesystem::path& path) {
  std::ifstream in(path);
  EXPECT_TRUE(in) << path;
  std::vector<Json> out;
  for (std::string line; std::getline(in, line);) out.push_back(Json::parse(line));
  return out;
}

struct Outcome {
  std::string text;   // if there is no error
  std::string error;  // of loading or rendering
};

Outcome render(const std::string& source, const std::string& variables = "{}",
               ChatTemplateLimits limits = {}) {
  try {
    const auto text = ChatTemplate(source, "t", limits).render(variables);
    return text ? Outcome{*text, ""} : Outcome{"", text.error().message};
  } catch (const LoadError& error) {
    return {"", error.what()};
  }
}

TEST(ChatTemplate, agrees_with_jinja2) {
  const auto rows = json_lines(kGolden / "jinja/jinja.jsonl");
  const std::string variables = rows.at(0).at("variables").dump();
  ASSERT_GT(rows.size(), 600u);
  for (size_t i = 1; i < rows.size(); ++i) {
    const auto source = rows[i].at("template").get<std::string>();
    const Outcome ours = render(source, variables);
    if (rows[i].contains("rendered")) {
      EXPECT_EQ(ours.error, "") << source << "\n-> " << rows[i]["rendered"];
      EXPECT_EQ(ours.text, rows[i]["rendered"].get<std::string>()) << source;
    } else {
      EXPECT_NE(ours.error, "") << source << " gave " << ours.text << "\n" << rows[i]["error"];
    }
  }
}

std::string chat_variables(const Json& row) {
  Json variables = row.at("kwargs");
  variables["messages"] = row.at("messages");
  variables["bos_token"] = "<｜begin▁of▁sentence｜>";
  variables["eos_token"] = "<｜end▁of▁sentence｜>";
  return variables.dump();
}

size_t expect_renderings(const ChatTemplate& chat_template, const std::string& name) {
  size_t count = 0;
  for (const Json& row : json_lines(kGolden / "chat/golden-chat.jsonl")) {
    if (row.at("template") != name) continue;
    ++count;
    const auto text = chat_template.render(chat_variables(row));
    EXPECT_EQ(text ? *text : "error: " + text.error().message,
              row.at("rendered").get<std::string>())
        << row["id"] << row["case"];
  }
  return count;
}

TEST(ChatTemplate, renders_r1_chats_as_the_reference) {
  const ChatTemplate ours(file_text(kGolden / "chat/deepseek-r1.jinja"), "deepseek-r1.jinja");
  EXPECT_EQ(expect_renderings(ours, "deepseek-r1"), 41u);
}

TEST(ChatTemplate, renders_v31_chats_as_the_reference) {
  const ChatTemplate ours(file_text(kGolden / "chat/deepseek-v3.1.jinja"), "deepseek-v3.1.jinja");
  EXPECT_EQ(expect_renderings(ours, "deepseek-v3.1"), 63u);
  EXPECT_TRUE(ours.reads("thinking"));
  EXPECT_TRUE(ours.reads("add_generation_prompt"));
  EXPECT_FALSE(ours.reads("tools"));
}

class Directory {
 public:
  Directory() { std::filesystem::create_directories(path); }
  ~Directory() { std::filesystem::remove_all(path); }
  void write(const std::string& name, const std::string& text) const {
    std::ofstream(path / name, std::ios::binary) << text;
  }
  const std::filesystem::path path =
      std::filesystem::temp_directory_path() / ("atoll-chat-template-" + std::to_string(getpid()));
};

TEST(ChatTemplate, takes_the_tokens_of_the_checkpoint_as_variables) {
  const auto loaded =
      ChatTemplate::load(std::filesystem::path(ATOLL_SOURCE_DIR) / "tests/models/tiny-fp8");
  ASSERT_TRUE(loaded);
  const std::string messages =
      R"({"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"},
          {"role": "system", "content": "S"}], "add_generation_prompt": true})";
  const auto text = loaded->render(messages);
  ASSERT_TRUE(text) << text.error().message;
  EXPECT_EQ(*text,
            "<｜begin▁of▁sentence｜>S<｜User｜>Hi<｜Assistant｜>Ho<｜end▁of▁sentence｜>"
            "<｜Assistant｜>");
  EXPECT_THAT(std::string(loaded->source()), HasSubstr("namespace(system='')"));
}

TEST(ChatTemplate, is_found_where_checkpoints_put_it) {
  const Directory dir;
  EXPECT_FALSE(ChatTemplate::load(dir.path));
  dir.write("tokenizer_config.json", R"({"bos_token": "B", "eos_token": {"content": "E"}})");
  EXPECT_FALSE(ChatTemplate::load(dir.path));
  dir.write("tokenizer_config.json",
            R"({"bos_token": "B", "eos_token": {"content": "E"}, "chat_template": [
                {"name": "tool_use", "template": "T"},
                {"name": "default", "template": "{{ bos_token }}d{{ eos_token }}{{ pad_token }}"}]})");
  EXPECT_EQ(*ChatTemplate::load(dir.path)->render("{}"), "BdE");
  EXPECT_EQ(*ChatTemplate::load(dir.path)->render(R"({"bos_token": "mine"})"), "minedE");
  dir.write("chat_template.jinja", "own {{ bos_token }}\n");
  EXPECT_EQ(*ChatTemplate::load(dir.path)->render("{}"), "own B");
}

TEST(ChatTemplate, names_the_file_and_place_of_what_it_does_not_understand) {
  const Directory dir;
  dir.write("chat_template.jinja", "a\n  {% if x %}\n {{ y | nonsense }}{% endif %}");
  try {
    (void)ChatTemplate::load(dir.path);
    FAIL();
  } catch (const LoadError& error) {
    EXPECT_THAT(error.what(), HasSubstr("chat_template.jinja:3:"));
    EXPECT_THAT(error.what(), HasSubstr("no filter 'nonsense'"));
  }
  dir.write("chat_template.jinja", "ok");
  dir.write("tokenizer_config.json", "[]");
  EXPECT_THROW((void)ChatTemplate::load(dir.path), LoadError);
  std::filesystem::remove(dir.path / "chat_template.jinja");
  dir.write("tokenizer_config.json", R"({"chat_template": [{"name": "x", "template": "T"}]})");
  EXPECT_THROW((void)ChatTemplate::load(dir.path), LoadError);
}

TEST(ChatTemplate, errors_name_line_and_cause) {
  EXPECT_EQ(render("{{ 1 }}\n{{ raise_exception('Roles must alternate') }}").error,
            "chat template line 2: Roles must alternate");
  EXPECT_EQ(render("\n\n{{ messages[0].role }}").error,
            "chat template line 3: 'messages' is undefined");
  EXPECT_EQ(render("{% for x in 3 %}{% endfor %}").error,
            "chat template line 1: a value of type int can't be iterated over");
  EXPECT_EQ(render("{{ [].append(1) }}").error,
            "chat template line 1: 'append': a list can't be changed in a chat template");
  EXPECT_THAT(render("a\n{{ 'x' 1 }}").error, HasSubstr("t:2:8: chat template: expected }}"));
  EXPECT_THAT(render("{{ x }}", "[1]").error, HasSubstr("expected a JSON object"));
  EXPECT_THAT(render("{{ x }}", "{").error, HasSubstr("not JSON"));
  EXPECT_THAT(
      render("{{ x }}", R"({"x": )" + std::string(500, '[') + std::string(500, ']') + "}").error,
      HasSubstr("nested too deep"));
}

TEST(ChatTemplate, tells_the_time_of_day) {
  const Outcome year = render("{{ strftime_now('%Y') }}");
  EXPECT_EQ(year.error, "");
  EXPECT_GE(std::stoi(year.text), 2024);
}

TEST(ChatTemplate, keeps_the_order_of_keys) {
  EXPECT_EQ(render("{{ x | tojson }}", R"({"x": {"z": 1, "a": {"y": 2, "b": 3}}})").text,
            R"({"z": 1, "a": {"y": 2, "b": 3}})");
}

TEST(ChatTemplate, runs_away_from_no_limit) {
  for (const std::string source : {
           "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
           "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
           "{% macro m(n) %}{{ m(n + 1) }}{{ m(n + 1) }}{% endmacro %}{{ m(0) }}",
           "{{ 'x' * 1000000000 }}",
           "{{ [1] * 1000000000 }}",
           "{{ ('x' * 100000) | replace('x', 'y' * 100000) }}",
           "{{ ('x' * 50000) | replace('', 'y' * 50000) }}",
           "{{ (['x'] * 10000) | join('y' * 10000) }}",
           "{{ 'x' | indent(1000000000) }}{{ 'a\nb\n' * 100000 | indent(1000) }}",
           "{{ range(10 ** 18) }}",
           "{% set s = namespace(v='x') %}{% for i in range(99) %}{% set s.v = s.v + s.v %}{% "
           "endfor %}",
           "{% set s = namespace(v=[1]) %}{% for i in range(99) %}{% set s.v = [s.v, s.v] %}{% "
           "endfor %}{{ s.v }}",
           "{% set s = namespace(v=[1]) %}{% for i in range(9999) %}{% set s.v = [s.v] %}{% endfor "
           "%}",
           "{% set s = namespace(v=1) %}{% for i in range(9999) %}{% set s.v = {'a': s.v} %}{% "
           "endfor %}{{ s.v | tojson }}",
           "{% set s = namespace(v=[1]) %}{% for i in range(40) %}{% set s.v = [s.v, s.v] %}{% "
           "endfor %}{{ s.v == s.v }}",
           "{% for i in range(9999) %}{{ 'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx' }}{% endfor "
           "%}",
           "{{ 2 ** 200 }}",
           "{{ 9223372036854775807 + 1 }}",
           "{{ range(99999) | map('string') | list | sort | unique | list }}",
           "{{ '%s' | format('x' * 9999999) }}",
           "{% set s = namespace(v='') %}{% for i in range(9999) %}{% set s.v %}{{ s.v }}x{% "
           "endset %}{% endfor %}",
       }) {
    EXPECT_NE(render(source, "{}", kSmall).error, "") << source;
  }
  // What is nested deep in the text itself.
  for (const std::string& part : {std::string("("), std::string("["), std::string("not "),
                                  std::string("-"), std::string("{'a':")}) {
    std::string source = "{{ ";
    for (int i = 0; i < 100000; ++i) source += part;
    EXPECT_NE(render(source).error, "") << part;
  }
  std::string chain = "{{ x", sum = "{{ 1", blocks, filters = "{{ 1";
  for (int i = 0; i < 50000; ++i) {
    chain += ".a";
    sum += "+1";
    blocks += "{% if x %}";
    filters += "|abs";
  }
  for (const std::string& source : {chain + " }}", sum + " }}", blocks, filters + " }}"}) {
    EXPECT_THAT(render(source).error, HasSubstr("deep")) << source.substr(0, 20);
  }
  EXPECT_THAT(render(std::string(2 << 20, 'x')).error, HasSubstr("more than"));
}

// Without them, longer than a test may take.
TEST(ChatTemplate, usual_limits_end_a_runaway) {
  EXPECT_THAT(
      render("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}")
          .error,
      HasSubstr("the template "));
  EXPECT_THAT(render("{{ 'x' * 10 ** 12 }}").error, HasSubstr("the template "));
}

std::string mutated(std::string text, const std::vector<Json>& rows, std::mt19937& random) {
  static const std::vector<std::string> kPieces = {
      "{{",         "}}",          "{%",   "%}",     "{#",       "#}",        "-",      "+",
      "|",          "(",           ")",    "[",      "]",        "'",         "\"",     ".",
      ":",          ",",           " if ", " else ", "endif",    "for x in ", "endfor", "set ",
      "macro m() ", "endmacro",    "is ",  "not ",   "**",       "//",        "~",      "0",
      "-1",         "99999999999", "\\",   "\n",     "\xC3\xA9", "loop",      "m()",    "tojson"};
  const int changes = 1 + static_cast<int>(random() % 4);
  for (int i = 0; i < changes; ++i) {
    const size_t at = text.empty() ? 0 : random() % text.size();
    switch (random() % 5) {
      case 0:
        text.insert(at, kPieces[random() % kPieces.size()]);
        break;
      case 1:
        text.erase(at, 1 + random() % 8);
        break;
      case 2:
        text.insert(at, text.substr(random() % (text.size() + 1), random() % 30));
        break;
      case 3: {
        const auto other = rows[1 + random() % (rows.size() - 1)].at("template").get<std::string>();
        text.insert(at, other);
        break;
      }
      default:
        if (!text.empty()) text[at] = static_cast<char>(random() % 256);
    }
  }
  return text;
}

TEST(ChatTemplate, no_random_template_crashes_or_leaves_its_limits) {
  const auto rows = json_lines(kGolden / "jinja/jinja.jsonl");
  const std::string variables = rows.at(0).at("variables").dump();
  std::mt19937 random(5);
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(60);
  int rendered = 0, refused = 0;
  for (int i = 0; i < 20000 && std::chrono::steady_clock::now() < end; ++i) {
    const auto base = rows[1 + random() % (rows.size() - 1)].at("template").get<std::string>();
    const Outcome outcome = render(mutated(base, rows, random), variables, kSmall);
    (outcome.error.empty() ? rendered : refused)++;
    EXPECT_LE(outcome.text.size(), kSmall.output_bytes_max);
    EXPECT_LT(outcome.error.size(), 2000u);
  }
  EXPECT_GT(rendered, 2000);
  EXPECT_GT(refused, 2000);
}

}  // namespace
}  // namespace atl::text
