// The address of a transport end, as a peer sends it in the handshake.
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "base/check.h"
#include "transport/data/end_address.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace atl::transport;
  const std::span<const std::byte> bytes(reinterpret_cast<const std::byte*>(data), size);
  for (const auto kind :
       {EndAddress::Kind::kUcx, EndAddress::Kind::kInProcess, EndAddress::Kind::kTls}) {
    const auto address = decode_address(bytes, kind);
    if (!address) {
      CHECK(!address.error().message.empty());
      continue;
    }
    const std::vector<std::byte> again = encode_address(*address);
    CHECK(std::equal(again.begin(), again.end(), bytes.begin(), bytes.end()));
  }
  // Behind the checksum, which random bytes don't have.
  if (const auto tls = decode_tls_address(bytes)) {
    const std::vector<std::byte> again = encode_tls_address(*tls);
    CHECK(std::equal(again.begin(), again.end(), bytes.begin(), bytes.end()));
    const auto whole = encode_address({EndAddress::Kind::kTls, 1, {}, again});
    const auto with = decode_address(with_host(whole, "10.0.0.1"), EndAddress::Kind::kTls);
    CHECK(with.has_value());
    CHECK(decode_tls_address(with->native).has_value());
  }
  return 0;
}
