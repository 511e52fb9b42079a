// The smallest byte-level vocabulary: a token for each byte, and one that ends a text.
#pragma once

#include <string>

#include "text/byte_alphabet.h"
#include "text/tokenizer.h"

namespace atl::fuzz {

inline constexpr int32_t kEnd = 256;

inline text::Tokenizer byte_tokenizer() {
  text::TokenizerFile file;
  for (int byte = 0; byte < 256; ++byte) {
    file.vocab.push_back(
        {text::alphabet_text_of_bytes(std::string(1, static_cast<char>(byte))), byte});
  }
  text::AddedToken end;
  end.id = kEnd;
  end.content = "<end>";
  end.special = true;
  file.added_tokens.push_back(end);
  return text::Tokenizer(file, {}, "bytes");
}

}  // namespace atl::fuzz
