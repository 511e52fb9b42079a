// Text through the tokenizer of a small model and back; what is well formed comes back as it was.
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "base/check.h"
#include "text/tokenizer.h"
#include "text/utf8.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace atl::text;
  static const Tokenizer tokenizer = Tokenizer::load(ATOLL_SOURCE_DIR "/tests/models/tiny-fp8");
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const auto ids = tokenizer.encode(text, {.parse_added_tokens = false});
  if (!ids) {
    CHECK(!ids.error().message.empty());
    return 0;
  }
  const std::string back = tokenizer.decode(*ids, SpecialTokens::kKeep);
  if (is_valid_utf8(text)) CHECK(back == text);
  (void)tokenizer.encode(text, {.parse_added_tokens = true});
  return 0;
}
