// Who we are and whom we trust: the certificate and key of one member of a cluster, and the
// authorities that vouch for the others. Both the control connection and the encrypted data link
// use it: TLS 1.3 alone, with a certificate from either side, whose chain, dates and name are
// checked. OpenSSL's types stay in the sources.
#pragma once

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

namespace atl::transport {

class TlsContext;  // tls_context.h

// Immutable; any thread.
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
  const TlsContext& context() const { return *context_; }

 private:
  TlsKeys(std::string name, std::unique_ptr<TlsContext> context);

  const std::string name_;
  const std::unique_ptr<TlsContext> context_;
};

// The names of coordinators unless something else is said.
inline const std::vector<std::string> kCoordinatorNames = {"coordinator"};

}  // namespace atl::transport
