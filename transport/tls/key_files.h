// The files of a directory of keys: what they are called, and how they are read and written.
// Private to transport/.
#pragma once

#include <filesystem>
#include <string>

#include "base/result.h"
#include "transport/tls/openssl.h"

namespace atl::transport {

// ca.pem: the authorities that are trusted; NAME.pem: NAME's certificate, with those between it and
// the authority behind it; NAME.key: its private key. ca.key stays with whoever makes certificates.
struct KeyFiles {
  std::filesystem::path dir;
  std::filesystem::path authority() const { return dir / "ca.pem"; }
  std::filesystem::path authority_key() const { return dir / "ca.key"; }
  std::filesystem::path certificate(const std::string& name) const { return dir / (name + ".pem"); }
  std::filesystem::path key(const std::string& name) const { return dir / (name + ".key"); }
};

// Letters, digits, '-', '_' and '.' (not first), 1 to 63 of them, and not "ca". Throws LoadError.
void require_member_name(const std::string& name);

// Throw LoadError with file, what is wrong and what to do. A private key that others than its owner
// (and the group, read-only) may touch is refused.
OwnCertificate read_certificate(const std::filesystem::path& file);
OwnKey read_private_key(const std::filesystem::path& file);
// The whole file, at most 1 MiB.
std::string read_key_file(const std::filesystem::path& file);

// New files only. Throw LoadError.
void write_certificate(const std::filesystem::path& file, X509& certificate);
void write_private_key(const std::filesystem::path& file, EVP_PKEY& key);

}  // namespace atl::transport
