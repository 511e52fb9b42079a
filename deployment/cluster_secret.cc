#include "deployment/cluster_secret.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <optional>

#include "base/result.h"
#include "transport/control/control.h"

namespace atl::deployment {
namespace {

constexpr size_t kDigits = 32;

[[noreturn]] void fail(const std::filesystem::path& file, std::string_view what) {
  throw LoadError(
      fmt::format("{}: {}; security.secret_file names another place", file.string(), what));
}

class Descriptor {
 public:
  explicit Descriptor(int fd) : fd_(fd) {}
  ~Descriptor() {
    if (fd_ >= 0) ::close(fd_);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int get() const { return fd_; }

 private:
  int fd_;
};

// nullopt: it isn't there.
std::optional<std::string> read_secret(const std::filesystem::path& file) {
  const Descriptor in(::open(file.c_str(), O_RDONLY | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK));
  if (in.get() < 0) {
    if (errno == ENOENT) return std::nullopt;
    fail(file, fmt::format("the cluster's secret can't be read: {}", std::strerror(errno)));
  }
  struct stat status {};
  if (::fstat(in.get(), &status) != 0 || !S_ISREG(status.st_mode)) {
    fail(file, "expected a file with the cluster's secret");
  }
  if (status.st_uid != ::geteuid()) {
    fail(file,
         "the cluster's secret belongs to another user: coordinator and nodes of one machine "
         "run as the same one");
  }
  if ((status.st_mode & 077) != 0) {
    fail(file, fmt::format("the cluster's secret may be read or written by others (mode {:o}): "
                           "expected 600; remove it, and a new one is made",
                           status.st_mode & 0777));
  }
  char text[kDigits + 2];
  const ssize_t size = ::read(in.get(), text, sizeof text);
  std::string secret(text, static_cast<size_t>(std::max<ssize_t>(size, 0)));
  if (secret.ends_with('\n')) secret.pop_back();
  if (secret.size() != kDigits ||
      secret.find_first_not_of("0123456789abcdef") != std::string::npos) {
    fail(file,
         fmt::format("expected {} hexadecimal digits; remove it, and a new one is made", kDigits));
  }
  return secret;
}

// Whole under its name or not there: written beside it and linked.
void make_secret(const std::filesystem::path& file) {
  const std::string draft = fmt::format("{}.{}", file.string(), ::getpid());
  {
    const Descriptor out(
        ::open(draft.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600));
    if (out.get() < 0) {
      fail(file, fmt::format("the cluster's secret can't be made: {}", std::strerror(errno)));
    }
    const std::string text = transport::random_secret() + "\n";
    if (::write(out.get(), text.data(), text.size()) != static_cast<ssize_t>(text.size())) {
      const int error = errno;
      ::unlink(draft.c_str());
      fail(file, fmt::format("the cluster's secret can't be written: {}", std::strerror(error)));
    }
  }
  const int linked = ::link(draft.c_str(), file.c_str());
  const int error = errno;
  ::unlink(draft.c_str());
  if (linked != 0 && error != EEXIST) {
    fail(file, fmt::format("the cluster's secret can't be made: {}", std::strerror(error)));
  }
}

}  // namespace

std::string cluster_secret(const std::filesystem::path& file) {
  if (auto secret = read_secret(file)) return *secret;
  make_secret(file);
  auto secret = read_secret(file);
  if (!secret) fail(file, "the cluster's secret was removed while it was made");
  return *secret;
}

}  // namespace atl::deployment
