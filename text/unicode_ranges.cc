#include "text/unicode_ranges.h"

#include <algorithm>
#include <array>

namespace atl::text {
namespace {

enum Category : uint8_t {
  kLu,
  kLl,
  kLt,
  kLm,
  kLo,
  kMn,
  kMc,
  kMe,
  kNd,
  kNl,
  kNo,
  kPc,
  kPd,
  kPs,
  kPe,
  kPi,
  kPf,
  kPo,
  kSm,
  kSc,
  kSk,
  kSo,
  kZs,
  kZl,
  kZp,
  kCc,
  kCf,
  kCs,
  kCo,
  kCn,
};
constexpr std::array<std::string_view, 30> kCategoryNames = {
    "Lu", "Ll", "Lt", "Lm", "Lo", "Mn", "Mc", "Me", "Nd", "Nl", "No", "Pc", "Pd", "Ps", "Pe",
    "Pi", "Pf", "Po", "Sm", "Sc", "Sk", "So", "Zs", "Zl", "Zp", "Cc", "Cf", "Cs", "Co", "Cn"};

struct CategoryRange {
  uint32_t first;
  uint32_t last;
  Category in_16_0;
  Category in_14_0;
};
constexpr CategoryRange kCategoryRanges[] = {
#include "text/unicode_ranges_data.inc"
};

constexpr CodePointRange kWhiteSpace[] = {
    {0x09, 0x0D},     {0x20, 0x20},     {0x85, 0x85},     {0xA0, 0xA0},     {0x1680, 0x1680},
    {0x2000, 0x200A}, {0x2028, 0x2029}, {0x202F, 0x202F}, {0x205F, 0x205F}, {0x3000, 0x3000}};

constexpr uint32_t kCodePointMax = 0x10FFFF;
constexpr uint32_t kSurrogateFirst = 0xD800;
constexpr uint32_t kSurrogateLast = 0xDFFF;

void append(CodePointSet& set, uint32_t first, uint32_t last) {
  if (!set.empty() && set.back().last + 1 == first) {
    set.back().last = last;
  } else {
    set.push_back({first, last});
  }
}

}  // namespace

std::optional<CodePointSet> general_category(std::string_view name, UnicodeVersion version) {
  if (name.empty() || name.size() > 2) return std::nullopt;
  bool known = false;
  std::array<bool, kCategoryNames.size()> wanted{};
  for (size_t i = 0; i < kCategoryNames.size(); ++i) {
    wanted[i] = kCategoryNames[i].starts_with(name);
    known = known || wanted[i];
  }
  if (!known) return std::nullopt;
  CodePointSet set;
  for (const CategoryRange& range : kCategoryRanges) {
    const Category category = version == UnicodeVersion::k16_0 ? range.in_16_0 : range.in_14_0;
    if (wanted[category]) append(set, range.first, range.last);
  }
  return set;
}

std::optional<CodePointSet> script(std::string_view name) {
  if (name != "Han") return std::nullopt;
  return CodePointSet{
      {0x2E80, 0x2E99},   {0x2E9B, 0x2EF3},   {0x2F00, 0x2FD5},   {0x3005, 0x3005},
      {0x3007, 0x3007},   {0x3021, 0x3029},   {0x3038, 0x303B},   {0x3400, 0x4DBF},
      {0x4E00, 0x9FFF},   {0xF900, 0xFA6D},   {0xFA70, 0xFAD9},   {0x16FE2, 0x16FE3},
      {0x16FF0, 0x16FF1}, {0x20000, 0x2A6DF}, {0x2A700, 0x2B739}, {0x2B740, 0x2B81D},
      {0x2B820, 0x2CEA1}, {0x2CEB0, 0x2EBE0}, {0x2EBF0, 0x2EE5D}, {0x2F800, 0x2FA1D},
      {0x30000, 0x3134A}, {0x31350, 0x323AF}};
}

CodePointSet united(CodePointSet ranges) {
  std::sort(ranges.begin(), ranges.end(),
            [](const auto& a, const auto& b) { return a.first < b.first; });
  CodePointSet out;
  for (const CodePointRange& range : ranges) {
    if (!out.empty() && range.first <= out.back().last + 1) {
      out.back().last = std::max(out.back().last, range.last);
    } else {
      out.push_back(range);
    }
  }
  return out;
}

CodePointSet intersection(const CodePointSet& a, const CodePointSet& b) {
  return difference(a, complement(b));
}

std::span<const CodePointRange> white_space() { return kWhiteSpace; }

CodePointSet difference(const CodePointSet& a, const CodePointSet& b) {
  CodePointSet out;
  size_t j = 0;
  for (const CodePointRange& range : a) {
    uint32_t next = range.first;  // the first code point of `range` that isn't decided yet
    bool open = true;
    while (j < b.size() && b[j].last < range.first) ++j;
    for (size_t k = j; k < b.size() && b[k].first <= range.last && open; ++k) {
      if (b[k].first > next) out.push_back({next, b[k].first - 1});
      open = b[k].last < range.last;
      next = b[k].last + 1;
    }
    if (open) out.push_back({next, range.last});
  }
  return out;
}

CodePointSet complement(const CodePointSet& set) {
  return difference({{0, kSurrogateFirst - 1}, {kSurrogateLast + 1, kCodePointMax}}, set);
}

}  // namespace atl::text
