// The stream of messages of the encrypted link. The first byte says into which pieces it is cut.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

#include "base/check.h"
#include "transport/data/message_stream.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace atl::transport;
  if (size == 0) return 0;
  constexpr size_t kPayloadMax = 4096;
  const size_t piece = 1 + data[0] % 64;
  const bool keep = data[0] < 192;
  MessageReader reader(std::make_shared<BufferPool>(), kPayloadMax);
  std::vector<std::byte> again;  // what the messages say, which is what came in
  size_t at = 1;
  while (at < size) {
    const auto room = reader.room(keep);
    CHECK(!room.empty());
    CHECK_LE(room.size(), size_t{16} << 10);
    const size_t bytes = std::min({piece, room.size(), size - at});
    std::memcpy(room.data(), data + at, bytes);
    at += bytes;
    auto message = reader.filled(bytes);
    if (!message) {
      CHECK(!message.error().message.empty());
      return 0;
    }
    if (!*message) continue;
    CHECK(keep);
    const auto header = (*message)->header();
    const auto payload = (*message)->payload();
    CHECK_LE(payload.size(), kPayloadMax);
    const MessagePrefix prefix{kMessageMagic, static_cast<uint32_t>(header.size()), payload.size()};
    const auto* begin = reinterpret_cast<const std::byte*>(&prefix);
    again.insert(again.end(), begin, begin + sizeof prefix);
    again.insert(again.end(), header.begin(), header.end());
    again.insert(again.end(), payload.begin(), payload.end());
  }
  CHECK_LE(again.size(), size - 1);
  CHECK(again.empty() || std::memcmp(again.data(), data + 1, again.size()) == 0);
  return 0;
}
