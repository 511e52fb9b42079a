// OpenSSL's objects as owners, and its errors as text. Private to transport/.
#pragma once

#include <openssl/bio.h>
#include <openssl/evp.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>

#include <memory>
#include <string>
#include <vector>

namespace atl::transport {

template <auto release>
struct Release {
  template <typename T>
  void operator()(T* object) const {
    release(object);
  }
};
template <typename T, auto release>
using OpensslOwner = std::unique_ptr<T, Release<release>>;

using OwnBio = OpensslOwner<BIO, BIO_free>;
using OwnCertificate = OpensslOwner<X509, X509_free>;
using OwnKey = OpensslOwner<EVP_PKEY, EVP_PKEY_free>;
using OwnContext = OpensslOwner<SSL_CTX, SSL_CTX_free>;
using OwnSsl = OpensslOwner<SSL, SSL_free>;

// The newest reason in this thread's queue of errors, which is emptied: "wrong version number";
// `otherwise` if there is none.
std::string openssl_reason(const std::string& otherwise);

// "2026-11-29 15:20:55 UTC".
std::string time_text(const ASN1_TIME* time);
// The DNS names in subjectAltName, at most 8, control characters replaced.
std::vector<std::string> names_of(const X509& certificate);
// "/CN=Atoll CA 3f9a12c0", likewise, cut to 127 bytes.
std::string issuer_text(const X509& certificate);
// "a, b"; "no name" for none.
std::string names_text(const std::vector<std::string>& names);

}  // namespace atl::transport
