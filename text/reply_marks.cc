#include "text/reply_marks.h"

#include <algorithm>
#include <initializer_list>

namespace atl::text {
namespace {

Spellings joined(std::initializer_list<const Spellings*> lists) {
  Spellings out;
  for (const Spellings* list : lists) out.insert(out.end(), list->begin(), list->end());
  return out;
}

Marks with_joined(Marks marks) {
  marks.opening = joined({&marks.section_begin, &marks.call_begin});
  static const Spellings kLineEnd = {"\n"};
  marks.section_quoted = joined({&marks.section_end, &kLineEnd});
  marks.call_quoted = joined({&marks.call_end, &kLineEnd});
  marks.closing = joined({&marks.call_end, &marks.call_begin, &marks.section_end});
  return marks;
}

// Models that spell the marks in letters instead of tokens write them with other joints, too.
const Marks& deepseek_marks() {
  static const Marks marks = with_joined({
      .section_begin = {"<｜tool▁calls▁begin｜>", "<｜tool_calls_begin｜>",
                        "<｜tool calls begin｜>", "<｜tool\\_calls\\_begin｜>", "<｜tool▁calls｜>"},
      .section_end = {"<｜tool▁calls▁end｜>", "<｜tool_calls_end｜>", "<｜tool calls end｜>",
                      "<｜tool\\_calls\\_end｜>", "<｜/tool▁calls｜>"},
      .call_begin = {"<｜tool▁call▁begin｜>", "<｜tool_call_begin｜>", "<｜tool call begin｜>"},
      .call_end = {"<｜tool▁call▁end｜>", "<｜tool_call_end｜>", "<｜tool call end｜>"},
      .separator = {"<｜tool▁sep｜>", "<｜tool_sep｜>", "<｜tool sep｜>"},
      .opening = {},
      .closing = {},
      .section_quoted = {},
      .call_quoted = {},
  });
  return marks;
}

const Marks& kimi_marks() {
  static const Marks marks = with_joined({
      .section_begin = {"<|tool_calls_section_begin|>", "<|tool_call_section_begin|>"},
      .section_end = {"<|tool_calls_section_end|>", "<|tool_call_section_end|>"},
      .call_begin = {"<|tool_call_begin|>"},
      .call_end = {"<|tool_call_end|>"},
      .separator = {"<|tool_call_argument_begin|>"},
      .opening = {},
      .closing = {},
      .section_quoted = {},
      .call_quoted = {},
  });
  return marks;
}

}  // namespace

ReplyFormat recognise_reply_format(std::string_view chat_template) {
  const auto has = [&](std::string_view text) { return chat_template.find(text) != text.npos; };
  if (has("<|tool_calls_section_begin|>") || has("<|im_middle|>")) return ReplyFormat::kKimiK2;
  if (!has("<｜tool▁call▁begin｜>") || !has("<｜tool▁sep｜>")) return ReplyFormat::kPlain;
  return has("```json") ? ReplyFormat::kDeepseekV3 : ReplyFormat::kDeepseekV31;
}

const Marks& marks_of(ReplyFormat format) {
  return format == ReplyFormat::kKimiK2 ? kimi_marks() : deepseek_marks();
}

// The first of the marks from `offset` on.
Found find_first(std::string_view text, const Spellings& marks, size_t offset) {
  Found first;
  for (const std::string_view mark : marks) {
    const size_t at = text.find(mark, offset);
    if (at < first.at) first = {at, mark.size()};
  }
  return first;
}

// Bytes of the mark that `text` starts with; 0: none.
size_t starting_mark(std::string_view text, const Spellings& marks) {
  for (const std::string_view mark : marks) {
    if (text.starts_with(mark)) return mark.size();
  }
  return 0;
}

// Length of the longest end of `text` that begins `mark` without being all of it.
size_t partial_mark_bytes(std::string_view text, std::string_view mark) {
  for (size_t n = std::min(text.size(), mark.size() - 1); n > 0; --n) {
    if (text.substr(text.size() - n) == mark.substr(0, n)) return n;
  }
  return 0;
}

size_t partial_mark_bytes(std::string_view text, const Spellings& marks) {
  size_t most = 0;
  for (const std::string_view mark : marks) most = std::max(most, partial_mark_bytes(text, mark));
  return most;
}

bool is_proper_prefix(std::string_view text, std::string_view of) {
  return text.size() < of.size() && of.starts_with(text);
}

bool is_proper_prefix(std::string_view text, const Spellings& marks) {
  return std::any_of(marks.begin(), marks.end(),
                     [&](std::string_view mark) { return is_proper_prefix(text, mark); });
}

std::string_view without_end(std::string_view text, std::string_view chars) {
  const size_t last = text.find_last_not_of(chars);
  return last == text.npos ? std::string_view{} : text.substr(0, last + 1);
}

std::string_view without_start(std::string_view text, std::string_view chars) {
  return text.substr(std::min(text.find_first_not_of(chars), text.size()));
}

std::string_view trimmed(std::string_view text) {
  return without_end(without_start(text, kReplySpace), kReplySpace);
}

// The fence and the white space that close a call's arguments.
std::string_view without_closing_fence(std::string_view text) {
  const std::string_view kept = without_end(text, kReplySpace);
  if (!kept.ends_with(kFence)) return kept;
  return without_end(kept.substr(0, kept.size() - kFence.size()), kReplySpace);
}

// As much of `text` as stays, whatever follows: not white space, backticks and white space.
std::string_view without_possible_fence(std::string_view text) {
  std::string_view kept = without_end(text, kReplySpace);
  for (size_t i = 0; i < kFence.size() && kept.ends_with('`'); ++i) kept.remove_suffix(1);
  return without_end(kept, kReplySpace);
}

bool is_word(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' ||
         c == '-';
}

}  // namespace atl::text
