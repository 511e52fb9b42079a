// A Cap'n Proto message as each of the structs that a peer sends.
#include <capnp/message.h>
#include <capnp/serialize.h>
#include <kj/array.h>
#include <kj/exception.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "base/check.h"
#include "transport/control/control_convert.h"

namespace {

template <typename Schema, typename Read>
void read_as(capnp::MessageReader& message, const Read& read) {
  const auto value = read(message.getRoot<Schema>());
  if (!value) CHECK(!value.error().message.empty());
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace atl::transport;
  if (size == 0) return 0;
  auto words = kj::heapArray<capnp::word>((size - 1) / sizeof(capnp::word));
  std::memcpy(words.begin(), data + 1, words.size() * sizeof(capnp::word));
  (void)kj::runCatchingExceptions([&] {
    capnp::FlatArrayMessageReader message(words, {.traversalLimitInWords = 1 << 20});
    switch (data[0] == 6 ? 6 : data[0] % 6) {
      case 0:
        return read_as<schema::Hello>(message, read_hello);
      case 1:
        return read_as<schema::HelloReply>(message, read_reply);
      case 2:
        return read_as<schema::Plan>(message, read_plan);
      case 3:
        return read_as<schema::State>(message, read_state);
      case 4:
        return read_as<schema::Stats>(message, read_stats);
      case 5:
        (void)read_error(message.getRoot<schema::Error>());
        return;
      case 6:
        return read_as<schema::Trace>(message, read_trace);
    }
  });
  return 0;
}
