// A kj stream through TLS. Private to transport/.
//
// Not kj-tls: its 0.9 knows no minimum above TLS 1.2, tells of a client's certificate one name in a
// deprecated place and of a refusal no reason, and can't tell control from data.
#pragma once

#include <kj/async-io.h>

#include <string>
#include <vector>

#include "transport/tls/tls_keys.h"

namespace atl::transport {

struct TlsStream {
  kj::Own<kj::AsyncIoStream> stream;
  std::string peer;  // which of the allowed names its certificate has
};

// Shake hands; the keys are borrowed until then. Exceptions: FAILED if the peer is not who it
// should be, or thinks so of us, or speaks no TLS 1.3; DISCONNECTED if the connection ended. Either
// says why in one line. The server's last word is a byte that the client waits for: with it the
// client knows that its own certificate was taken.
kj::Promise<TlsStream> tls_connect(kj::Own<kj::AsyncIoStream> raw, const TlsKeys& keys,
                                   const std::string& name);
kj::Promise<TlsStream> tls_accept(kj::Own<kj::AsyncIoStream> raw, const TlsKeys& keys,
                                  const std::vector<std::string>& names);

}  // namespace atl::transport
