#include "text/reply_parser.h"

#include <algorithm>
#include <array>
#include <utility>

#include "base/check.h"

namespace atl::text {
namespace {

constexpr std::string_view kThinkBegin = "<think>";
constexpr std::string_view kThinkEnd = "</think>";
constexpr std::string_view kFence = "```";
constexpr std::string_view kNewlines = "\r\n";
constexpr std::string_view kWhiteSpace = " \t\r\n";
// A call's header (type, name and what stands around them) that is longer is none.
constexpr size_t kHeaderBytesMax = 512;

struct Marks {
  std::string_view section_begin, section_end, call_begin, call_end, separator;
};

constexpr Marks kDeepseekMarks = {"<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>",
                                  "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>", "<｜tool▁sep｜>"};
constexpr Marks kKimiMarks = {"<|tool_calls_section_begin|>", "<|tool_calls_section_end|>",
                              "<|tool_call_begin|>", "<|tool_call_end|>",
                              "<|tool_call_argument_begin|>"};

const Marks& marks_of(ReplyFormat format) {
  return format == ReplyFormat::kKimiK2 ? kKimiMarks : kDeepseekMarks;
}

// Length of the longest end of `text` that begins `mark` without being all of it.
size_t partial_mark_bytes(std::string_view text, std::string_view mark) {
  for (size_t n = std::min(text.size(), mark.size() - 1); n > 0; --n) {
    if (text.substr(text.size() - n) == mark.substr(0, n)) return n;
  }
  return 0;
}

bool is_proper_prefix(std::string_view text, std::string_view of) {
  return text.size() < of.size() && of.starts_with(text);
}

std::string_view without_end(std::string_view text, std::string_view chars) {
  const size_t last = text.find_last_not_of(chars);
  return last == text.npos ? std::string_view{} : text.substr(0, last + 1);
}

std::string_view without_start(std::string_view text, std::string_view chars) {
  return text.substr(std::min(text.find_first_not_of(chars), text.size()));
}

std::string_view trimmed(std::string_view text) {
  return without_end(without_start(text, kWhiteSpace), kWhiteSpace);
}

// The fence and the white space that close a call's arguments.
std::string_view without_closing_fence(std::string_view text) {
  const std::string_view kept = without_end(text, kWhiteSpace);
  if (!kept.ends_with(kFence)) return kept;
  return without_end(kept.substr(0, kept.size() - kFence.size()), kWhiteSpace);
}

// As much of `text` as stays, whatever follows: not white space, backticks and white space.
std::string_view without_possible_fence(std::string_view text) {
  std::string_view kept = without_end(text, kWhiteSpace);
  for (size_t i = 0; i < kFence.size() && kept.ends_with('`'); ++i) kept.remove_suffix(1);
  return without_end(kept, kWhiteSpace);
}

bool is_name(std::string_view name) {
  return !name.empty() && std::none_of(name.begin(), name.end(), [](char c) {
    return static_cast<unsigned char>(c) <= ' ' || c == '<' || c == '`' || c == 0x7F;
  });
}

// A call's header, from behind its first mark to the first byte of its arguments.
struct Header {
  enum class Kind { kMore, kMalformed, kWhole };
  Kind kind = Kind::kMore;
  std::string name, id;
  size_t num_bytes = 0;
};

constexpr Header kMore{Header::Kind::kMore, {}, {}, 0};
constexpr Header kMalformed{Header::Kind::kMalformed, {}, {}, 0};

// "functions.NAME:INDEX"; a plain name is taken, too.
Header kimi_header(std::string_view id, size_t num_bytes) {
  std::string_view name = id;
  constexpr std::string_view kPrefix = "functions.";
  if (name.starts_with(kPrefix)) name.remove_prefix(kPrefix.size());
  const size_t colon = name.rfind(':');
  if (colon != name.npos && name.find_first_not_of("0123456789", colon + 1) == name.npos) {
    name = name.substr(0, colon);
  }
  if (!is_name(id) || !is_name(name)) return kMalformed;
  return {Header::Kind::kWhole, std::string(name), std::string(id), num_bytes};
}

// `NAME`, line end, "```json", line end; or a `{` where the fence would stand.
Header fenced_header(std::string_view text, size_t offset) {
  const size_t line_end = text.find('\n', offset);
  if (line_end == text.npos) return kMore;
  const std::string_view name = trimmed(text.substr(offset, line_end - offset));
  if (!is_name(name)) return kMalformed;
  size_t at = text.find_first_not_of(kWhiteSpace, line_end);
  if (at == text.npos) return kMore;
  const Header whole{Header::Kind::kWhole, std::string(name), {}, at};
  if (text[at] == '{') return whole;
  const std::string_view rest = text.substr(at);
  const size_t fence_end = rest.find('\n');
  if (fence_end == rest.npos) return rest.size() > kHeaderBytesMax ? kMalformed : kMore;
  const std::string_view fence = without_end(rest.substr(0, fence_end), kWhiteSpace);
  if (fence != "```json" && fence != kFence) return kMalformed;
  Header fenced = whole;
  fenced.num_bytes = at + fence_end + 1;
  return fenced;
}

Header read_header(ReplyFormat format, std::string_view text) {
  const Marks& marks = marks_of(format);
  const size_t at = text.find(marks.separator);
  if (at == text.npos) return kMore;
  const size_t behind = at + marks.separator.size();
  const std::string_view first = trimmed(text.substr(0, at));
  switch (format) {
    case ReplyFormat::kKimiK2:
      return kimi_header(first, behind);
    case ReplyFormat::kDeepseekV31:
      if (!is_name(first)) return kMalformed;
      return {Header::Kind::kWhole, std::string(first), {}, behind};
    default:
      return is_name(first) ? fenced_header(text, behind) : kMalformed;
  }
}

}  // namespace

ReplyFormat recognise_reply_format(std::string_view chat_template) {
  const auto has = [&](std::string_view text) { return chat_template.find(text) != text.npos; };
  if (has(kKimiMarks.section_begin)) return ReplyFormat::kKimiK2;
  if (!has(kDeepseekMarks.call_begin) || !has(kDeepseekMarks.separator)) return ReplyFormat::kPlain;
  return has("```json") ? ReplyFormat::kDeepseekV3 : ReplyFormat::kDeepseekV31;
}

struct ReplyParser::State {
  enum class Part {
    kStart,  // before it is clear whether there is reasoning
    kReasoning,
    kContent,
    kSection,  // behind a section's mark or a call
    kHeader,   // behind a call's mark
    kArguments,
  };

  explicit State(ReplyParserOptions o) : options(o), marks(marks_of(o.format)) {
    if (!options.reasoning && !options.reasoning_open) part = Part::kContent;
  }

  // One part's worth of text_; false: wait for more.
  bool step(ReplyDelta& out) {
    switch (part) {
      case Part::kStart:
        return start();
      case Part::kReasoning:
        return reasoning(out);
      case Part::kContent:
        return content(out);
      case Part::kSection:
        return section(out);
      case Part::kHeader:
        return header(out);
      case Part::kArguments:
        return arguments(out);
    }
    return false;
  }

  bool start() {
    const std::string_view rest = without_start(text, kWhiteSpace);
    if (!ended && is_proper_prefix(rest, kThinkBegin)) return false;
    const bool marked = rest.starts_with(kThinkBegin);
    if (marked) text.erase(0, text.size() - rest.size() + kThinkBegin.size());
    part = marked || options.reasoning_open ? Part::kReasoning : Part::kContent;
    return true;
  }

  bool reasoning(ReplyDelta& out) {
    if (!spoke) text.erase(0, text.size() - without_start(text, kNewlines).size());
    const size_t end = text.find(kThinkEnd);
    size_t kept = end;
    if (end == text.npos)
      kept = ended ? text.size() : text.size() - partial_mark_bytes(text, kThinkEnd);
    kept = without_end(std::string_view(text).substr(0, kept), kNewlines).size();
    out.reasoning.append(text, 0, kept);
    spoke = spoke || kept > 0;
    if (end == text.npos) {
      text.erase(0, ended ? text.size() : kept);
      return false;
    }
    text.erase(0, end + kThinkEnd.size());
    spoke = false;
    part = Part::kContent;
    return true;
  }

  bool content(ReplyDelta& out) {
    const bool looks_for_calls = options.tools && options.format != ReplyFormat::kPlain;
    const size_t mark = looks_for_calls ? text.find(marks.section_begin) : text.npos;
    size_t kept = mark;
    if (mark == text.npos) {
      const bool wait = looks_for_calls && !ended;
      kept = text.size() - (wait ? partial_mark_bytes(text, marks.section_begin) : 0);
    }
    // White space alone may turn out to stand before calls.
    if (looks_for_calls && !spoke && trimmed(std::string_view(text).substr(0, kept)).empty()) {
      if (mark == text.npos && !ended) return false;
      if (mark != text.npos || num_calls > 0) text.erase(0, std::exchange(kept, 0));
    }
    out.content.append(text, 0, kept);
    spoke = spoke || kept > 0;
    text.erase(0, kept);
    if (mark == text.npos) return false;
    begin_section();
    return true;
  }

  // `text` starts with the section's mark, which stays until it is clear that a call follows.
  void begin_section() {
    undecided = marks.section_begin.size();
    part = Part::kSection;
  }

  bool section(ReplyDelta& out) {
    const size_t at = text.find_first_not_of(kWhiteSpace, undecided);
    const std::string_view rest =
        at == text.npos ? std::string_view{} : std::string_view(text).substr(at);
    if (rest.starts_with(marks.call_begin)) {
      undecided = at + marks.call_begin.size();
      part = Part::kHeader;
      return true;
    }
    if (call_in_section && rest.starts_with(marks.section_end)) {
      text.erase(0, at + marks.section_end.size());
      end_section();
      return true;
    }
    const bool may_be_mark = is_proper_prefix(rest, marks.call_begin) ||
                             (call_in_section && is_proper_prefix(rest, marks.section_end));
    if (!ended && may_be_mark) return false;
    if (call_in_section && rest.empty()) {  // ended: white space behind the last call
      text.clear();
      return false;
    }
    return give_up(out);
  }

  void end_section() {
    call_in_section = false;
    spoke = false;
    part = Part::kContent;
  }

  // What is undecided is content, and so is what follows, up to the next section's mark.
  bool give_up(ReplyDelta& out) {
    out.content.append(text, 0, undecided);
    text.erase(0, undecided);
    end_section();
    spoke = true;
    return true;
  }

  bool header(ReplyDelta& out) {
    const Header read = read_header(options.format, std::string_view(text).substr(undecided));
    const bool endless =
        read.kind == Header::Kind::kMore && (ended || text.size() - undecided > kHeaderBytesMax);
    const bool too_long = read.kind == Header::Kind::kWhole && read.num_bytes > kHeaderBytesMax;
    if (read.kind == Header::Kind::kMalformed || endless || too_long) return give_up(out);
    if (read.kind == Header::Kind::kMore) return false;
    text.erase(0, undecided + read.num_bytes);
    delta_of(out, num_calls) = {num_calls, read.name, {}, read.id};
    ++num_calls;
    call_in_section = true;
    spoke = false;
    part = Part::kArguments;
    return true;
  }

  bool arguments(ReplyDelta& out) {
    if (!spoke) text.erase(0, text.size() - without_start(text, kWhiteSpace).size());
    const size_t end = text.find(marks.call_end);
    std::string_view kept(text);
    if (end != text.npos || ended) {
      kept = kept.substr(0, end);
      kept = options.format == ReplyFormat::kDeepseekV3 ? without_closing_fence(kept)
                                                        : without_end(kept, kWhiteSpace);
    } else {
      kept.remove_suffix(partial_mark_bytes(text, marks.call_end));
      kept = options.format == ReplyFormat::kDeepseekV3 ? without_possible_fence(kept)
                                                        : without_end(kept, kWhiteSpace);
    }
    if (!kept.empty()) {
      delta_of(out, num_calls - 1).arguments.append(kept);
      spoke = true;
    }
    if (end == text.npos) {
      text.erase(0, ended ? text.size() : kept.size());
      return false;
    }
    text.erase(0, end + marks.call_end.size());
    undecided = 0;
    part = Part::kSection;
    return true;
  }

  static ReplyDelta::ToolCall& delta_of(ReplyDelta& out, int32_t index) {
    if (out.tool_calls.empty() || out.tool_calls.back().index != index) {
      out.tool_calls.push_back({index, {}, {}, {}});
    }
    return out.tool_calls.back();
  }

  const ReplyParserOptions options;
  const Marks& marks;
  Part part = Part::kStart;
  std::string text;      // not given out yet
  size_t undecided = 0;  // bytes of it, in kSection and kHeader, that are marks if all goes well
  bool spoke = false;    // this reasoning, content or call has given out something
  bool call_in_section = false;
  bool ended = false;
  int32_t num_calls = 0;
};

ReplyParser::ReplyParser(ReplyParserOptions options) : state_(std::make_unique<State>(options)) {}
ReplyParser::~ReplyParser() = default;
ReplyParser::ReplyParser(ReplyParser&&) noexcept = default;
ReplyParser& ReplyParser::operator=(ReplyParser&&) noexcept = default;

ReplyDelta ReplyParser::push(std::string_view text) {
  CHECK(!state_->ended);
  ReplyDelta out;
  state_->text += text;
  while (state_->step(out)) {
  }
  return out;
}

ReplyDelta ReplyParser::finish() {
  ReplyDelta out;
  state_->ended = true;
  while (state_->step(out)) {
  }
  return out;
}

int32_t ReplyParser::num_tool_calls() const { return state_->num_calls; }

bool ReplyParser::in_reasoning() const {
  return state_->part == State::Part::kReasoning ||
         (state_->part == State::Part::kStart && state_->options.reasoning_open);
}

}  // namespace atl::text
