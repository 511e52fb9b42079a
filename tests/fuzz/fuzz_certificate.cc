// What is said about a stranger's certificate, in DER, before anything about it is known.
#include <openssl/err.h>
#include <openssl/x509.h>

#include <cstddef>
#include <cstdint>
#include <string>

#include "base/check.h"
#include "transport/tls/openssl.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace atl::transport;
  const OwnCertificate certificate(d2i_X509(nullptr, &data, static_cast<long>(size)));
  ERR_clear_error();
  if (!certificate) return 0;
  const auto is_plain = [](const std::string& text) {
    for (const char c : text) {
      if (c < ' ' || c > '~') return false;
    }
    return true;
  };
  const std::string names = names_text(names_of(*certificate));
  CHECK(is_plain(names));
  CHECK_LE(names.size(), size_t{1000});
  CHECK(is_plain(issuer_text(*certificate)));
  CHECK(is_plain(time_text(X509_get0_notBefore(certificate.get()))));
  CHECK(is_plain(time_text(X509_get0_notAfter(certificate.get()))));
  ERR_clear_error();
  return 0;
}
