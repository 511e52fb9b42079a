#include "storage/io/printable.h"

#include <fmt/format.h>

namespace atl::storage {

std::string printable(std::string_view text, size_t bytes_max) {
  std::string out = "\"";
  for (const char c : text.substr(0, bytes_max)) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte < 0x20 || byte == 0x7f || c == '"' || c == '\\') {
      out += fmt::format("\\x{:02x}", byte);
    } else {
      out += c;
    }
  }
  if (text.size() > bytes_max) out += "...";
  return out + "\"";
}

}  // namespace atl::storage
