#include "transport/tls/key_files.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <openssl/pem.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <string_view>

namespace atl::transport {

namespace {

constexpr size_t kFileBytesMax = 1u << 20;
constexpr size_t kNameBytesMax = 63;

class Descriptor {
 public:
  Descriptor(const std::filesystem::path& file, int flags, mode_t mode = 0)
      : fd_(::open(file.c_str(), flags | O_CLOEXEC, mode)) {}
  ~Descriptor() {
    if (fd_ >= 0) ::close(fd_);
  }
  Descriptor(const Descriptor&) = delete;
  int get() const { return fd_; }

 private:
  const int fd_;
};

[[noreturn]] void fail_read(const std::filesystem::path& file, std::string_view reason) {
  throw LoadError(fmt::format("keys: cannot read {}: {}; 'atoll keys' makes these files",
                              file.string(), reason));
}

// Asks nobody for a pass phrase.
int no_pass_phrase(char*, int, int, void*) { return -1; }

std::string read_all(int fd, const std::filesystem::path& file) {
  std::string text(kFileBytesMax + 1, '\0');
  size_t bytes = 0;
  while (bytes < text.size()) {
    const ssize_t got = ::read(fd, text.data() + bytes, text.size() - bytes);
    if (got < 0) fail_read(file, std::strerror(errno));
    if (got == 0) break;
    bytes += static_cast<size_t>(got);
  }
  if (bytes > kFileBytesMax) fail_read(file, "more than 1 MiB, which no key has");
  text.resize(bytes);
  return text;
}

void write_new(const std::filesystem::path& file, BIO& text, mode_t mode) {
  const Descriptor out(file, O_WRONLY | O_CREAT | O_EXCL, mode);
  char* data = nullptr;
  const auto bytes = static_cast<size_t>(BIO_get_mem_data(&text, &data));
  const bool written = out.get() >= 0 && ::fchmod(out.get(), mode) == 0 &&
                       ::write(out.get(), data, bytes) == static_cast<ssize_t>(bytes) &&
                       ::fsync(out.get()) == 0;
  if (written) return;
  const int error = errno;
  if (out.get() >= 0) ::unlink(file.c_str());  // half a key would be taken for one
  throw LoadError(fmt::format("keys: cannot write {}: {}", file.string(), std::strerror(error)));
}

}  // namespace

void require_member_name(const std::string& name) {
  constexpr std::string_view kLetters =
      "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.";
  const bool good = !name.empty() && name.size() <= kNameBytesMax && name[0] != '.' &&
                    name[0] != '-' && name.find_first_not_of(kLetters) == std::string::npos;
  if (!good)
    throw LoadError(fmt::format(
        "keys: '{}' is no name of a member: expected 1 to {} letters, digits, '-', '_' and '.', "
        "the first a letter, digit or '_'",
        name, kNameBytesMax));
  if (name == "ca")
    throw LoadError("keys: 'ca' is the authority's name: choose another for the member");
}

std::string read_key_file(const std::filesystem::path& file) {
  const Descriptor in(file, O_RDONLY);
  if (in.get() < 0) fail_read(file, std::strerror(errno));
  return read_all(in.get(), file);
}

OwnCertificate read_certificate(const std::filesystem::path& file) {
  const std::string text = read_key_file(file);
  const OwnBio bio(BIO_new_mem_buf(text.data(), static_cast<int>(text.size())));
  OwnCertificate certificate(PEM_read_bio_X509(bio.get(), nullptr, no_pass_phrase, nullptr));
  if (!certificate) fail_read(file, openssl_reason("no certificate in PEM"));
  return certificate;
}

OwnKey read_private_key(const std::filesystem::path& file) {
  const Descriptor in(file, O_RDONLY);
  struct stat status {};
  if (in.get() < 0 || ::fstat(in.get(), &status) != 0) fail_read(file, std::strerror(errno));
  if ((status.st_mode & (S_IWGRP | S_IXGRP | S_IRWXO)) != 0)
    throw LoadError(
        fmt::format("keys: {} has mode {:04o}: others than its owner may use it; "
                    "expected 0600: chmod 600 {}",
                    file.string(), status.st_mode & 07777u, file.string()));
  std::string text = read_all(in.get(), file);
  const OwnBio bio(BIO_new_mem_buf(text.data(), static_cast<int>(text.size())));
  OwnKey key(PEM_read_bio_PrivateKey(bio.get(), nullptr, no_pass_phrase, nullptr));
  OPENSSL_cleanse(text.data(), text.size());
  if (!key)
    fail_read(file,
              openssl_reason("no private key in PEM") + " (a key with a pass phrase is not taken)");
  return key;
}

void write_certificate(const std::filesystem::path& file, X509& certificate) {
  const OwnBio text(BIO_new(BIO_s_mem()));
  CHECK(PEM_write_bio_X509(text.get(), &certificate) == 1);
  write_new(file, *text, 0644);
}

void write_private_key(const std::filesystem::path& file, EVP_PKEY& key) {
  const OwnBio text(BIO_new(BIO_s_secmem()));
  CHECK(PEM_write_bio_PrivateKey(text.get(), &key, nullptr, nullptr, 0, nullptr, nullptr) == 1);
  write_new(file, *text, 0600);
}

}  // namespace atl::transport
