// The header of an expert pack. Its checksum is put right first: what is looked for is what lies
// behind it.
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>

#include "base/check.h"
#include "base/result.h"
#include "storage/pack/pack_format.h"

namespace {

constexpr size_t kChecksumAt = 32;  // docs/pack.md

uint64_t checksum_without_field(std::string bytes) {
  bytes.replace(kChecksumAt, sizeof(uint64_t), sizeof(uint64_t), '\0');
  return atl::storage::checksum(std::as_bytes(std::span(bytes)));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace atl;
  std::string bytes(reinterpret_cast<const char*>(data), size);
  if (bytes.size() >= kChecksumAt + sizeof(uint64_t)) {
    const uint64_t sum = checksum_without_field(bytes);
    std::memcpy(&bytes[kChecksumAt], &sum, sizeof sum);
  }
  try {
    // What was read is written so that it is read the same again.
    const std::string again =
        storage::encode_pack_header(storage::decode_pack_header(bytes, "pack.atoll"));
    CHECK(storage::encode_pack_header(storage::decode_pack_header(again, "pack.atoll")) == again);
  } catch (const LoadError& error) {
    CHECK(error.what()[0] != '\0');
  }
  return 0;
}
