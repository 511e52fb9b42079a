// atoll tokenize: text to token ids and back.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <cstdint>
#include <memory>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "cli/commands.h"
#include "cli/model_text.h"
#include "cli/output.h"
#include "cli/text_input.h"
#include "storage/checkpoint/model_dir.h"
#include "storage/gguf/gguf_files.h"
#include "text/tokenizer.h"

namespace atl::cli {
namespace {

constexpr size_t kStdinBytesMax = (size_t{1} << 31) - 1;  // Tokenizer::encode takes below 2 GiB

struct TokenizeOptions {
  std::string model_dir;
  bool decode = false;
  bool lines = false;
  bool add_bos = false;
  bool no_special = false;
};

std::vector<std::string_view> split_lines(std::string_view text) {
  std::vector<std::string_view> lines;
  while (!text.empty()) {
    const size_t end = text.find('\n');
    lines.push_back(text.substr(0, end));
    text.remove_prefix(end == std::string_view::npos ? text.size() : end + 1);
  }
  return lines;
}

std::string ids_line(const text::Tokenizer& tokenizer, const TokenizeOptions& options,
                     std::string_view text) {
  const auto ids = tokenizer.encode(
      text, {.add_bos = options.add_bos, .parse_added_tokens = !options.no_special});
  if (!ids) throw LoadError(ids.error().message);
  return fmt::format("[{}]\n", fmt::join(*ids, ","));
}

void encode_stdin(const text::Tokenizer& tokenizer, const TokenizeOptions& options) {
  const std::string text = read_stdin(kStdinBytesMax);
  require_utf8(text, "stdin");
  if (!options.lines) {
    write_stdout(ids_line(tokenizer, options, text));
    return;
  }
  for (const std::string_view line : split_lines(text)) {
    write_stdout(ids_line(tokenizer, options, line));
  }
}

std::vector<int32_t> parse_ids(const text::Tokenizer& tokenizer, std::string_view line,
                               size_t line_number) {
  const auto fail = [line_number](std::string_view what) {
    throw LoadError(fmt::format("stdin line {}: {}", line_number, what));
  };
  const nlohmann::json ids = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
  if (!ids.is_array()) fail("expected a JSON array of token ids, such as [0, 17, 5]");
  std::vector<int32_t> parsed;
  for (const nlohmann::json& id : ids) {
    if (!id.is_number_integer()) fail(fmt::format("{} is not a token id", id.dump().substr(0, 40)));
    const bool in_range = id >= 0 && id < tokenizer.id_end();
    if (!in_range || !tokenizer.has_token(id.get<int32_t>())) {
      fail(fmt::format("no token has the id {} (the tokenizer's ids go from 0 to {})", id.dump(),
                       tokenizer.id_end() - 1));
    }
    parsed.push_back(id.get<int32_t>());
  }
  return parsed;
}

// One text per line of ids, exactly: a line break only between two texts.
void decode_stdin(const text::Tokenizer& tokenizer, const TokenizeOptions& options) {
  const auto special = options.no_special ? text::SpecialTokens::kSkip : text::SpecialTokens::kKeep;
  const std::string text = read_stdin(kStdinBytesMax);
  size_t line_number = 0;
  std::string_view separator;
  for (const std::string_view line : split_lines(text)) {
    ++line_number;
    if (line.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    write_stdout(separator);
    write_stdout(tokenizer.decode(parse_ids(tokenizer, line, line_number), special));
    separator = "\n";
  }
}

int tokenize(const TokenizeOptions& options) {
  if (!storage::find_gguf(options.model_dir)) storage::require_directory(options.model_dir);
  const text::Tokenizer tokenizer = load_tokenizer(options.model_dir);
  if (options.decode) {
    decode_stdin(tokenizer, options);
  } else {
    encode_stdin(tokenizer, options);
  }
  return 0;
}

}  // namespace

void add_tokenize_command(CLI::App& app, int* exit_code) {
  auto options = std::make_shared<TokenizeOptions>();
  CLI::App* command = app.add_subcommand(
      "tokenize", "Text on stdin to token ids on stdout, a line of JSON; or back with --decode");
  command->add_option("MODEL_DIR", options->model_dir, "Directory that holds tokenizer.json, or GGUF file")
      ->required()
      ->type_name("");
  CLI::Option* decode = command->add_flag(
      "--decode", options->decode,
      "Token ids on stdin, a JSON array a line, to text; a line break only between two texts");
  command
      ->add_flag(
          "--lines", options->lines,
          "Each line of stdin is a text of its own, without its line break; else all of stdin"
          " is one text")
      ->excludes(decode);
  command
      ->add_flag("--add-bos", options->add_bos,
                 "Put the begin-of-sentence id first; off unless given")
      ->excludes(decode);
  command->add_flag("--no-special", options->no_special,
                    "Read special and added tokens that stand in the text as plain text; with "
                    "--decode leave special tokens out");
  command->footer(
      "Examples:\n"
      "  printf 'Call me Ishmael.' | atoll tokenize tests/models/tiny-fp8\n"
      "  echo '[0, 17, 5]' | atoll tokenize tests/models/tiny-fp8 --decode");
  command->callback([options, exit_code] { *exit_code = tokenize(*options); });
}

}  // namespace atl::cli
