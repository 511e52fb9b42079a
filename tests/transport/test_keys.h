// Keys for tests, good ones and bad ones.
#pragma once

#include <fcntl.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdio>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "base/check.h"
#include "transport/tls/make_keys.h"

namespace atl::transport {

// A certificate whose time is over, in place of a good one: same key, same authority.
inline void let_expire(const std::filesystem::path& dir, const std::string& name) {
  const auto open = [](const std::filesystem::path& file, const char* how) {
    FILE* opened = std::fopen(file.c_str(), how);
    CHECK(opened != nullptr);
    return std::unique_ptr<FILE, int (*)(FILE*)>(opened, std::fclose);
  };
  const auto file = dir / (name + ".pem");
  X509* certificate = PEM_read_X509(open(file, "r").get(), nullptr, nullptr, nullptr);
  EVP_PKEY* key = PEM_read_PrivateKey(open(dir / "ca.key", "r").get(), nullptr, nullptr, nullptr);
  CHECK(certificate != nullptr && key != nullptr);
  X509_gmtime_adj(X509_getm_notBefore(certificate), -7200);
  X509_gmtime_adj(X509_getm_notAfter(certificate), -3600);
  CHECK(X509_sign(certificate, key, nullptr) > 0);
  CHECK(PEM_write_X509(open(file, "w").get(), certificate) == 1);
  X509_free(certificate);
  EVP_PKEY_free(key);
}

}  // namespace atl::transport
