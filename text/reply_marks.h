// The marks in replies of chat models: what each family writes around reasoning and calls of tools,
// how to find them in a text that is still coming, and what else stands around a call.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

namespace atl::text {

// How a family of models marks the parts of a reply. Source: docs/model.md and the templates.
enum class ReplyFormat : uint8_t {
  kPlain,        // no calls of tools
  kDeepseekV3,   // type, tool_sep, name, fenced JSON; also R1
  kDeepseekV31,  // name, tool_sep, JSON
  kKimiK2,       // functions.NAME:INDEX, argument_begin, JSON
};

// By what the chat template's text contains; kPlain if nothing is recognised.
ReplyFormat recognise_reply_format(std::string_view chat_template);

inline constexpr std::string_view kFence = "```";
inline constexpr std::string_view kNewlines = "\r\n";
inline constexpr std::string_view kReplySpace = " \t\r\n";

// Each mark in the spellings that models write, the usual one first.
using Spellings = std::vector<std::string_view>;
struct Marks {
  Spellings section_begin, section_end, call_begin, call_end, separator;
  Spellings opening;  // what may begin a section: its own mark, or a call's
  Spellings closing;  // what ends a call: its own mark, the next call, the section's end
  Spellings section_quoted, call_quoted;  // what ends one that is only spoken of: also a line's end
};

const Marks& marks_of(ReplyFormat format);

struct Found {
  size_t at = std::string_view::npos;
  size_t num_bytes = 0;
  explicit operator bool() const { return at != std::string_view::npos; }
};

// The first of the marks from `offset` on.
Found find_first(std::string_view text, const Spellings& marks, size_t offset = 0);

// Bytes of the mark that `text` starts with; 0: none.
size_t starting_mark(std::string_view text, const Spellings& marks);

// Length of the longest end of `text` that begins `mark` without being all of it.
size_t partial_mark_bytes(std::string_view text, std::string_view mark);
size_t partial_mark_bytes(std::string_view text, const Spellings& marks);
bool is_proper_prefix(std::string_view text, std::string_view of);
bool is_proper_prefix(std::string_view text, const Spellings& marks);
std::string_view without_end(std::string_view text, std::string_view chars);
std::string_view without_start(std::string_view text, std::string_view chars);
std::string_view trimmed(std::string_view text);

// The fence and the white space that close a call's arguments.
std::string_view without_closing_fence(std::string_view text);

// As much of `text` as stays, whatever follows: not white space, backticks and white space.
std::string_view without_possible_fence(std::string_view text);

// Of what names and words of models are written with.
bool is_word(char c);

}  // namespace atl::text
