#include "cli/text_input.h"

#include <fmt/format.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <limits>

#include "base/result.h"
#include "base/units.h"
#include "cli/output.h"
#include "text/utf8.h"

namespace atl::cli {
namespace {

// Tokenizer::encode takes below 2 GiB.
constexpr size_t kPromptBytesMax = (size_t{1} << 31) - 1;

void drop_last_line_break(std::string* text) {
  if (text->ends_with('\n')) text->pop_back();
  if (text->ends_with('\r')) text->pop_back();
}

}  // namespace

std::string read_file(const std::string& path) {
  std::ifstream in(path, std::ios::binary | std::ios::ate);
  if (!in) throw LoadError(fmt::format("{}: cannot be opened: {}", path, std::strerror(errno)));
  const std::streamoff end = in.tellg();
  // A directory opens, and tells the largest number as its length.
  if (end < 0 || end == std::numeric_limits<std::streamoff>::max()) {
    throw LoadError(fmt::format("{}: is no file that can be read as a whole", path));
  }
  const auto bytes = static_cast<uint64_t>(end);
  if (bytes > kInputBytesMax) {
    throw LoadError(fmt::format("{}: has {}, at most {} are read", path, format_bytes(bytes),
                                format_bytes(kInputBytesMax)));
  }
  std::string content(bytes, '\0');
  in.seekg(0);
  in.read(content.data(), static_cast<std::streamsize>(bytes));
  if (!in) throw LoadError(fmt::format("{}: cannot be read: {}", path, std::strerror(errno)));
  return content;
}

void require_utf8(std::string_view text, std::string_view name) {
  for (size_t at = 0; at < text.size();) {
    const text::Utf8Unit unit = text::next_utf8_unit(text.substr(at));
    if (unit.kind != text::Utf8Unit::Kind::kCharacter) {
      throw LoadError(fmt::format("{} is not UTF-8: byte 0x{:02X} at offset {}; convert it first",
                                  name, static_cast<unsigned char>(text[at]), at));
    }
    at += unit.num_bytes;
  }
}

Prompt read_prompt(const PromptSource& source) {
  Prompt prompt;
  if (source.is_given) {
    prompt = {source.text, "--prompt"};
  } else if (!source.file.empty() && source.file != "-") {
    prompt = {read_file(source.file), source.file};
    drop_last_line_break(&prompt.text);
  } else {
    prompt = {read_stdin(kPromptBytesMax), "stdin"};
    drop_last_line_break(&prompt.text);
    if (prompt.text.empty()) {
      throw LoadError(
          "stdin is empty, and neither --prompt nor --prompt-file says what to continue");
    }
  }
  require_utf8(prompt.text, prompt.name);
  return prompt;
}

}  // namespace atl::cli
