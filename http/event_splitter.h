// Server-sent events out of the bytes of a stream.
#pragma once

#include <functional>
#include <string>
#include <string_view>

namespace atl::http {

// Source: WHATWG HTML, "Server-sent events", 9.2.6. Comments and fields other than `data` are
// dropped; lines may end with LF, CR or CRLF; several data lines of an event are joined by LF. What
// was not ended by an empty line is no event.
class EventSplitter {
 public:
  // The data of one event; borrowed until it returns.
  using Sink = std::function<void(std::string_view data)>;

  // At most this many bytes of one event are kept; more make feed() return false.
  explicit EventSplitter(size_t event_bytes_max) : event_bytes_max_(event_bytes_max) {}

  // Bytes may be split anywhere. False: an event is too long; not to be used any more.
  bool feed(std::string_view bytes, const Sink& sink);

 private:
  void take_line(const Sink& sink);

  const size_t event_bytes_max_;
  std::string line_, data_;
  bool has_data_ = false;
  bool after_cr_ = false;  // an LF now belongs to the line that has ended
};

}  // namespace atl::http
