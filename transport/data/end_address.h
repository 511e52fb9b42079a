// The address of a transport end as it travels in the handshake (bytes drawn in docs/wire.md).
// Private to transport/.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"

namespace atl::transport {

inline constexpr size_t kAddressBytesMax = 4096;

// The process that an end lives in, so that a peer on the same host can watch it. A pid means
// something only in its own pid namespace of the same boot.
struct ProcessName {
  uint64_t host = 0;  // hash of boot id and pid namespace; 0: not known
  uint32_t pid = 0;
  uint64_t start_time = 0;  // field 22 of /proc/PID/stat: a reused pid has another one
  friend bool operator==(const ProcessName&, const ProcessName&) = default;
};
ProcessName this_process();
// The start time of a living process, or 0.
uint64_t start_time_of(uint32_t pid);

struct EndAddress {
  enum class Kind : uint16_t { kUcx = 1, kInProcess = 2, kTls = 3 };
  Kind kind = Kind::kUcx;
  uint64_t end_id = 0;  // random; stands in every message of this end
  ProcessName process;
  // UCX's worker address; of the encrypted link a TlsAddress; empty for in-process.
  std::vector<std::byte> native;
};

// Where an end of the encrypted link listens.
struct TlsAddress {
  // Known to whoever got the address over the control connection; opens the data connection.
  std::array<std::byte, 16> token{};
  uint16_t port = 0;  // 0: it doesn't listen, it dials
  std::string host;   // numeric; "": that of the control connection
  friend bool operator==(const TlsAddress&, const TlsAddress&) = default;
};
std::vector<std::byte> encode_tls_address(const TlsAddress& address);
// kInvalid for bytes that are none.
Result<TlsAddress> decode_tls_address(std::span<const std::byte> native);

// The address with this host in the place of "", if it is one of the encrypted link; else as it is.
std::vector<std::byte> with_host(std::vector<std::byte> address, const std::string& host);

std::vector<std::byte> encode_address(const EndAddress& address);
// kInvalid names what is wrong with it. The checksum keeps accidents out, not attackers: addresses
// travel over the authenticated control connection.
Result<EndAddress> decode_address(std::span<const std::byte> bytes, EndAddress::Kind kind);

// A number that no other end has, never 0.
uint64_t random_end_id();

}  // namespace atl::transport
