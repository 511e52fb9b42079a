#include "transport/data/end_address.h"

#include <fmt/core.h>
#include <sys/stat.h>
#include <unistd.h>

#include <bit>
#include <cstring>
#include <fstream>
#include <random>
#include <sstream>

namespace atl::transport {

namespace {

static_assert(std::endian::native == std::endian::little, "wire formats are little-endian");

constexpr char kMagic[4] = {'A', 'T', 'L', 'E'};
constexpr uint16_t kVersion = 1;
constexpr size_t kNativeBytesMin = 16;
constexpr size_t kTlsFixedBytes = 18;  // token and port
constexpr size_t kHostBytesMax = 64;   // an IPv6 address with the name of a link

// As drawn in docs/wire.md; no padding.
struct Fixed {
  char magic[4];
  uint16_t version;
  uint16_t kind;
  uint64_t checksum;  // FNV-1a of everything behind it
  uint64_t end_id;
  uint64_t host;
  uint64_t start_time;
  uint32_t pid;
  uint32_t native_bytes;
};
static_assert(sizeof(Fixed) == 48);
constexpr size_t kChecksummedFrom = offsetof(Fixed, end_id);

uint64_t fnv1a(std::span<const std::byte> bytes) {
  uint64_t hash = 0xcbf29ce484222325u;
  for (std::byte b : bytes) hash = (hash ^ static_cast<uint8_t>(b)) * 0x100000001b3u;
  return hash;
}

Error invalid_address(std::string message) {
  return {ErrorCode::kInvalid, "transport address: " + std::move(message)};
}

}  // namespace

uint64_t start_time_of(uint32_t pid) {
  std::ifstream file("/proc/" + std::to_string(pid) + "/stat");
  std::string line;
  if (!std::getline(file, line)) return 0;
  // The second field is the program's name in parentheses and may hold anything.
  const size_t name_end = line.rfind(')');
  if (name_end == std::string::npos) return 0;
  std::istringstream fields(line.substr(name_end + 1));
  std::string skipped;
  for (int field = 3; field < 22; ++field) fields >> skipped;
  uint64_t start_time = 0;
  fields >> start_time;
  return start_time;
}

ProcessName this_process() {
  std::ifstream file("/proc/sys/kernel/random/boot_id");
  std::string host;
  struct stat pid_namespace {};
  if (!std::getline(file, host) || ::stat("/proc/self/ns/pid", &pid_namespace) != 0) return {};
  host += '/' + std::to_string(pid_namespace.st_ino);
  const auto pid = static_cast<uint32_t>(::getpid());
  return {fnv1a(std::as_bytes(std::span(host))), pid, start_time_of(pid)};
}

std::vector<std::byte> encode_address(const EndAddress& address) {
  Fixed fixed{};
  std::memcpy(fixed.magic, kMagic, sizeof kMagic);
  fixed.version = kVersion;
  fixed.kind = static_cast<uint16_t>(address.kind);
  fixed.end_id = address.end_id;
  fixed.host = address.process.host;
  fixed.start_time = address.process.start_time;
  fixed.pid = address.process.pid;
  fixed.native_bytes = static_cast<uint32_t>(address.native.size());
  std::vector<std::byte> bytes(sizeof fixed + address.native.size());
  CHECK_LE(bytes.size(), kAddressBytesMax);
  std::memcpy(bytes.data(), &fixed, sizeof fixed);
  if (!address.native.empty())
    std::memcpy(bytes.data() + sizeof fixed, address.native.data(), address.native.size());
  fixed.checksum = fnv1a(std::span(bytes).subspan(kChecksummedFrom));
  std::memcpy(bytes.data(), &fixed, sizeof fixed);
  return bytes;
}

Result<EndAddress> decode_address(std::span<const std::byte> bytes, EndAddress::Kind kind) {
  if (bytes.size() < sizeof(Fixed) || bytes.size() > kAddressBytesMax)
    return invalid_address(
        fmt::format("{} bytes, expected {} to {}", bytes.size(), sizeof(Fixed), kAddressBytesMax));
  Fixed fixed;
  std::memcpy(&fixed, bytes.data(), sizeof fixed);
  if (std::memcmp(fixed.magic, kMagic, sizeof kMagic) != 0)
    return invalid_address("doesn't begin with ATLE");
  if (fixed.version != kVersion)
    return invalid_address(fmt::format("version {}, expected {}", fixed.version, kVersion));
  if (fixed.native_bytes != bytes.size() - sizeof fixed)
    return invalid_address(fmt::format("says {} native bytes, found {}", fixed.native_bytes,
                                       bytes.size() - sizeof fixed));
  if (fixed.checksum != fnv1a(bytes.subspan(kChecksummedFrom)))
    return invalid_address("checksum is wrong: it was damaged on its way");
  if (fixed.kind != static_cast<uint16_t>(kind))
    return invalid_address(
        fmt::format("kind {}, expected {} (1 = UCX, 2 = in-process, 3 = encrypted)", fixed.kind,
                    static_cast<int>(kind)));
  if (fixed.end_id == 0) return invalid_address("end id is 0");
  // UCX reads its header without a look at the size.
  if (kind == EndAddress::Kind::kUcx && fixed.native_bytes < kNativeBytesMin)
    return invalid_address(
        fmt::format("{} native bytes, expected at least {}", fixed.native_bytes, kNativeBytesMin));
  if (kind == EndAddress::Kind::kTls) {
    if (auto tls = decode_tls_address(bytes.subspan(sizeof fixed)); !tls) return tls.error();
  }
  EndAddress address{kind, fixed.end_id, {fixed.host, fixed.pid, fixed.start_time}, {}};
  address.native.assign(bytes.begin() + sizeof fixed, bytes.end());
  return address;
}

std::vector<std::byte> encode_tls_address(const TlsAddress& address) {
  CHECK_LE(address.host.size(), kHostBytesMax);
  std::vector<std::byte> bytes(kTlsFixedBytes + address.host.size());
  std::memcpy(bytes.data(), address.token.data(), address.token.size());
  std::memcpy(bytes.data() + address.token.size(), &address.port, sizeof address.port);
  if (!address.host.empty())
    std::memcpy(bytes.data() + kTlsFixedBytes, address.host.data(), address.host.size());
  return bytes;
}

Result<TlsAddress> decode_tls_address(std::span<const std::byte> native) {
  if (native.size() < kTlsFixedBytes || native.size() > kTlsFixedBytes + kHostBytesMax)
    return invalid_address(fmt::format("{} native bytes, expected {} to {}", native.size(),
                                       kTlsFixedBytes, kTlsFixedBytes + kHostBytesMax));
  TlsAddress address;
  std::memcpy(address.token.data(), native.data(), address.token.size());
  std::memcpy(&address.port, native.data() + address.token.size(), sizeof address.port);
  address.host.assign(reinterpret_cast<const char*>(native.data()) + kTlsFixedBytes,
                      native.size() - kTlsFixedBytes);
  // IPv4, or IPv6 with or without a zone: what getaddrinfo() reads without asking anybody.
  if (address.host.find_first_not_of("0123456789abcdefABCDEF.:%_-ghijklmnopqrstuvwxyz") !=
      std::string::npos)
    return invalid_address("its host is no numeric address");
  return address;
}

std::vector<std::byte> with_host(std::vector<std::byte> bytes, const std::string& host) {
  auto address = decode_address(bytes, EndAddress::Kind::kTls);
  if (!address) return bytes;
  auto tls = decode_tls_address(address->native);
  if (!tls || !tls->host.empty() || tls->port == 0 || host.size() > kHostBytesMax) return bytes;
  tls->host = host;
  address->native = encode_tls_address(*tls);
  return encode_address(*address);
}

uint64_t random_end_id() {
  std::random_device random;
  uint64_t id = 0;
  while (id == 0) id = (static_cast<uint64_t>(random()) << 32) | random();
  return id;
}

}  // namespace atl::transport
