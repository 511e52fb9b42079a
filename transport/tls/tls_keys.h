// Who we are and whom we trust: the certificate and key of one member of a cluster, and the
// authorities that vouch for the others. Both the control connection and the encrypted data link
// use it: TLS 1.3 alone, with a certificate from either side, whose chain, dates and name are
// checked. OpenSSL's types stay in the sources.
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

namespace atl::transport {

class TlsContext;  // tls_context.h

// Any thread. Files that change are read again for the next connection, so that certificates can be
// renewed while all goes on; what can't be used is told in the log, and the last good ones stay.
class TlsKeys {
 public:
  // Reads DIR/ca.pem, DIR/NAME.pem and DIR/NAME.key (key_files.h says what stands in them).
  // LoadError names the file and what to do: one that is missing or can be read by others, a key of
  // another certificate, a certificate of another name, of no authority in ca.pem or whose time has
  // passed. Logs a warning if that time ends within 30 days.
  static std::shared_ptr<const TlsKeys> load(const std::filesystem::path& dir,
                                             const std::string& name);
  ~TlsKeys();
  TlsKeys(const TlsKeys&) = delete;
  TlsKeys& operator=(const TlsKeys&) = delete;

  const std::string& name() const { return name_; }
  // For a new connection, which keeps what it needs of it. Looks at the files if it hasn't for a
  // second.
  std::shared_ptr<const TlsContext> context() const;

 private:
  // Of each file: changes when it does.
  struct Stamp {
    uint64_t inode = 0, bytes = 0;
    int64_t changed_ns = 0;
    friend bool operator==(const Stamp&, const Stamp&) = default;
  };
  using Stamps = std::array<Stamp, 3>;

  TlsKeys(std::filesystem::path dir, std::string name);
  Stamps stamps() const;

  const std::filesystem::path dir_;
  const std::string name_;
  mutable std::mutex mutex_;
  mutable Stamps stamps_;
  mutable std::chrono::steady_clock::time_point looked_;
  mutable std::shared_ptr<const TlsContext> context_;
};

// The names of coordinators unless something else is said.
inline const std::vector<std::string> kCoordinatorNames = {"coordinator"};

}  // namespace atl::transport
