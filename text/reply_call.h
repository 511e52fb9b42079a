// One call of a tool in a reply: its header, and where its arguments end.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "text/reply_marks.h"

namespace atl::text {

// The offered tool that a call's header names in any of the spellings that models use:
// "get", "functions.get:0", "get:1", "functions.get", "call_get_0", ...; nullopt: none of them.
std::optional<std::string> resolve_tool_name(const std::vector<std::string>& tools,
                                             std::string_view spelled);

// What is passed over for a call that isn't formed like one, or held back of one whose end is not
// clear.
inline constexpr size_t kBrokenBytesMax = size_t{16} << 10;

bool is_tool_name(std::string_view name);

// A call's header, from behind its first mark to the first byte of its arguments.
struct CallHeader {
  enum class Kind { kMore, kMalformed, kWhole };
  Kind kind = Kind::kMore;
  std::string name, id;
  size_t num_bytes = 0;
};

// The names are those of `tools`. closed: what follows `text` is a mark that ends the call; ended:
// nothing follows.
CallHeader read_call_header(ReplyFormat format, const std::vector<std::string>& tools,
                            std::string_view text, bool closed, bool ended);

// Arguments as JSON text within a JSON string, as some models write them: the text. Else as they
// are.
std::string unwrapped(std::string_view arguments);

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
  Search find(std::string_view text, bool ended) const;
  void read(std::string_view text);
  // Whether what comes behind `text` would be in a string.
  bool in_string_behind(std::string_view text) const;

 private:
  bool is_json(std::string_view rest) const;

  const Marks& marks_;
  std::string so_far_;
  bool in_string_ = false, escaped_ = false;
};

}  // namespace atl::text
