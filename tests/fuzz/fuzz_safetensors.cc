// The header of a safetensors file (first byte even) or the index of a sharded one (odd).
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "base/check.h"
#include "base/result.h"
#include "storage/checkpoint/safetensors_header.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace atl;
  if (size == 0) return 0;
  const std::string_view json(reinterpret_cast<const char*>(data) + 1, size - 1);
  try {
    if (data[0] % 2) {
      (void)storage::parse_safetensors_index(json, "model.safetensors.index.json");
    } else {
      const uint64_t begin = 8 + json.size(), end = begin + 4096;
      for (const storage::TensorInfo& tensor :
           storage::parse_safetensors_header(json, begin, end, "model.safetensors")) {
        CHECK(tensor.offset >= begin && tensor.offset + tensor.bytes <= end);
      }
    }
  } catch (const LoadError& error) {
    CHECK(error.what()[0] != '\0');
  }
  return 0;
}
