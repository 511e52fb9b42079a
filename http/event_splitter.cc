#include "http/event_splitter.h"

#include <utility>

namespace atl::http {

bool EventSplitter::feed(std::string_view bytes, const Sink& sink) {
  while (!bytes.empty()) {
    if (std::exchange(after_cr_, false) && bytes.front() == '\n') {
      bytes.remove_prefix(1);
      continue;
    }
    const size_t end = bytes.find_first_of("\r\n");
    line_ += bytes.substr(0, end);
    if (line_.size() + data_.size() > event_bytes_max_) return false;
    if (end == std::string_view::npos) return true;
    after_cr_ = bytes[end] == '\r';
    bytes.remove_prefix(end + 1);
    take_line(sink);
    line_.clear();
  }
  return true;
}

void EventSplitter::take_line(const Sink& sink) {
  std::string_view line = line_;
  if (line.empty()) {
    if (std::exchange(has_data_, false)) sink(data_);
    data_.clear();
    return;
  }
  const size_t colon = line.find(':');
  if (line.substr(0, colon) != "data") return;
  line.remove_prefix(colon == std::string_view::npos ? line.size() : colon + 1);
  if (line.starts_with(' ')) line.remove_prefix(1);
  if (has_data_) data_ += '\n';
  data_ += line;
  has_data_ = true;
}

}  // namespace atl::http
