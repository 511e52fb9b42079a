#include "transport/tls/tls_keys.h"

#include <sys/stat.h>

#include <utility>

#include "base/log.h"
#include "transport/tls/tls_context.h"

namespace atl::transport {

namespace {
constexpr std::chrono::seconds kLookEvery{1};
}

TlsKeys::TlsKeys(std::filesystem::path dir, std::string name)
    : dir_(std::move(dir)),
      name_(std::move(name)),
      stamps_(stamps()),
      looked_(std::chrono::steady_clock::now()),
      context_(std::make_shared<const TlsContext>(KeyFiles{dir_}, name_)) {}

TlsKeys::~TlsKeys() = default;

std::shared_ptr<const TlsKeys> TlsKeys::load(const std::filesystem::path& dir,
                                             const std::string& name) {
  require_member_name(name);
  return std::shared_ptr<const TlsKeys>(new TlsKeys(dir, name));
}

TlsKeys::Stamps TlsKeys::stamps() const {
  const KeyFiles files{dir_};
  Stamps stamps;
  size_t at = 0;
  for (const auto& file : {files.authority(), files.certificate(name_), files.key(name_)}) {
    struct stat status {};
    if (::stat(file.c_str(), &status) == 0)
      stamps[at] = {status.st_ino, static_cast<uint64_t>(status.st_size),
                    status.st_ctim.tv_sec * int64_t{1'000'000'000} + status.st_ctim.tv_nsec};
    ++at;
  }
  return stamps;
}

std::shared_ptr<const TlsContext> TlsKeys::context() const {
  const std::lock_guard lock(mutex_);
  const auto now = std::chrono::steady_clock::now();
  if (now - looked_ < kLookEvery) return context_;
  looked_ = now;
  const Stamps found = stamps();
  if (found == stamps_) return context_;
  stamps_ = found;
  try {
    context_ = std::make_shared<const TlsContext>(KeyFiles{dir_}, name_);
    log_info("keys: {} was read again", KeyFiles{dir_}.certificate(name_).string());
  } catch (const LoadError& error) {
    log_error("{}; the keys that were read before stay in use", error.what());
  }
  return context_;
}

}  // namespace atl::transport
