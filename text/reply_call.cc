#include "text/reply_call.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>

namespace atl::text {
namespace {

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

const CallHeader kMore{CallHeader::Kind::kMore, {}, {}, 0};
const CallHeader kMalformed{CallHeader::Kind::kMalformed, {}, {}, 0};

class HeaderReader {
 public:
  // closed: what follows `text` is a mark that ends the call; ended: nothing follows.
  HeaderReader(ReplyFormat format, const std::vector<std::string>& tools, std::string_view text,
               bool closed, bool ended)
      : format_(format), tools_(tools), text_(text), closed_(closed), ended_(ended) {}

  CallHeader read() const {
    const Marks& marks = marks_of(format_);
    const Found separator = find_first(text_, marks.separator);
    const size_t brace = text_.substr(0, separator.at).find('{');
    if (brace != text_.npos) return direct(text_.substr(0, brace), brace);  // left out
    if (!separator && closed_) return direct(text_, text_.size());
    if (!separator) {
      const std::string_view begun =
          text_.substr(0, text_.size() - partial_mark_bytes(text_, marks.separator));
      const bool fits = trimmed(begun).empty() || is_tool_name(trimmed(begun));
      return fits && !ended_ ? kMore : kMalformed;
    }
    const std::string_view first = text_.substr(0, separator.at);
    const size_t behind = separator.at + separator.num_bytes;
    if (format_ == ReplyFormat::kKimiK2) return direct(first, behind);
    return behind_separator(first, behind);
  }

 private:
  CallHeader direct(std::string_view spelled, size_t num_bytes) const {
    spelled = trimmed(spelled);
    auto name = is_tool_name(spelled) ? resolve_tool_name(tools_, spelled) : std::nullopt;
    if (!name) return kMalformed;
    std::string id(format_ == ReplyFormat::kKimiK2 ? spelled : std::string_view{});
    return {CallHeader::Kind::kWhole, std::move(*name), std::move(id), num_bytes};
  }

  // V3.1: NAME <sep> arguments. V3: type <sep> NAME, then a fence or the arguments.
  CallHeader behind_separator(std::string_view first, size_t behind) const {
    const std::string_view rest = text_.substr(behind);
    const size_t skipped = rest.size() - without_start(rest, kReplySpace).size();
    const std::string_view word = rest.substr(skipped, word_bytes(rest.substr(skipped)));
    const bool may_go_on = !closed_ && skipped + word.size() == rest.size();
    if (may_go_on && !ended_) return kMore;
    if (may_go_on && !word.empty()) return kMalformed;  // cut
    if (!word.empty() && is_tool_name(trimmed(first))) {
      CallHeader fenced = direct(word, behind + skipped + word.size());
      if (fenced.kind == CallHeader::Kind::kWhole) return fenced;
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

  const ReplyFormat format_;
  const std::vector<std::string>& tools_;
  const std::string_view text_;
  const bool closed_, ended_;
};

void read_json(std::string_view text, bool& in_string, bool& escaped) {
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

}  // namespace

bool is_tool_name(std::string_view name) {
  return !name.empty() && std::none_of(name.begin(), name.end(), [](char c) {
    return static_cast<unsigned char>(c) <= ' ' || c == '<' || c == '`' || c == 0x7F;
  });
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

CallHeader read_call_header(ReplyFormat format, const std::vector<std::string>& tools,
                            std::string_view text, bool closed, bool ended) {
  return HeaderReader(format, tools, text, closed, ended).read();
}

std::string unwrapped(std::string_view arguments) {
  const auto outer = nlohmann::json::parse(arguments, nullptr, false);
  if (!outer.is_string()) return std::string(arguments);
  const auto& inner = outer.get_ref<const std::string&>();
  return trimmed(inner).starts_with('{') && nlohmann::json::accept(inner) ? inner
                                                                          : std::string(arguments);
}

ArgumentsEnd::Search ArgumentsEnd::find(std::string_view text, bool ended) const {
  bool in_string = in_string_, escaped = escaped_;
  Found spoken;  // the first end mark in a string
  size_t num_read = 0;
  for (size_t from = 0;;) {
    const Found mark = find_first(text, marks_.closing, from);
    if (mark && spoken && mark.at - spoken.at > kBrokenBytesMax) return {spoken, spoken.at};
    if (!mark) break;
    read_json(text.substr(num_read, mark.at - num_read), in_string, escaped);
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

void ArgumentsEnd::read(std::string_view text) {
  read_json(text, in_string_, escaped_);
  so_far_ += text;
}

bool ArgumentsEnd::in_string_behind(std::string_view text) const {
  bool in_string = in_string_, escaped = escaped_;
  read_json(text, in_string, escaped);
  return in_string;
}

bool ArgumentsEnd::is_json(std::string_view rest) const {
  std::string all = so_far_;
  all += without_closing_fence(rest);
  return nlohmann::json::accept(all);
}

}  // namespace atl::text
