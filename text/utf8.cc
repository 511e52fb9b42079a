#include "text/utf8.h"

namespace atl::text {
namespace {

// What may follow a first byte. Source: Unicode Standard, table 3-7.
struct Lead {
  int num_bytes = 0;  // 0: no character starts with this byte
  uint8_t second_min = 0x80;
  uint8_t second_max = 0xBF;
};

Lead lead_of(uint8_t byte) {
  if (byte < 0x80) return {1};
  if (byte < 0xC2) return {0};
  if (byte < 0xE0) return {2};
  if (byte == 0xE0) return {3, 0xA0, 0xBF};
  if (byte == 0xED) return {3, 0x80, 0x9F};
  if (byte < 0xF0) return {3};
  if (byte == 0xF0) return {4, 0x90, 0xBF};
  if (byte < 0xF4) return {4};
  if (byte == 0xF4) return {4, 0x80, 0x8F};
  return {0};
}

}  // namespace

Utf8Unit next_utf8_unit(std::string_view text) {
  const auto first = static_cast<uint8_t>(text[0]);
  const Lead lead = lead_of(first);
  if (lead.num_bytes == 0) return {Utf8Unit::Kind::kInvalid, 1, 0};
  if (lead.num_bytes == 1) return {Utf8Unit::Kind::kCharacter, 1, first};
  const auto length = static_cast<size_t>(lead.num_bytes);
  uint32_t code_point = first & (0x7Fu >> length);
  for (size_t i = 1; i < length; ++i) {
    if (i == text.size()) return {Utf8Unit::Kind::kIncomplete, i, 0};
    const auto byte = static_cast<uint8_t>(text[i]);
    const uint8_t min = i == 1 ? lead.second_min : 0x80;
    const uint8_t max = i == 1 ? lead.second_max : 0xBF;
    if (byte < min || byte > max) return {Utf8Unit::Kind::kInvalid, i, 0};
    code_point = code_point << 6 | (byte & 0x3Fu);
  }
  return {Utf8Unit::Kind::kCharacter, length, code_point};
}

bool is_valid_utf8(std::string_view text) {
  while (!text.empty()) {
    const Utf8Unit unit = next_utf8_unit(text);
    if (unit.kind != Utf8Unit::Kind::kCharacter) return false;
    text.remove_prefix(unit.num_bytes);
  }
  return true;
}

std::string repair_utf8(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  Utf8StreamRepairer repairer;
  repairer.push(text, out);
  repairer.flush(out);
  return out;
}

void append_utf8(uint32_t code_point, std::string& out) {
  const auto put = [&out](uint32_t byte) { out.push_back(static_cast<char>(byte)); };
  if (code_point < 0x80) {
    put(code_point);
  } else if (code_point < 0x800) {
    put(0xC0 | code_point >> 6);
    put(0x80 | (code_point & 0x3F));
  } else if (code_point < 0x10000) {
    put(0xE0 | code_point >> 12);
    put(0x80 | (code_point >> 6 & 0x3F));
    put(0x80 | (code_point & 0x3F));
  } else {
    put(0xF0 | code_point >> 18);
    put(0x80 | (code_point >> 12 & 0x3F));
    put(0x80 | (code_point >> 6 & 0x3F));
    put(0x80 | (code_point & 0x3F));
  }
}

void Utf8StreamRepairer::push(std::string_view bytes, std::string& out) {
  std::string joined;
  if (!held_.empty()) {
    joined = held_ + std::string(bytes);
    bytes = joined;
    held_.clear();
  }
  while (!bytes.empty()) {
    const Utf8Unit unit = next_utf8_unit(bytes);
    switch (unit.kind) {
      case Utf8Unit::Kind::kCharacter:
        out.append(bytes.substr(0, unit.num_bytes));
        break;
      case Utf8Unit::Kind::kInvalid:
        out.append(kReplacementCharacter);
        break;
      case Utf8Unit::Kind::kIncomplete:
        held_ = std::string(bytes);
        break;
    }
    bytes.remove_prefix(unit.num_bytes);
  }
}

void Utf8StreamRepairer::flush(std::string& out) {
  if (!held_.empty()) out.append(kReplacementCharacter);
  held_.clear();
}

}  // namespace atl::text
