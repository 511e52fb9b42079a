// The printable stand-ins of bytes in byte-level BPE vocabularies (GPT-2's bytes_to_unicode).
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace atl::text {

// Bytes 33..126, 161..172 and 174..255 stand for themselves; the other 68, ascending, are U+0100
// and on (space is U+0120, newline U+010A). Source: openai/gpt-2, src/encoder.py.
uint32_t byte_to_code_point(uint8_t byte);

// The byte string that a token's text stands for; nothing if a character is outside of the
// alphabet.
std::optional<std::string> bytes_of_alphabet_text(std::string_view text);

// `bytes` in the alphabet, as UTF-8.
std::string alphabet_text_of_bytes(std::string_view bytes);

}  // namespace atl::text
