// Makes the files that TlsKeys (tls_keys.h) loads: an authority and a certificate for each member
// of a cluster, with OpenSSL. `atoll keys` is this and a report.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

namespace atl::transport {

struct MakeKeysOptions {
  std::filesystem::path dir;              // made with mode 0700 if it is not there
  std::vector<std::string> nodes;         // certificates that serve
  std::vector<std::string> coordinators;  // certificates that dial
  int days = 365;  // the members' certificates hold so long; the authority's 10 years, or longer
};

struct MadeKeys {
  std::vector<std::filesystem::path> made, kept;  // kept: files that were there
};

// Ed25519 keys, names in subjectAltName (DNS), private keys of mode 0600. Never overwrites: members
// whose two files are there keep them, and an authority that is there signs for new ones.
// LoadError: a name that is none, half of a pair, an authority without its key or that has expired,
// a folder that can't be written.
MadeKeys make_keys(const MakeKeysOptions& options);

}  // namespace atl::transport
