#include "text/reply_parser.h"

#include <algorithm>
#include <utility>

#include "base/check.h"
#include "text/quote_watch.h"
#include "text/reply_call.h"
#include "text/stop_strings.h"

namespace atl::text {
namespace {

constexpr std::string_view kThinkBegin = "<think>";
constexpr std::string_view kThinkEnd = "</think>";
// A call's header (type, name and what stands around them) that is longer is none.
constexpr size_t kHeaderBytesMax = 512;

}  // namespace

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
    const std::string_view rest = without_start(text, kReplySpace);
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
      const bool closed = begins_with_quote(behind);
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
    const size_t at = text.find_first_not_of(kReplySpace, undecided);
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
    const CallHeader read =
        read_call_header(options.format, options.tools, own.substr(0, kHeaderBytesMax),
                         closing && !is_long, ended && !is_long);
    switch (read.kind) {
      case CallHeader::Kind::kWhole:
        begin_call(read, out);
        return true;
      case CallHeader::Kind::kMalformed:
        return broken_call(own, closing, out);
      case CallHeader::Kind::kMore:
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
    return (name.empty() || is_tool_name(name)) &&
           (trimmed(rest).empty() || is_tool_name(trimmed(rest)));
  }

  // --- calls ---

  void begin_call(const CallHeader& read, ReplyDelta& out) {
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
    if (!call_spoke) drop(text.size() - without_start(text, kReplySpace).size());
    // What a cut leaves open stays with the call.
    const auto [end, sure] = arguments_end->find(text, ended && !cut);
    std::string_view kept(text);
    if (end) {
      kept = without_closing_fence(kept.substr(0, end.at));
    } else if (ended) {
      kept = without_cut_end(kept);
    } else {
      kept = without_possible_fence(kept.substr(0, sure));
    }
    const bool wrapped = !call_spoke && kept.starts_with('"') && kept.size() <= kBrokenBytesMax;
    if (wrapped && !end && !ended) return false;
    if (wrapped && !end && cut) kept = {};  // half of what stands for an object
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
    const std::string_view rest = without_start(text, kReplySpace);
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
