// A chat template: read, and rendered with a conversation.
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "base/check.h"
#include "base/result.h"
#include "text/chat_template.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace atl;
  constexpr std::string_view kVariables =
      R"({"messages":[{"role":"system","content":"S"},{"role":"user","content":"hi"},)"
      R"({"role":"assistant","content":null,"tool_calls":[{"id":"1","type":"function",)"
      R"("function":{"name":"f","arguments":"{\"x\": 1}"}}]},{"role":"tool","content":"2"}],)"
      R"("tools":[],"add_generation_prompt":true,"bos_token":"<b>","eos_token":"<e>"})";
  text::ChatTemplateLimits limits;
  limits.output_bytes_max = size_t{1} << 20;
  limits.steps_max = 200'000;
  try {
    const text::ChatTemplate chat_template({reinterpret_cast<const char*>(data), size}, "fuzz",
                                           limits);
    const auto text = chat_template.render(kVariables);
    if (text) {
      CHECK_LE(text->size(), limits.output_bytes_max);
    } else {
      CHECK(!text.error().message.empty());
    }
  } catch (const LoadError& error) {
    CHECK(error.what()[0] != '\0');
  }
  return 0;
}
