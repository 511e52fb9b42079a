// CHECK: what cannot be. On in every build; prints the expression, both values of a comparison
// and the place, then aborts. For bugs of ours only: bad input from outside is a Result.
#pragma once

#include <concepts>
#include <sstream>
#include <string>

namespace atl::check_internal {

[[noreturn]] void fail(const char* file, int line, const char* expression,
                       const std::string& values);

template <typename T>
std::string printed(const T& value) {
  if constexpr (requires(std::ostream& os) { os << value; }) {
    std::ostringstream os;
    os << value;
    return os.str();
  } else {
    return "?";
  }
}

}  // namespace atl::check_internal

#define CHECK(condition)                                                             \
  do {                                                                               \
    if (!(condition)) [[unlikely]]                                                   \
      ::atl::check_internal::fail(__FILE__, __LINE__, #condition, "");             \
  } while (false)

#define ATOLL_CHECK_COMPARE(a, op, b)                                                          \
  do {                                                                                         \
    const auto& check_a = (a);                                                                 \
    const auto& check_b = (b);                                                                 \
    if (!(check_a op check_b)) [[unlikely]]                                                    \
      ::atl::check_internal::fail(__FILE__, __LINE__, #a " " #op " " #b,                     \
                                    ::atl::check_internal::printed(check_a) + " against " +  \
                                        ::atl::check_internal::printed(check_b));            \
  } while (false)

#define CHECK_EQ(a, b) ATOLL_CHECK_COMPARE(a, ==, b)
#define CHECK_NE(a, b) ATOLL_CHECK_COMPARE(a, !=, b)
#define CHECK_LT(a, b) ATOLL_CHECK_COMPARE(a, <, b)
#define CHECK_LE(a, b) ATOLL_CHECK_COMPARE(a, <=, b)
#define CHECK_GT(a, b) ATOLL_CHECK_COMPARE(a, >, b)
#define CHECK_GE(a, b) ATOLL_CHECK_COMPARE(a, >=, b)

// Inside kernels only: compiled away in release builds.
#ifdef NDEBUG
#define DCHECK(condition) \
  do {                    \
  } while (false && (condition))
#else
#define DCHECK(condition) CHECK(condition)
#endif
