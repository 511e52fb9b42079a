// Log lines about connections that were refused: strangers must not fill the log. Private to
// transport/.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>

namespace atl::transport {

// One thread.
class StrangerLog {
 public:
  // what: "control", "data".
  explicit StrangerLog(std::string what) : what_(std::move(what)) {}

  // Who was refused and why; at most a line a second, with how many there were.
  void tell(const std::string& who, const std::string& why);

 private:
  const std::string what_;
  uint64_t refused_ = 0;
  std::chrono::steady_clock::time_point told_;  // the last line; never: the epoch
};

// "10.0.0.7:41512" of a sockaddr, or "somebody".
std::string text_of_address(const void* address, size_t bytes);

}  // namespace atl::transport
