// UCX's log lines in ours. By default UCX prints to stdout, where the generated text goes.
// Private to transport/.
#pragma once

#include <string>

namespace atl::transport {

// Routes UCX's warnings to our log and its errors to ucx_last_error(); once per process. With
// UCX_LOG_LEVEL set by the user UCX prints its own lines as well.
void route_ucx_log();

// The last error line that UCX printed in this process since the last call, or "".
std::string take_ucx_last_error();

}  // namespace atl::transport
