// The binary as scripts see it: outputs, exit codes, one line for every mistake.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <unistd.h>

#include <cstdio>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "tests/support/command.h"

namespace atl::cli {
namespace {

using test::CommandOptions;
using test::CommandResult;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::MatchesRegex;
using ::testing::StartsWith;

const std::string kModel = ATOLL_SOURCE_DIR "/tests/models/tiny-fp8";

CommandResult atoll(std::vector<std::string> arguments, const CommandOptions& options = {}) {
  arguments.insert(arguments.begin(), ATOLL_BINARY);
  return test::run_command(arguments, options);
}

CommandResult atoll_with_stdin(std::vector<std::string> arguments, std::string stdin_text) {
  CommandOptions options;
  options.stdin_text = std::move(stdin_text);
  return atoll(std::move(arguments), options);
}

// "atoll: error: ..." and nothing else, one line.
void expect_one_line_error(const CommandResult& result, int exit_code, const std::string& about) {
  EXPECT_EQ(result.exit_code, exit_code) << result.err;
  EXPECT_THAT(result.out, IsEmpty());
  EXPECT_THAT(result.err, AllOf(StartsWith("atoll: error: "), HasSubstr(about)));
  EXPECT_EQ(result.err.find('\n'), result.err.size() - 1) << result.err;
}

// The names below "Subcommands:" of the help, each at the start of its line after two spaces.
std::vector<std::string> subcommands() {
  const std::string help = atoll({"--help"}).out;
  std::vector<std::string> names;
  size_t at = help.find("\nSubcommands:\n");
  EXPECT_NE(at, std::string::npos) << help;
  for (at = help.find("\n  ", at); at != std::string::npos; at = help.find('\n', at + 1)) {
    if (help.compare(at, 3, "\n  ") != 0) break;
    if (help[at + 3] == ' ') continue;  // a description that goes on
    names.push_back(help.substr(at + 3, help.find(' ', at + 3) - at - 3));
  }
  return names;
}

// The text that `atoll run` writes, of few tokens.
std::string continued(std::vector<std::string> arguments, const std::string& stdin_text = "") {
  arguments.insert(arguments.begin(), {"run", kModel, "--max-tokens", "6", "--ignore-eos"});
  const CommandResult result = atoll_with_stdin(std::move(arguments), stdin_text);
  EXPECT_EQ(result.exit_code, 0) << result.err;
  return result.out;
}

TEST(CommandLine, run_continues_what_an_option_a_file_or_stdin_says) {
  const std::string expected = continued({"--prompt", "And God said,"});
  EXPECT_NE(expected, continued({"--prompt", "Call me"}));
  EXPECT_EQ(continued({}, "And God said,"), expected);
  EXPECT_EQ(continued({}, "And God said,\n"), expected) << "what echo adds";
  EXPECT_EQ(continued({"--prompt-file", "-"}, "And God said,\r\n"), expected);
  const std::string path = testing::TempDir() + "/atoll-prompt-" + std::to_string(getpid());
  std::ofstream(path) << "And God said,\n";
  EXPECT_EQ(continued({"--prompt-file", path}, "not this"), expected);
  std::remove(path.c_str());
}

TEST(CommandLine, closed_descriptors_are_nobody_elses) {
  const std::string run = std::string("exec ") + ATOLL_BINARY + " run " + kModel +
                          " --prompt x --max-tokens 2 --nodes 1 ";
  for (const char* closed : {"0<&-", "1>&-", "2>&-", "0<&- 1>&- 2>&-"}) {
    const CommandResult result = test::run_command({"/bin/sh", "-c", run + closed});
    EXPECT_EQ(result.exit_code, 0) << closed << ": " << result.err;
  }
}

TEST(CommandLine, run_takes_a_prompt_of_more_than_an_argument_holds) {
  std::string text;
  for (int i = 0; i < 40'000; ++i) text += "God ";
  const CommandResult result = atoll_with_stdin({"run", kModel, "--max-tokens", "1"}, text);
  expect_one_line_error(result, 1, "tokens, the model takes 2048");
}

TEST(CommandLine, run_puts_the_prompt_into_the_chat_template) {
  const CommandResult plain =
      atoll({"run", kModel, "--prompt", "Hi", "--max-tokens", "1", "--json"});
  const CommandResult chat =
      atoll({"run", kModel, "--prompt", "Hi", "--max-tokens", "1", "--json", "--chat"});
  ASSERT_EQ(chat.exit_code, 0) << chat.err;
  const auto prompt_tokens = [](const CommandResult& result) {
    return nlohmann::json::parse(result.out).at("prompt_tokens").get<int>();
  };
  EXPECT_GT(prompt_tokens(chat), prompt_tokens(plain) + 1) << "the template's marks";
}

TEST(CommandLine, help_says_once_what_a_value_may_be) {
  const std::string help = atoll({"run", "--help"}).out;
  EXPECT_THAT(help, HasSubstr("--evict lru|lfu "));
  EXPECT_THAT(help, HasSubstr("--nodes INT in [0 - 256]=0"));
  const std::string bench = atoll({"bench", "decode", "--help"}).out;
  EXPECT_THAT(bench, HasSubstr("--disk-rate GB/s in [0.001 - "));
}

TEST(CommandLine, long_helps_have_their_options_under_headings) {
  const std::string numbers = "Number formats:", memory = "Memory:", report = "Report:";
  const std::string nodes = "Nodes and threads:";
  const std::vector<std::pair<std::string, std::vector<std::string>>> headings = {
      {"run", {nodes, numbers, memory, "Prompt:", "Sampling:", report}},
      {"serve", {nodes, numbers, memory, "Service:", "Batching and cache:"}},
      {"eval", {nodes, numbers, memory, "Text:", report}},
      {"node", {nodes, numbers, memory}},
      {"inspect", {"Does it fit?:", numbers, report}},
  };
  for (const auto& [command, expected] : headings) {
    const std::string help = atoll({command, "--help"}).out;
    for (const std::string& heading : expected) {
      EXPECT_THAT(help, HasSubstr("\n" + heading + "\n  -")) << command;
    }
    const size_t options = help.find("\nOptions:\n");
    const std::string rest = help.substr(options, help.find("\n\n", options) - options);
    EXPECT_EQ(rest.find("\n  --"), std::string::npos) << command << " without a heading:" << rest;
  }
}

TEST(CommandLine, every_subcommand_has_help_with_an_example) {
  const std::vector<std::string> names = subcommands();
  EXPECT_THAT(names, ::testing::IsSupersetOf({"inspect", "tokenize"}));
  for (const std::string& name : names) {
    const CommandResult result = atoll({name, "--help"});
    EXPECT_EQ(result.exit_code, 0) << name;
    EXPECT_THAT(result.out, HasSubstr("Usage: atoll " + name)) << name;
    EXPECT_THAT(result.out, HasSubstr("Example")) << name;
    EXPECT_THAT(result.out, HasSubstr("\n  ")) << name;
    EXPECT_THAT(result.err, IsEmpty()) << name;
  }
}

TEST(CommandLine, version_is_name_and_number) {
  const CommandResult result = atoll({"--version"});
  EXPECT_EQ(result.exit_code, 0);
  EXPECT_THAT(result.out, MatchesRegex("atoll [0-9]+\\.[0-9]+\\.[0-9]+\n"));
}

TEST(CommandLine, wrong_command_lines_end_with_code_2_and_one_line) {
  const struct {
    std::vector<std::string> arguments;
    std::string about;
  } kCases[] = {
      {{}, "a command is required: one of"},
      {{"inspekt", kModel},
       "unknown command 'inspekt'; did you mean 'inspect'? (see 'atoll --help')"},
      {{"inspect"}, "MODEL_DIR is required (see 'atoll inspect --help')"},
      {{"inspect", kModel, "--jsn"}, "unknown option '--jsn'; did you mean '--json'?"},
      {{"inspect", kModel, "--colour=1"}, "unknown option '--colour' (see 'atoll inspect --help')"},
      {{"inspect", kModel, "twice"}, "unexpected argument 'twice'"},
      {{"tokenize", kModel, "--decode", "--add-bos"}, "--add-bos"},
      {{"tokenize", kModel, "--decode=often"}, "--decode"},
      {{"--log-level", "loud", "inspect", kModel}, "'loud' is none of trace, debug"},
      {{"inspect", kModel, "--log-level"}, "--log-level"},
      {{"--line\nbreak\x1b[2J"}, "'--line break?[2J'"},
  };
  for (const auto& one : kCases) expect_one_line_error(atoll(one.arguments), 2, one.about);
}

TEST(CommandLine, a_common_option_may_stand_behind_the_command) {
  EXPECT_EQ(atoll({"inspect", kModel, "--log-level", "off"}).exit_code, 0);
}

TEST(CommandLine, a_missing_model_directory_is_named) {
  expect_one_line_error(atoll({"inspect", "/no/such/model"}), 1, "/no/such/model");
  expect_one_line_error(atoll({"tokenize", "/no/such/model"}), 1, "/no/such/model");
  expect_one_line_error(atoll({"inspect", ATOLL_SOURCE_DIR "/README.md"}), 1, "README.md");
}

TEST(CommandLine, a_closed_stdout_ends_quietly_with_the_code_of_sigpipe) {
  CommandOptions options;
  options.close_stdout = true;
  const CommandResult result = atoll({"inspect", kModel, "--tensors"}, options);
  EXPECT_EQ(result.exit_code, 141);
  EXPECT_THAT(result.err, IsEmpty());
}

TEST(CommandLine, inspect_says_what_the_model_is) {
  const CommandResult result = atoll({"inspect", kModel});
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_THAT(result.out, HasSubstr("architecture    deepseek_v3\n"));
  EXPECT_THAT(result.out, HasSubstr("6: 1 dense, 5 with routed experts"));
  EXPECT_THAT(result.out, HasSubstr("32 routed of 64, 4 per token; 1 shared"));
  EXPECT_THAT(result.out, HasSubstr("YaRN factor 4 over 512 positions"));
  EXPECT_THAT(result.out, HasSubstr("4 per expert, width 16, format fp8"));
  EXPECT_THAT(result.out, HasSubstr("\n  verdict         fits: "));
}

// 5 layers of 32 experts with 3 x 64 x 256 weights in FP8 or int4, and their scales.
TEST(CommandLine, inspect_answers_whether_it_fits_with_these_options) {
  const auto inspect = [](std::vector<std::string> options) {
    options.insert(options.begin(), {"inspect", kModel, "--json"});
    const CommandResult result = atoll(options);
    EXPECT_EQ(result.exit_code, 0) << result.err;
    return nlohmann::json::parse(result.out);
  };
  const nlohmann::json plain = inspect({}), int4 = inspect({"--format", "int4"});
  EXPECT_EQ(plain["memory"]["nodes"].size(), 0u);
  EXPECT_EQ(plain["memory"]["context"], 2048);
  EXPECT_TRUE(plain["memory"]["fits"]);
  EXPECT_LT(int4["memory"]["total"], plain["memory"]["total"]);
  for (const nlohmann::json& json : {plain, int4}) {
    const uint64_t weights = uint64_t{5} * 32 * 3 * 64 * 256 / (json == int4 ? 2 : 1);
    EXPECT_GT(json["tiles"]["panel_bytes"], weights);
    EXPECT_LE(json["tiles"]["panel_bytes"], weights + weights / 4);
    EXPECT_LE(json["tiles"]["panel_bytes"], json["tiles"]["all_bytes"]);
    EXPECT_EQ(json["tiles"]["all_bytes"].get<uint64_t>() % 4096, 0u);
  }
  const nlohmann::json three = inspect({"--nodes", "3", "--context", "1000", "--sequences", "4"});
  EXPECT_EQ(three["memory"]["nodes"].size(), 3u);
  EXPECT_EQ(three["tiles"]["equal_nodes"][0]["nodes"], 3);
  EXPECT_EQ(three["memory"]["coordinator"]["experts"], 0);
  // 4 x 1024 positions and one spare block of 64, 960 bytes a position.
  EXPECT_EQ(three["memory"]["coordinator"]["kv_cache"], (4 * 1024 + 64) * 960);
  const nlohmann::json huge = inspect({"--context", "2048", "--sequences", "4096", "--kv", "f32"});
  EXPECT_EQ(huge["memory"]["coordinator"]["kv_cache"], (4096 * 2048 + 64) * int64_t{1920});
}

// The figures follow from the model's config.json: 5 MoE layers of 32 experts of 3 x 64 x 256 FP8
// weights; 64 + 16 cache values in each of 6 layers.
TEST(CommandLine, inspect_json_has_the_figures_of_the_config) {
  const CommandResult result = atoll({"inspect", kModel, "--json", "--tensors"});
  ASSERT_EQ(result.exit_code, 0) << result.err;
  const nlohmann::json json = nlohmann::json::parse(result.out);
  EXPECT_EQ(json["model"]["n_routed_experts"], 32);
  EXPECT_EQ(json["model"]["yarn"]["factor"], 4);
  EXPECT_EQ(json["model"]["tokenizer_tokens"], 3328);
  EXPECT_EQ(json["kv_cache_bytes_per_token"]["bf16"], (64 + 16) * 6 * 2);
  EXPECT_EQ(json["kv_cache_bytes_per_token"]["f32"], (64 + 16) * 6 * 4);
  EXPECT_EQ(json["tiles"]["per_expert"], 4);
  EXPECT_EQ(json["tensors"].size(), json["checkpoint"]["tensors"]);
  uint64_t routed_parameters = 0, tensors = 0;
  for (const auto& row : json["checkpoint"]["components"]) {
    tensors += row["tensors"].get<uint64_t>();
    if (row["component"] == "routed experts") {
      routed_parameters += row["parameters"].get<uint64_t>();
    }
  }
  EXPECT_EQ(routed_parameters, 5u * 32 * 3 * 64 * 256);
  EXPECT_EQ(tensors, json["checkpoint"]["tensors"]);
  for (const auto& need : json["tiles"]["equal_nodes"]) {
    const uint64_t share = std::max(1, 4 / need["nodes"].get<int>());
    EXPECT_EQ(need["tiles"], share);
    EXPECT_EQ(need["resident_bytes"], json["tiles"]["all_bytes"].get<uint64_t>() / 4 * share);
  }
}

TEST(CommandLine, inspect_knows_every_bundled_model) {
  for (const std::string name : {"tiny-bf16", "rand-long", "rand-ragged", "rand-v2"}) {
    const CommandResult result =
        atoll({"inspect", ATOLL_SOURCE_DIR "/tests/models/" + name, "--json"});
    ASSERT_EQ(result.exit_code, 0) << result.err;
    EXPECT_TRUE(nlohmann::json::accept(result.out)) << name;
  }
}

TEST(CommandLine, tokenize_writes_one_line_of_json) {
  const CommandResult result = atoll_with_stdin({"tokenize", kModel}, "Call me Ishmael.\nSome");
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_EQ(result.out.find('\n'), result.out.size() - 1);
  EXPECT_TRUE(nlohmann::json::parse(result.out).is_array());
}

TEST(CommandLine, tokenize_gives_the_text_back_byte_for_byte) {
  for (const std::string text : {"", "plain", "ends with a break\n", "\n\n  tabs\t\r\n",
                                 "\xe4\xbd\xa0\xe5\xa5\xbd \xf0\x9f\x90\xb3", "1234567 <think>"}) {
    const CommandResult ids = atoll_with_stdin({"tokenize", kModel}, text);
    ASSERT_EQ(ids.exit_code, 0) << ids.err;
    const CommandResult back = atoll_with_stdin({"tokenize", kModel, "--decode"}, ids.out);
    EXPECT_EQ(back.exit_code, 0) << back.err;
    EXPECT_EQ(back.out, text);
  }
}

TEST(CommandLine, tokenize_takes_lines_apart_when_asked) {
  const CommandResult ids = atoll_with_stdin({"tokenize", kModel, "--lines"}, "one\n\nthree\n");
  EXPECT_EQ(std::count(ids.out.begin(), ids.out.end(), '\n'), 3);
  EXPECT_EQ(atoll_with_stdin({"tokenize", kModel, "--decode"}, ids.out).out, "one\n\nthree");
}

TEST(CommandLine, tokenize_knows_bos_and_special_tokens) {
  const std::string plain = atoll_with_stdin({"tokenize", kModel}, "a").out;
  const std::string with_bos = atoll_with_stdin({"tokenize", kModel, "--add-bos"}, "a").out;
  EXPECT_EQ(with_bos, "[0," + plain.substr(1));
  const std::string bos = atoll_with_stdin({"tokenize", kModel, "--decode"}, "[0]").out;
  EXPECT_EQ(atoll_with_stdin({"tokenize", kModel}, bos).out, "[0]\n");
  EXPECT_NE(atoll_with_stdin({"tokenize", kModel, "--no-special"}, bos).out, "[0]\n");
  EXPECT_EQ(atoll_with_stdin({"tokenize", kModel, "--decode", "--no-special"}, "[0]").out, "");
}

TEST(CommandLine, tokenize_names_what_is_wrong_with_its_input) {
  expect_one_line_error(atoll_with_stdin({"tokenize", kModel}, "ab\xff"), 1,
                        "stdin is not UTF-8: byte 0xFF at offset 2");
  expect_one_line_error(atoll_with_stdin({"tokenize", kModel}, "ab\xe4\xbd"), 1, "offset 2");
  const struct {
    std::string ids, about;
  } kCases[] = {{"[1, 2", "stdin line 1: expected a JSON array"},
                {"{}", "stdin line 1: expected a JSON array"},
                {"7", "stdin line 1: expected a JSON array"},
                {"\n[3328]", "stdin line 2: no token has the id 3328"},
                {"[-1]", "no token has the id -1"},
                {"[99999999999999999999]", "is not a token id"},
                {"[1.5]", "1.5 is not a token id"},
                {"[\"a\"]", "\"a\" is not a token id"},
                {"[[1]]", "[1] is not a token id"}};
  for (const auto& one : kCases) {
    expect_one_line_error(atoll_with_stdin({"tokenize", kModel, "--decode"}, one.ids), 1,
                          one.about);
  }
}

TEST(CommandLine, tokenize_needs_a_tokenizer) {
  expect_one_line_error(
      atoll_with_stdin({"tokenize", ATOLL_SOURCE_DIR "/tests/models/rand-v2"}, "a"), 1,
      "tokenizer.json");
}

}  // namespace
}  // namespace atl::cli
