#include "text/reply_parser.h"

#include <algorithm>
#include <array>
#include <utility>

#include <nlohmann/json.hpp>

#include "base/check.h"
#include "text/stop_strings.h"

namespace atl::text {
namespace {

constexpr std::string_view kThinkBegin = "<think>";
constexpr std::string_view kThinkEnd = "</think>";
constexpr std::string_view kFence = "```";
constexpr std::string_view kNewlines = "\r\n";
constexpr std::string_view kWhiteSpace = " \t\r\n";
// What a mark stands between where it is only spoken of.
constexpr std::string_view kQuotes[] = {"`", "\"", "'", "“", "‘", "«", "”",
                                        "’", "»",  "„", "‚", "‹", "›"};
constexpr std::string_view kOtherQuotes[] = {"'", "“", "‘", "«", "”", "’", "»", "„", "‚", "‹", "›"};
constexpr size_t kQuoteBytesMax = 3;
// A call's header (type, name and what stands around them) that is longer is none.
constexpr size_t kHeaderBytesMax = 512;
// What is passed over in a section, at most.
constexpr size_t kBrokenBytesMax = size_t{16} << 10;

// Each mark in the spellings that models write, the usual one first.
using Spellings = std::vector<std::string_view>;
struct Marks {
  Spellings section_begin, section_end, call_begin, call_end, separator;
  Spellings opening;  // what may begin a section: its own mark, or a call's
  Spellings closing;  // what ends a call: its own mark, the next call, the section's end
  Spellings section_quoted, call_quoted;  // what ends one that is only spoken of: also a line's end
};

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

const Marks& marks_of(ReplyFormat format) {
  return format == ReplyFormat::kKimiK2 ? kimi_marks() : deepseek_marks();
}

struct Found {
  size_t at = std::string_view::npos;
  size_t num_bytes = 0;
  explicit operator bool() const { return at != std::string_view::npos; }
};

// The first of the marks from `offset` on.
Found find_first(std::string_view text, const Spellings& marks, size_t offset = 0) {
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

// Arguments as JSON text within a JSON string, as some models write them: the text. Else as they
// are.
std::string unwrapped(std::string_view arguments) {
  const auto outer = nlohmann::json::parse(arguments, nullptr, false);
  if (!outer.is_string()) return std::string(arguments);
  const auto& inner = outer.get_ref<const std::string&>();
  return trimmed(inner).starts_with('{') && nlohmann::json::accept(inner) ? inner
                                                                          : std::string(arguments);
}

bool is_name(std::string_view name) {
  return !name.empty() && std::none_of(name.begin(), name.end(), [](char c) {
    return static_cast<unsigned char>(c) <= ' ' || c == '<' || c == '`' || c == 0x7F;
  });
}

bool is_word(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' ||
         c == '-';
}

bool drop_prefix(std::string_view& text) {
  for (const std::string_view prefix :
       {"functions.", "function.", "functions:", "functions/", "tools.", "tool.", "call_"}) {
    if (text.size() <= prefix.size() || !text.starts_with(prefix)) continue;
    text.remove_prefix(prefix.size());
    return true;
  }
  return false;
}

// ":0", "_0", "[0]" and the like.
bool drop_index(std::string_view& text) {
  std::string_view rest = text;
  const bool closed = rest.ends_with(']') || rest.ends_with(')');
  if (closed) rest.remove_suffix(1);
  const std::string_view name = without_end(rest, "0123456789");
  if (name.size() == rest.size() || name.size() < 2) return false;
  if (std::string_view(closed ? "[(" : ":._#-").find(name.back()) == std::string_view::npos) {
    return false;
  }
  text = name.substr(0, name.size() - 1);
  return true;
}

// A call's header, from behind its first mark to the first byte of its arguments.
struct Header {
  enum class Kind { kMore, kMalformed, kWhole };
  Kind kind = Kind::kMore;
  std::string name, id;
  size_t num_bytes = 0;
};

const Header kMore{Header::Kind::kMore, {}, {}, 0};
const Header kMalformed{Header::Kind::kMalformed, {}, {}, 0};

class HeaderReader {
 public:
  // closed: what follows `text` is a mark that ends the call; ended: nothing follows.
  HeaderReader(const ReplyParserOptions& options, std::string_view text, bool closed, bool ended)
      : options_(options), text_(text), closed_(closed), ended_(ended) {}

  Header read() const {
    const Marks& marks = marks_of(options_.format);
    const Found separator = find_first(text_, marks.separator);
    const size_t brace = text_.substr(0, separator.at).find('{');
    if (brace != text_.npos) return direct(text_.substr(0, brace), brace);  // left out
    if (!separator && closed_) return direct(text_, text_.size());
    if (!separator) {
      const std::string_view begun =
          text_.substr(0, text_.size() - partial_mark_bytes(text_, marks.separator));
      const bool fits = trimmed(begun).empty() || is_name(trimmed(begun));
      return fits && !ended_ ? kMore : kMalformed;
    }
    const std::string_view first = text_.substr(0, separator.at);
    const size_t behind = separator.at + separator.num_bytes;
    if (options_.format == ReplyFormat::kKimiK2) return direct(first, behind);
    return behind_separator(first, behind);
  }

 private:
  Header direct(std::string_view spelled, size_t num_bytes) const {
    spelled = trimmed(spelled);
    auto name = is_name(spelled) ? resolve_tool_name(options_.tools, spelled) : std::nullopt;
    if (!name) return kMalformed;
    std::string id(options_.format == ReplyFormat::kKimiK2 ? spelled : std::string_view{});
    return {Header::Kind::kWhole, std::move(*name), std::move(id), num_bytes};
  }

  // V3.1: NAME <sep> arguments. V3: type <sep> NAME, then a fence or the arguments.
  Header behind_separator(std::string_view first, size_t behind) const {
    const std::string_view rest = text_.substr(behind);
    const size_t skipped = rest.size() - without_start(rest, kWhiteSpace).size();
    const std::string_view word = rest.substr(skipped, word_bytes(rest.substr(skipped)));
    const bool may_go_on = !closed_ && skipped + word.size() == rest.size();
    if (may_go_on && !ended_) return kMore;
    if (may_go_on && !word.empty()) return kMalformed;  // cut
    if (!word.empty() && is_name(trimmed(first))) {
      Header fenced = direct(word, behind + skipped + word.size());
      if (fenced.kind == Header::Kind::kWhole) return fenced;
    }
    return direct(first, behind);
  }

  static size_t word_bytes(std::string_view text) {
    const auto ends = [](char c) {
      return static_cast<unsigned char>(c) <= ' ' || c == '`' || c == '{' || c == '<' || c == '"' ||
             c == '[';
    };
    return static_cast<size_t>(std::find_if(text.begin(), text.end(), ends) - text.begin());
  }

  const ReplyParserOptions& options_;
  const std::string_view text_;
  const bool closed_, ended_;
};

// Whether what stands behind a text is spoken of: within a code fence (```), or behind a quotation
// mark or a backtick that opens. Of " and ` every second one of a line closes; any other closes
// behind a letter, a digit or what ends a sentence.
class QuoteWatch {
 public:
  void read(std::string_view text) {
    for (const char c : text) read(c);
  }
  bool in_fence() const { return fence_open_; }
  bool behind_opening() const {
    if (num_backticks_ > 0) return num_backticks_ < kFence.size() && span_open_;
    if (tail_.ends_with('"')) return double_open_;
    for (const std::string_view quote : kOtherQuotes) {
      if (tail_.ends_with(quote)) return opens_behind(tail_.substr(0, tail_.size() - quote.size()));
    }
    return false;
  }

 private:
  void read(char c) {
    if (c == '`') {
      if (num_backticks_ == 0) span_open_ = !span_open_;
      ++num_backticks_;
      if (num_backticks_ == kFence.size()) {
        fence_open_ = !fence_open_;
        span_open_ = !span_open_;
      }
    } else {
      num_backticks_ = 0;
    }
    if (c == '"') double_open_ = !double_open_;
    if (c == '\n') span_open_ = double_open_ = false;
    tail_ += c;
    if (tail_.size() > kTailBytes) tail_.erase(0, tail_.size() - kTailBytes);
  }

  static bool opens_behind(std::string_view before) {
    constexpr std::string_view kOpeners = " \t\r\n([{=:,;-/|>*_\"`'";
    constexpr std::string_view kDashes[] = {"\u2013", "\u2014"};
    return before.empty() || kOpeners.find(before.back()) != before.npos ||
           std::any_of(std::begin(kDashes), std::end(kDashes),
                       [&](std::string_view dash) { return before.ends_with(dash); });
  }

  static constexpr size_t kTailBytes = 8;
  std::string tail_;
  size_t num_backticks_ = 0;  // at the end
  bool fence_open_ = false;
  bool span_open_ = false, double_open_ = false;  // on this line
};

// Where in the text of a call's arguments they end: at the first mark outside of JSON's strings
// that only follows arguments. A call's end mark within a string is one, too, unless the arguments
// that end behind it are whole JSON: then the string speaks of marks.
class ArgumentsEnd {
 public:
  explicit ArgumentsEnd(const Marks& marks) : marks_(marks) {}

  struct Search {
    Found end;
    size_t sure = 0;  // bytes before this are arguments, whatever follows
  };
  // text: all that isn't read yet; ended: nothing follows it.
  Search find(std::string_view text, bool ended) const {
    bool in_string = in_string_, escaped = escaped_;
    Found spoken;  // the first end mark in a string
    size_t num_read = 0;
    for (size_t from = 0;;) {
      const Found mark = find_first(text, marks_.closing, from);
      if (mark && spoken && mark.at - spoken.at > kBrokenBytesMax) return {spoken, spoken.at};
      if (!mark) break;
      read(text.substr(num_read, mark.at - num_read), in_string, escaped);
      num_read = mark.at;
      const bool own = starting_mark(text.substr(mark.at), marks_.call_end) > 0;
      const Found end{mark.at, own ? mark.num_bytes : 0};
      if (!in_string && !spoken) return {end, mark.at};
      if (!in_string) {
        const Found chosen = is_json(text.substr(0, mark.at)) ? end : spoken;
        return {chosen, chosen.at};
      }
      if (own && !spoken) spoken = end;
      from = mark.at + mark.num_bytes;
    }
    if (spoken && (ended || text.size() - spoken.at > kBrokenBytesMax)) return {spoken, spoken.at};
    const size_t undecided =
        spoken ? text.size() - spoken.at : partial_mark_bytes(text, marks_.closing);
    return {{}, text.size() - undecided};
  }
  void read(std::string_view text) {
    read(text, in_string_, escaped_);
    so_far_ += text;
  }
  // Whether what comes behind `text` would be in a string.
  bool in_string_behind(std::string_view text) const {
    bool in_string = in_string_, escaped = escaped_;
    read(text, in_string, escaped);
    return in_string;
  }

 private:
  static void read(std::string_view text, bool& in_string, bool& escaped) {
    for (const char c : text) {
      if (escaped) {
        escaped = false;
      } else if (in_string && c == '\\') {
        escaped = true;
      } else if (c == '"') {
        in_string = !in_string;
      }
    }
  }

  bool is_json(std::string_view rest) const {
    std::string all = so_far_;
    all += without_closing_fence(rest);
    return nlohmann::json::accept(all);
  }

  const Marks& marks_;
  std::string so_far_;
  bool in_string_ = false, escaped_ = false;
};

}  // namespace

ReplyFormat recognise_reply_format(std::string_view chat_template) {
  const auto has = [&](std::string_view text) { return chat_template.find(text) != text.npos; };
  if (has("<|tool_calls_section_begin|>") || has("<|im_middle|>")) return ReplyFormat::kKimiK2;
  if (!has("<｜tool▁call▁begin｜>") || !has("<｜tool▁sep｜>")) return ReplyFormat::kPlain;
  return has("```json") ? ReplyFormat::kDeepseekV3 : ReplyFormat::kDeepseekV31;
}

std::optional<std::string> resolve_tool_name(const std::vector<std::string>& tools,
                                             std::string_view spelled) {
  const auto offered = [&](std::string_view name) {
    return std::find(tools.begin(), tools.end(), name) != tools.end();
  };
  // Longest first: a tool may be called "functions.f" or "f_0".
  std::string_view prefixed = spelled;
  do {
    std::string_view indexed = prefixed;
    do {
      if (offered(indexed)) return std::string(indexed);
    } while (drop_index(indexed));
  } while (drop_prefix(prefixed));
  // The longest one that stands there as a word of its own, behind any other prefix.
  std::optional<std::string> best;
  for (const std::string& name : tools) {
    for (size_t at = spelled.find(name); at != spelled.npos; at = spelled.find(name, at + 1)) {
      const size_t end = at + name.size();
      const bool alone = (at == 0 || !is_word(spelled[at - 1])) &&
                         (end == spelled.size() || !is_word(spelled[end]));
      if (alone && (!best || name.size() > best->size())) best = name;
    }
  }
  return best;
}

struct ReplyParser::State {
  enum class Part {
    kStart,  // before it is clear whether there is reasoning
    kReasoning,
    kContent,
    kSection,  // behind a section's mark or a call
    kHeader,   // behind a call's mark
    kArguments,
    kStopped,  // by a stop string: what follows is dropped
  };

  explicit State(ReplyParserOptions o)
      : options(std::move(o)),
        marks(marks_of(options.format)),
        looks_for_calls(!options.tools.empty() && options.format != ReplyFormat::kPlain),
        stop(options.stop) {
    if (!options.reasoning && !options.reasoning_open) part = Part::kContent;
  }

  // One part's worth of text; false: wait for more.
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
      case Part::kStopped:
        text.clear();
        return false;
    }
    return false;
  }

  void drop(size_t num_bytes) {
    text.erase(0, num_bytes);
    consumed += num_bytes;
    decided = consumed - stop.num_held();
  }

  // --- reasoning and content ---

  bool start() {
    const std::string_view rest = without_start(text, kWhiteSpace);
    if (!ended && is_proper_prefix(rest, kThinkBegin)) return false;
    const bool marked = rest.starts_with(kThinkBegin);
    const bool is_cut_mark = cut && rest.size() > 1 && is_proper_prefix(rest, kThinkBegin);
    if (is_cut_mark) drop(text.size());
    if (marked) drop(text.size() - rest.size() + kThinkBegin.size());
    begin(marked || options.reasoning_open ? Part::kReasoning : Part::kContent);
    return true;
  }

  void begin(Part next) {
    part = next;
    spoke = false;
    quotes = {};
    quoted_up_to = nullptr;
  }

  bool reasoning(ReplyDelta& out) {
    if (!spoke) drop(text.size() - without_start(text, kNewlines).size());
    const size_t end = text.find(kThinkEnd);
    const Scan scan = scan_marks(std::min(end, text.size()));
    const Found opening = scan.opening;
    const size_t limit = std::min(end, opening.at);
    size_t kept = limit;
    if (limit == text.npos) {
      kept = ended ? text.size() - num_cut_bytes()
                   : std::min(scan.decided, text.size() - partial_mark_bytes(text, kThinkEnd));
    }
    kept = without_end(std::string_view(text).substr(0, kept), kNewlines).size();
    say_reasoning(out, kept);
    if (limit == text.npos) {
      if (ended) drop(text.size());
      return false;
    }
    if (opening.at < end) {
      begin_section(limit - kept, opening.num_bytes);
      return true;
    }
    drop(limit - kept + kThinkEnd.size());
    begin(Part::kContent);
    return true;
  }

  void say_reasoning(ReplyDelta& out, size_t num_bytes) {
    if (num_bytes == 0) return;
    out.reasoning.append(text, 0, num_bytes);
    note(num_bytes);
    drop(num_bytes);
  }

  bool content(ReplyDelta& out) {
    const Scan scan = scan_marks(text.size());
    const Found opening = scan.opening;
    size_t kept = opening.at;
    if (!opening) kept = ended ? text.size() - num_cut_bytes() : scan.decided;
    // White space alone may turn out to stand before calls.
    size_t space = 0;
    if (looks_for_calls && !spoke && trimmed(std::string_view(text).substr(0, kept)).empty()) {
      if (!opening && !ended) return false;
      if (opening) space = std::exchange(kept, 0);
      if (num_calls > 0) drop(std::exchange(kept, 0));
    }
    say_content(out, kept);
    if (part == Part::kStopped) return true;
    if (!opening) {
      if (ended) drop(text.size());
      return false;
    }
    begin_section(space, opening.num_bytes);
    return true;
  }

  void say_content(ReplyDelta& out, size_t num_bytes) {
    if (num_bytes == 0) return;
    note(num_bytes);
    const size_t begin = consumed - stop.num_held();
    const std::string released = stop.push(std::string_view(text).substr(0, num_bytes));
    out.content += released;
    drop(num_bytes);
    if (!stop.found()) return;
    decided = begin + released.size();
    part = Part::kStopped;
  }

  // The first bytes of `text` are said.
  void note(size_t num_bytes) {
    spoke = true;
    const std::string_view said = std::string_view(text).substr(0, num_bytes);
    scan_marks(num_bytes, &quoted_up_to);
    quotes.read(said);
  }

  struct Scan {
    Found opening;       // the first mark that isn't quoted
    size_t decided = 0;  // without one: bytes that no mark can begin in
  };
  // The first `end` bytes of `text`. A mark behind a quotation mark is spoken of; if none follows
  // it, so is all up to the mark that belongs to it.
  //   quoted_then  if not null: what quoted_up_to is behind these bytes
  Scan scan_marks(size_t end, const Spellings** quoted_then = nullptr) const {
    if (!looks_for_calls || (part == Part::kReasoning && !options.calls_in_reasoning)) {
      return {{}, end};
    }
    const std::string_view here = std::string_view(text).substr(0, end);
    const Spellings* until = quoted_up_to;
    QuoteWatch watch = quotes;
    size_t at = 0;
    size_t num_watched = 0;
    while (true) {
      const Spellings& looked_for = until != nullptr ? *until : marks.opening;
      const Found found = find_first(here, looked_for, at);
      if (!found) {
        if (quoted_then != nullptr) *quoted_then = until;
        return {{}, here.size() - partial_mark_bytes(here.substr(at), looked_for)};
      }
      const bool ends_quote = until != nullptr;
      watch.read(here.substr(num_watched, found.at - num_watched));
      num_watched = found.at;
      const bool fenced = watch.in_fence();
      if (!ends_quote && !fenced && !watch.behind_opening()) return {found, found.at};
      at = found.at + found.num_bytes;
      until = nullptr;
      if (ends_quote || fenced) continue;
      const std::string_view behind = std::string_view(text).substr(at);
      const bool closed = std::any_of(std::begin(kQuotes), std::end(kQuotes),
                                      [&](std::string_view q) { return behind.starts_with(q); });
      const bool may_close = behind.size() < kQuoteBytesMax && !ended && quoted_then == nullptr;
      if (!closed && may_close) return {{}, found.at};
      if (!closed) until = spoken_of(here.substr(found.at));
    }
  }

  // What ends the quotation of the thing that the mark at the beginning opens.
  const Spellings* spoken_of(std::string_view mark) const {
    return starting_mark(mark, marks.section_begin) > 0 ? &marks.section_quoted
                                                        : &marks.call_quoted;
  }

  // Of the reply's end: the beginning of a mark, which was cut. A "<" alone is text.
  size_t num_cut_bytes() const {
    if (!cut) return 0;
    const bool thinks = part == Part::kReasoning;
    size_t held = thinks ? partial_mark_bytes(text, kThinkEnd) : 0;
    if (looks_for_calls && (!thinks || options.calls_in_reasoning)) {
      held = std::max(held, partial_mark_bytes(text, marks.opening));
    }
    return held > 1 ? held : 0;
  }

  // --- sections ---

  // `text` starts with white space and a mark, which stay until it is clear that a call follows.
  void begin_section(size_t space_bytes, size_t mark_bytes) {
    back = part;
    bare = starting_mark(std::string_view(text).substr(space_bytes), marks.section_begin) == 0;
    good_in_section = broken_in_section = false;
    undecided = space_bytes + (bare ? 0 : mark_bytes);
    part = Part::kSection;
  }

  bool section(ReplyDelta& out) {
    const size_t at = text.find_first_not_of(kWhiteSpace, undecided);
    const std::string_view rest =
        at == text.npos ? std::string_view{} : std::string_view(text).substr(at);
    if (const size_t mark = starting_mark(rest, marks.call_begin)) {
      undecided = at + mark;
      part = Part::kHeader;
      return true;
    }
    const bool seen = good_in_section || broken_in_section;
    if (const size_t mark = starting_mark(rest, marks.section_end); mark > 0 && seen) {
      undecided = at + mark;
      leave(out);
      return true;
    }
    if (const size_t mark = starting_mark(rest, marks.section_begin); mark > 0 && !bare) {
      undecided = at + mark;  // said twice
      return true;
    }
    const bool may_be_mark = is_proper_prefix(rest, marks.call_begin) ||
                             is_proper_prefix(rest, marks.section_begin) ||
                             (seen && is_proper_prefix(rest, marks.section_end));
    if (!ended && may_be_mark) return false;
    // At the reply's end: white space behind the last call, a mark that is cut, or a section that
    // was to begin.
    if (may_be_mark && (!rest.empty() || good_in_section || cut)) return drop_rest(out);
    leave(out);
    return true;
  }

  bool drop_rest(ReplyDelta& out) {
    drop(text.size());
    undecided = 0;
    leave(out);
    return true;
  }

  // What is undecided belongs to calls if there was a good one, else it is text like what follows.
  void leave(ReplyDelta& out) {
    part = back;
    if (good_in_section) {
      drop(undecided);
      begin(back);
    } else if (back == Part::kReasoning) {
      say_reasoning(out, undecided);
    } else {
      say_content(out, undecided);
    }
    undecided = 0;
  }

  bool header(ReplyDelta& out) {
    const std::string_view all = std::string_view(text).substr(undecided);
    const Found closing = find_first(all, marks.closing);
    const std::string_view own =
        all.substr(0, closing ? closing.at
                              : all.size() - (ended ? 0 : partial_mark_bytes(all, marks.closing)));
    // The first bytes alone decide, however the text comes.
    const bool is_long = own.size() > kHeaderBytesMax;
    const Header read = HeaderReader(options, own.substr(0, kHeaderBytesMax), closing && !is_long,
                                     ended && !is_long)
                            .read();
    switch (read.kind) {
      case Header::Kind::kWhole:
        begin_call(read, out);
        return true;
      case Header::Kind::kMalformed:
        return broken_call(own, closing, out);
      case Header::Kind::kMore:
        break;
    }
    if (is_long) leave(out);
    return is_long;
  }

  // In a section it is passed over, for the sake of the good ones beside it.
  bool broken_call(std::string_view own, const Found& closing, ReplyDelta& out) {
    if (!closing && ended && (good_in_section || is_cut_header(own))) return drop_rest(out);
    if (!closing && !ended && !bare && own.size() <= kBrokenBytesMax) return false;
    if (!closing || bare || closing.at > kBrokenBytesMax) {
      leave(out);
      return true;
    }
    const bool own_end =
        starting_mark(std::string_view(text).substr(undecided + closing.at), marks.call_end) > 0;
    undecided += closing.at + (own_end ? closing.num_bytes : 0);
    broken_in_section = true;
    part = Part::kSection;
    return true;
  }

  // Nothing but the beginning of a header, by what it holds.
  bool is_cut_header(std::string_view own) const {
    const Found separator = find_first(own, marks.separator);
    std::string_view name = own.substr(0, separator.at);
    if (!separator) {
      name.remove_suffix(std::max(partial_mark_bytes(name, marks.separator),
                                  partial_mark_bytes(name, marks.closing)));
    }
    const std::string_view rest =
        separator ? own.substr(separator.at + separator.num_bytes) : std::string_view{};
    name = trimmed(name);
    if (name.empty() && rest.empty()) return !bare || cut;  // a mark alone may be what is spoken of
    if (rest.find('{') != rest.npos) return false;
    return (name.empty() || is_name(name)) && (trimmed(rest).empty() || is_name(trimmed(rest)));
  }

  // --- calls ---

  void begin_call(const Header& read, ReplyDelta& out) {
    out.content += stop.flush();
    drop(undecided + read.num_bytes);
    good_in_section = true;
    swallowed = num_calls >= options.calls_max;
    if (!swallowed) {
      delta_of(out, num_calls) = {num_calls, read.name, {}, read.id};
      ++num_calls;
    }
    call_spoke = fence_decided = false;
    arguments_end.emplace(marks);
    undecided = 0;
    part = Part::kArguments;
  }

  bool arguments(ReplyDelta& out) {
    if (!call_spoke && !fence_decided && !drop_opening_fence()) return false;
    if (!call_spoke) drop(text.size() - without_start(text, kWhiteSpace).size());
    const auto [end, sure] = arguments_end->find(text, ended);
    std::string_view kept(text);
    if (end) {
      kept = without_closing_fence(kept.substr(0, end.at));
    } else if (ended) {
      kept = without_cut_end(kept);
    } else {
      kept = without_possible_fence(kept.substr(0, sure));
    }
    const bool wrapped = !call_spoke && kept.starts_with('"');
    if (wrapped && !end && !ended) return false;
    arguments_end->read(kept);
    const size_t num_kept = kept.size();
    say_arguments(wrapped ? unwrapped(kept) : std::string(kept), out);
    if (!end) {
      if (ended && !cut && !call_spoke) say_arguments("{}", out);
      drop(ended ? text.size() : num_kept);
      return false;
    }
    if (!call_spoke) say_arguments("{}", out);
    drop(end.at + end.num_bytes);
    part = Part::kSection;
    return true;
  }

  // Of arguments at the reply's end: without what began to close them.
  std::string_view without_cut_end(std::string_view kept) const {
    const std::string_view whole =
        kept.substr(0, kept.size() - partial_mark_bytes(kept, marks.closing));
    if (arguments_end->in_string_behind(whole)) return without_closing_fence(kept);
    return cut ? without_possible_fence(whole) : without_closing_fence(whole);
  }

  void say_arguments(std::string_view piece, ReplyDelta& out) {
    if (piece.empty()) return;
    call_spoke = true;
    if (!swallowed) delta_of(out, num_calls - 1).arguments.append(piece);
  }

  // "```json", with or without the word and a line end. False: wait for more.
  bool drop_opening_fence() {
    const std::string_view rest = without_start(text, kWhiteSpace);
    if (!ended && is_proper_prefix(rest, kFence)) return false;
    if (rest.starts_with(kFence)) {
      const std::string_view behind = rest.substr(kFence.size());
      const auto end = std::find_if_not(behind.begin(), behind.end(), is_word);
      if (!ended && end == behind.end()) return false;
      drop(text.size() - static_cast<size_t>(behind.end() - end));
    }
    fence_decided = true;
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
  const bool looks_for_calls;
  StopStrings stop;
  Part part = Part::kStart;
  std::string text;     // not given out yet
  size_t consumed = 0;  // bytes before it
  size_t decided = 0;   // decided_bytes(), with stop strings
  size_t num_pushed = 0;
  // Of the reasoning or content under way.
  bool spoke = false;                       // it has given out something
  QuoteWatch quotes;                        // has read what was given out
  const Spellings* quoted_up_to = nullptr;  // marks before one of these are spoken of
  // Of the section under way.
  Part back = Part::kContent;  // where it stands
  bool bare = false;           // it has no mark of its own
  bool good_in_section = false, broken_in_section = false;
  size_t undecided =
      0;  // bytes of `text`, in kSection and kHeader, that are calls if all goes well
  // Of the call under way.
  bool swallowed = false;  // beyond calls_max
  bool call_spoke = false, fence_decided = false;
  std::optional<ArgumentsEnd> arguments_end;

  bool ended = false, cut = false;
  int32_t num_calls = 0;
};

ReplyParser::ReplyParser(ReplyParserOptions options)
    : state_(std::make_unique<State>(std::move(options))) {}
ReplyParser::~ReplyParser() = default;
ReplyParser::ReplyParser(ReplyParser&&) noexcept = default;
ReplyParser& ReplyParser::operator=(ReplyParser&&) noexcept = default;

ReplyDelta ReplyParser::push(std::string_view text) {
  CHECK(!state_->ended);
  ReplyDelta out;
  state_->text += text;
  state_->num_pushed += text.size();
  while (state_->step(out)) {
  }
  return out;
}

ReplyDelta ReplyParser::finish(bool cut) {
  ReplyDelta out;
  state_->ended = true;
  state_->cut = cut;
  while (state_->step(out)) {
  }
  out.content += state_->stop.flush();
  if (!stopped()) state_->decided = state_->consumed;
  return out;
}

int32_t ReplyParser::num_tool_calls() const { return state_->num_calls; }

bool ReplyParser::in_reasoning() const {
  using Part = State::Part;
  const bool in_section = state_->part == Part::kSection || state_->part == Part::kHeader;
  const Part part = in_section ? state_->back : state_->part;
  return part == Part::kReasoning || (part == Part::kStart && state_->options.reasoning_open);
}

bool ReplyParser::stopped() const { return state_->stop.found(); }

const std::string& ReplyParser::stop_string() const { return state_->stop.found_string(); }

size_t ReplyParser::decided_bytes() const {
  return state_->options.stop.empty() ? state_->num_pushed : state_->decided;
}

}  // namespace atl::text
