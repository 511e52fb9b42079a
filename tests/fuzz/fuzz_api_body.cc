// The JSON body of each of the API's requests.
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "coordinator/api/chat_request.h"
#include "coordinator/api/completion_request.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace atl::coordinator;
  const std::string_view body(reinterpret_cast<const char*>(data), size);
  const RequestLimits limits{.choices_max = 16, .vocab_limit = 1000};
  (void)parse_chat_request(body, limits);
  (void)parse_completion_request(body, limits);
  (void)parse_tokenize_chat_request(body);
  (void)parse_tokenize_text_request(body);
  (void)parse_detokenize_request(body, limits.vocab_limit);
  return 0;
}
