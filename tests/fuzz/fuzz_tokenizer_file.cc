// A tokenizer.json.
#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <string>

#include "base/check.h"
#include "base/result.h"
#include "text/tokenizer.h"
#include "text/tokenizer_file.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace atl;
  const int file = memfd_create("tokenizer.json", MFD_CLOEXEC);
  CHECK_GE(file, 0);
  CHECK_EQ(write(file, data, size), static_cast<ssize_t>(size));
  try {
    const text::TokenizerFile read =
        text::read_tokenizer_file("/proc/self/fd/" + std::to_string(file));
    const text::Tokenizer tokenizer(read, {}, "tokenizer.json");
    const auto ids = tokenizer.encode("Hello, w\u00f6rld 123\n");
    if (ids) (void)tokenizer.decode(*ids, text::SpecialTokens::kKeep);
  } catch (const LoadError& error) {
    CHECK(error.what()[0] != '\0');
  }
  close(file);
  return 0;
}
