#include "transport/tls/fast_gcm.h"

namespace atl::transport {

const char* fast_gcm_query() { return nullptr; }

}  // namespace atl::transport
