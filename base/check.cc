#include "base/check.h"

#include <cstdio>
#include <cstdlib>

namespace atl::check_internal {

void fail(const char* file, int line, const char* expression, const std::string& values) {
  std::fprintf(stderr, "%s:%d: check failed: %s%s%s\n", file, line, expression,
               values.empty() ? "" : ": ", values.c_str());
  std::fflush(stderr);
  std::abort();
}

}  // namespace atl::check_internal
