// One member's OpenSSL context, the connections made from it, and why one failed, in words.
// Private to transport/.
#pragma once

#include <string>
#include <vector>

#include "base/result.h"
#include "transport/tls/key_files.h"
#include "transport/tls/openssl.h"

namespace atl::transport {

// What a connection is for: told in the handshake (ALPN), so that one that arrives at the wrong
// port ends there.
enum class TlsUse : uint8_t { kControl, kData };

class TlsContext {
 public:
  // Throws LoadError as TlsKeys::load() does.
  TlsContext(const KeyFiles& files, const std::string& name);

  // A connection that has not begun its handshake and has no BIO yet. The peer's certificate must
  // hold one of `names`.
  OwnSsl new_client(TlsUse use, const std::vector<std::string>& names) const;
  OwnSsl new_server(TlsUse use, const std::vector<std::string>& names) const;

 private:
  OwnSsl new_connection(SSL_CTX& context, TlsUse use, const std::vector<std::string>& names) const;
  // Two, since a context's ALPN answer and purpose are a server's.
  OwnContext client_, server_;
};

// Once the handshake is done: that of the allowed names which the certificate has; kInvalid if the
// peer wanted another use. "aes-128-gcm".
Result<std::string> peer_of(SSL& connection, TlsUse use);
std::string cipher_of(const SSL& connection);

// Why a call on the connection that returned `result` failed, for the log or the caller, from this
// thread's queue of errors, which is emptied, and errno. kInvalid: the peer is not who it should be
// or thinks so of us, or speaks no TLS 1.3; kUnavailable: the connection ended.
Error tls_error(SSL& connection, int result);

}  // namespace atl::transport
