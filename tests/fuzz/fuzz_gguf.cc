// The header of a GGUF file, whole or the beginning of a longer one.
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <variant>

#include "base/check.h"
#include "base/result.h"
#include "storage/gguf/gguf_header.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace atl;
  const auto text = std::make_shared<std::string>(reinterpret_cast<const char*>(data), size);
  for (const uint64_t file_bytes : {uint64_t{size}, uint64_t{size} + 4096}) {
    try {
      const auto header = storage::parse_gguf_header(text, file_bytes, "model.gguf");
      CHECK(header.has_value() || file_bytes > size);
      if (!header) continue;
      for (const storage::GgufTensor& tensor : header->tensors) {
        CHECK(tensor.offset >= header->data_offset);
        CHECK(tensor.offset + tensor.bytes <= file_bytes);
      }
      for (const auto& [key, value] : header->metadata) {
        const auto* array = std::get_if<storage::GgufArray>(&value);
        if (array == nullptr) continue;
        const bool strings = array->kind == storage::GgufKind::kString;
        if (strings) CHECK_EQ(array->strings().size(), array->count);
      }
    } catch (const LoadError& error) {
      CHECK(error.what()[0] != '\0');
    }
  }
  return 0;
}
