#include "transport/tls/stranger_log.h"

#include <fmt/core.h>
#include <netdb.h>
#include <sys/socket.h>

#include "base/log.h"

namespace atl::transport {

void StrangerLog::tell(const std::string& who, const std::string& why) {
  ++refused_;
  const auto now = std::chrono::steady_clock::now();
  if (refused_ > 1 && now - told_ < std::chrono::seconds(1)) return;
  told_ = now;
  log_warn("{}: refused a connection from {} ({} so far): {}", what_, who, refused_, why);
}

std::string text_of_address(const void* address, size_t bytes) {
  char host[NI_MAXHOST], port[NI_MAXSERV];
  if (::getnameinfo(static_cast<const sockaddr*>(address), static_cast<socklen_t>(bytes), host,
                    sizeof host, port, sizeof port, NI_NUMERICHOST | NI_NUMERICSERV) != 0)
    return "somebody";
  return fmt::format("{}:{}", host, port);
}

}  // namespace atl::transport
