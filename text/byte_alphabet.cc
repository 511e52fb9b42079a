#include "text/byte_alphabet.h"

#include <array>

#include "text/utf8.h"

namespace atl::text {
namespace {

constexpr uint32_t kAlphabetEnd = 0x100 + 68;

constexpr bool stands_for_itself(uint32_t byte) {
  return (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
}

constexpr std::array<uint32_t, 256> make_code_points() {
  std::array<uint32_t, 256> table{};
  uint32_t next = 0x100;
  for (uint32_t byte = 0; byte < 256; ++byte) table[byte] = stands_for_itself(byte) ? byte : next++;
  return table;
}
constexpr std::array<uint32_t, 256> kCodePoints = make_code_points();

constexpr std::array<int16_t, kAlphabetEnd> make_bytes() {
  std::array<int16_t, kAlphabetEnd> table{};
  for (int16_t& entry : table) entry = -1;
  for (uint32_t byte = 0; byte < 256; ++byte) {
    table[kCodePoints[byte]] = static_cast<int16_t>(byte);
  }
  return table;
}
constexpr std::array<int16_t, kAlphabetEnd> kBytes = make_bytes();

}  // namespace

uint32_t byte_to_code_point(uint8_t byte) { return kCodePoints[byte]; }

std::optional<std::string> bytes_of_alphabet_text(std::string_view text) {
  std::string out;
  while (!text.empty()) {
    const Utf8Unit unit = next_utf8_unit(text);
    if (unit.kind != Utf8Unit::Kind::kCharacter || unit.code_point >= kAlphabetEnd ||
        kBytes[unit.code_point] < 0) {
      return std::nullopt;
    }
    out.push_back(static_cast<char>(kBytes[unit.code_point]));
    text.remove_prefix(unit.num_bytes);
  }
  return out;
}

std::string alphabet_text_of_bytes(std::string_view bytes) {
  std::string out;
  for (char byte : bytes) append_utf8(kCodePoints[static_cast<uint8_t>(byte)], out);
  return out;
}

}  // namespace atl::text
