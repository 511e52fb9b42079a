#include "transport/tls/tls_keys.h"

#include <utility>

#include "transport/tls/tls_context.h"

namespace atl::transport {

TlsKeys::TlsKeys(std::string name, std::unique_ptr<TlsContext> context)
    : name_(std::move(name)), context_(std::move(context)) {}

TlsKeys::~TlsKeys() = default;

std::shared_ptr<const TlsKeys> TlsKeys::load(const std::filesystem::path& dir,
                                             const std::string& name) {
  require_member_name(name);
  return std::shared_ptr<const TlsKeys>(
      new TlsKeys(name, std::make_unique<TlsContext>(KeyFiles{dir}, name)));
}

}  // namespace atl::transport
