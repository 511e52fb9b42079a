// What every kind of link between machines holds to.
#pragma once

#include <chrono>
#include <cstddef>

namespace atl::transport {

// A stalled peer holds at most this many sends; 256 dispatches are more than a step ever has out.
inline constexpr size_t kSendsPerPeerMax = 256;
// message_bytes_max when none was given: 512 rows x 7168 outputs x 8 bytes are 28 MiB.
inline constexpr size_t kMessageBytesDefault = 64u << 20;
// A layer's answer comes within tens of microseconds or takes a while.
inline constexpr std::chrono::microseconds kSpinMax{200};

}  // namespace atl::transport
