#include "transport/tls/make_keys.h"

#include <fmt/format.h>
#include <openssl/rand.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <ctime>

#include "transport/tls/key_files.h"

namespace atl::transport {

namespace {

constexpr int kAuthorityDays = 3650;
constexpr int kDaysMax = 36500;
// Clocks of machines differ.
constexpr long kBackdatedSeconds = 3600;

void require(bool done, const char* what) {
  if (!done) throw LoadError(fmt::format("keys: cannot {}: {}", what, openssl_reason("no reason")));
}

// Stands for one that signs.
struct Authority {
  OwnCertificate certificate;
  OwnKey key;
};

uint64_t random_number() {
  uint64_t number = 0;
  require(RAND_bytes(reinterpret_cast<unsigned char*>(&number), sizeof number) == 1,
          "draw random numbers");
  return number;
}

OwnKey new_key() {
  OwnKey key(EVP_PKEY_Q_keygen(nullptr, nullptr, "ED25519"));
  require(key != nullptr, "make an Ed25519 key");
  return key;
}

void add_extension(X509& certificate, const X509& issuer, int nid, const std::string& value) {
  X509V3_CTX context;
  X509V3_set_ctx_nodb(&context);
  X509V3_set_ctx(&context, const_cast<X509*>(&issuer), &certificate, nullptr, nullptr, 0);
  const OpensslOwner<X509_EXTENSION, X509_EXTENSION_free> extension(
      X509V3_EXT_conf_nid(nullptr, &context, nid, value.c_str()));
  require(extension && X509_add_ext(&certificate, extension.get(), -1) == 1, value.c_str());
}

// With names, times, key and subject; extensions and signature are the caller's.
OwnCertificate new_certificate(const std::string& subject, EVP_PKEY& key, int days) {
  OwnCertificate certificate(X509_new());
  require(certificate != nullptr, "make a certificate");
  X509& c = *certificate;
  const OpensslOwner<X509_NAME, X509_NAME_free> name(X509_NAME_new());
  const auto* text = reinterpret_cast<const unsigned char*>(subject.c_str());
  require(X509_set_version(&c, X509_VERSION_3) == 1 &&
              ASN1_INTEGER_set_uint64(X509_get_serialNumber(&c), random_number() >> 1) == 1 &&
              X509_gmtime_adj(X509_getm_notBefore(&c), -kBackdatedSeconds) != nullptr &&
              X509_time_adj_ex(X509_getm_notAfter(&c), days, 0, nullptr) != nullptr &&
              X509_NAME_add_entry_by_txt(name.get(), "CN", MBSTRING_ASC, text, -1, -1, 0) == 1 &&
              X509_set_subject_name(&c, name.get()) == 1 && X509_set_pubkey(&c, &key) == 1,
          "fill a certificate in");
  return certificate;
}

void sign(X509& certificate, EVP_PKEY& key) {
  require(X509_sign(&certificate, &key, nullptr) > 0, "sign a certificate");
}

Authority new_authority(int days) {
  Authority authority;
  authority.key = new_key();
  // Another name for each: a peer of another cluster is told from one with a damaged certificate.
  const std::string subject = fmt::format("Atoll CA {:08x}", random_number() >> 32);
  authority.certificate = new_certificate(subject, *authority.key, std::max(days, kAuthorityDays));
  X509& c = *authority.certificate;
  require(X509_set_issuer_name(&c, X509_get_subject_name(&c)) == 1, "name the issuer");
  add_extension(c, c, NID_basic_constraints, "critical,CA:TRUE,pathlen:0");
  add_extension(c, c, NID_key_usage, "critical,keyCertSign,cRLSign");
  add_extension(c, c, NID_subject_key_identifier, "hash");
  sign(c, *authority.key);
  return authority;
}

OwnCertificate new_member(const std::string& name, EVP_PKEY& key, const Authority& authority,
                          const char* usage, int days) {
  OwnCertificate certificate = new_certificate(name, key, days);
  X509& c = *certificate;
  const X509& issuer = *authority.certificate;
  require(X509_set_issuer_name(&c, X509_get_subject_name(&issuer)) == 1, "name the issuer");
  add_extension(c, issuer, NID_basic_constraints, "critical,CA:FALSE");
  add_extension(c, issuer, NID_key_usage, "critical,digitalSignature");
  add_extension(c, issuer, NID_ext_key_usage, usage);
  add_extension(c, issuer, NID_subject_alt_name, "DNS:" + name);
  add_extension(c, issuer, NID_subject_key_identifier, "hash");
  add_extension(c, issuer, NID_authority_key_identifier, "keyid:always");
  sign(c, *authority.key);
  return certificate;
}

// Both are there, or none is.
bool is_there(const std::filesystem::path& certificate, const std::filesystem::path& key) {
  const bool has_certificate = std::filesystem::exists(certificate);
  const bool has_key = std::filesystem::exists(key);
  if (has_certificate == has_key) return has_key;
  throw LoadError(
      fmt::format("keys: {} is there, {} is not: bring it from where it is kept, or take the first "
                  "away to have both made",
                  (has_certificate ? certificate : key).string(),
                  (has_certificate ? key : certificate).string()));
}

void make_dir(const std::filesystem::path& dir) {
  if (::mkdir(dir.c_str(), 0700) == 0 || (errno == EEXIST && std::filesystem::is_directory(dir)))
    return;
  throw LoadError(fmt::format("keys: cannot make the folder {}: {}", dir.string(),
                              std::strerror(errno == EEXIST ? ENOTDIR : errno)));
}

class Maker {
 public:
  explicit Maker(const MakeKeysOptions& options) : options_(options), files_{options.dir} {}

  MadeKeys run() {
    make_dir(options_.dir);
    for (const std::string& name : options_.nodes) make_member(name, "serverAuth");
    for (const std::string& name : options_.coordinators) make_member(name, "clientAuth");
    return std::move(made_);
  }

 private:
  // Its key is needed only when something is to be signed.
  const Authority& authority() {
    if (authority_.certificate) return authority_;
    if (is_there(files_.authority(), files_.authority_key())) {
      authority_ = {read_certificate(files_.authority()), read_private_key(files_.authority_key())};
      if (X509_cmp_current_time(X509_get0_notAfter(authority_.certificate.get())) < 0)
        throw LoadError(
            fmt::format("keys: the authority {} expired on {}: make a new one, and all "
                        "certificates, in another folder",
                        files_.authority().string(),
                        time_text(X509_get0_notAfter(authority_.certificate.get()))));
      require(X509_check_private_key(authority_.certificate.get(), authority_.key.get()) == 1,
              "use ca.key, which is not that of ca.pem");
      made_.kept.push_back(files_.authority());
      return authority_;
    }
    authority_ = new_authority(options_.days);
    write_private_key(files_.authority_key(), *authority_.key);
    write_certificate(files_.authority(), *authority_.certificate);
    made_.made.push_back(files_.authority_key());
    made_.made.push_back(files_.authority());
    return authority_;
  }

  void make_member(const std::string& name, const char* usage) {
    if (is_there(files_.certificate(name), files_.key(name))) {
      made_.kept.push_back(files_.certificate(name));
      return;
    }
    const OwnKey key = new_key();
    const OwnCertificate certificate = new_member(name, *key, authority(), usage, options_.days);
    write_private_key(files_.key(name), *key);
    write_certificate(files_.certificate(name), *certificate);
    made_.made.push_back(files_.key(name));
    made_.made.push_back(files_.certificate(name));
  }

  const MakeKeysOptions& options_;
  const KeyFiles files_;
  Authority authority_;
  MadeKeys made_;
};

}  // namespace

MadeKeys make_keys(const MakeKeysOptions& options) {
  std::vector<std::string> names = options.nodes;
  names.insert(names.end(), options.coordinators.begin(), options.coordinators.end());
  for (const std::string& name : names) require_member_name(name);
  std::sort(names.begin(), names.end());
  const auto twice = std::adjacent_find(names.begin(), names.end());
  if (twice != names.end()) throw LoadError(fmt::format("keys: {} is named twice", *twice));
  if (names.empty()) throw LoadError("keys: no name was given of whom to make a certificate for");
  if (options.days < 1 || options.days > kDaysMax)
    throw LoadError(fmt::format("keys: {} days, expected 1 to {}", options.days, kDaysMax));
  return Maker(options).run();
}

}  // namespace atl::transport
