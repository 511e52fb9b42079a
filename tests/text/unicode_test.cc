// Character classes: what a translated pattern matches, over every scalar value.
#define PCRE2_CODE_UNIT_WIDTH 8
#include <fmt/core.h>
#include <gtest/gtest.h>
#include <pcre2.h>

#include "base/result.h"
#include "text/byte_alphabet.h"
#include "text/regex_translation.h"
#include "text/unicode_ranges.h"
#include "text/utf8.h"

namespace atl::text {
namespace {

const std::string& all_scalar_values() {
  static const std::string text = [] {
    std::string out;
    for (uint32_t c = 0; c <= 0x10FFFF; ++c) {
      if (c < 0xD800 || c > 0xDFFF) append_utf8(c, out);
    }
    return out;
  }();
  return text;
}

// The scalar values that the translation of `pattern` matches, a pattern for one character.
CodePointSet matched_by(const std::string& pattern, PcreProperties properties) {
  const std::string translated = "(?:" + translate_pattern(pattern, properties) + ")";
  int error = 0;
  PCRE2_SIZE offset = 0;
  pcre2_code* code =
      pcre2_compile(reinterpret_cast<PCRE2_SPTR>(translated.data()), translated.size(),
                    PCRE2_UTF | PCRE2_MULTILINE, &error, &offset, nullptr);
  EXPECT_NE(code, nullptr) << pattern;
  pcre2_jit_compile(code, PCRE2_JIT_COMPLETE);
  pcre2_match_data* data = pcre2_match_data_create(1, nullptr);
  const std::string& text = all_scalar_values();
  CodePointSet set;
  PCRE2_SIZE from = 0;
  while (pcre2_match(code, reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), from,
                     PCRE2_NO_UTF_CHECK, data, nullptr) > 0) {
    const PCRE2_SIZE begin = pcre2_get_ovector_pointer(data)[0];
    from = pcre2_get_ovector_pointer(data)[1];
    const uint32_t c = next_utf8_unit(std::string_view(text).substr(begin)).code_point;
    if (!set.empty() && set.back().last + 1 == c) {
      set.back().last = c;
    } else {
      set.push_back({c, c});
    }
  }
  pcre2_match_data_free(data);
  pcre2_code_free(code);
  return set;
}

// PCRE2's own classes are those of the enum's name only on a PCRE2 of that version.
PcreProperties own_properties() {
  char version[32] = {};
  pcre2_config(PCRE2_CONFIG_UNICODE_VERSION, version);
  if (std::string_view(version) == "14.0.0") return PcreProperties::kUnicode14;
  if (std::string_view(version) == "16.0.0") return PcreProperties::kUnicode16;
  return PcreProperties::kUnknown;
}

CodePointSet scalar_values_of(std::string_view category) {
  return complement(complement(*general_category(category, UnicodeVersion::k16_0)));
}

void expect_all_forms(std::string_view name, PcreProperties properties) {
  const CodePointSet in = scalar_values_of(name);
  const CodePointSet out = complement(in);
  const std::string p = fmt::format("\\p{{{}}}", name);
  const std::string not_p = fmt::format("\\P{{{}}}", name);
  EXPECT_TRUE(matched_by(p, properties) == in) << p;
  EXPECT_TRUE(matched_by("[" + p + "]", properties) == in) << p;
  EXPECT_TRUE(matched_by("[^" + not_p + "]", properties) == in) << p;
  EXPECT_TRUE(matched_by(not_p, properties) == out) << p;
  EXPECT_TRUE(matched_by("[^" + p + "]", properties) == out) << p;
  EXPECT_TRUE(matched_by("[" + not_p + "]", properties) == out) << p;
  EXPECT_TRUE(matched_by(fmt::format("\\p{{^{}}}", name), properties) == out) << p;
}

TEST(UnicodeClasses, categories_in_and_outside_of_brackets_negated_or_not) {
  for (const char* name : {"L", "M", "N", "P", "S", "Z", "C", "Mn"}) {
    expect_all_forms(name, own_properties());
  }
}

TEST(UnicodeClasses, the_same_without_trust_in_the_tables_of_pcre2) {
  for (const char* name : {"M", "N", "Z"}) expect_all_forms(name, PcreProperties::kUnknown);
}

TEST(UnicodeClasses, every_subcategory) {
  for (const char* name :
       {"Lu", "Ll", "Lt", "Lm", "Lo", "Mn", "Mc", "Me", "Nd", "Nl", "No", "Pc", "Pd", "Ps", "Pe",
        "Pi", "Pf", "Po", "Sm", "Sc", "Sk", "So", "Zs", "Zl", "Zp", "Cc", "Cf", "Co", "Cn"}) {
    EXPECT_TRUE(matched_by(fmt::format("\\p{{{}}}", name), own_properties()) ==
                scalar_values_of(name))
        << name;
  }
}

TEST(UnicodeClasses, white_space_is_the_25_code_points) {
  const CodePointSet spaces(white_space().begin(), white_space().end());
  uint32_t count = 0;
  for (const CodePointRange& range : spaces) count += range.last - range.first + 1;
  EXPECT_EQ(count, 25u);
  for (const char* pattern : {"\\s", "[\\s]", "[^\\S]"}) {
    EXPECT_EQ(matched_by(pattern, own_properties()), spaces) << pattern;
  }
  for (const char* pattern : {"\\S", "[\\S]", "[^\\s]"}) {
    EXPECT_EQ(matched_by(pattern, own_properties()), complement(spaces)) << pattern;
  }
  EXPECT_TRUE(matched_by("[\\s\\S]", own_properties()) == complement({}));
}

TEST(UnicodeClasses, code_points_that_are_newer_than_14_0) {
  const auto is_in = [](const CodePointSet& set, uint32_t c) {
    for (const CodePointRange& range : set) {
      if (c >= range.first && c <= range.last) return true;
    }
    return false;
  };
  const CodePointSet letters = matched_by("\\p{L}", own_properties());
  EXPECT_TRUE(is_in(letters, 0x323AF));  // 15.0, ideograph extension H
  EXPECT_TRUE(is_in(letters, 0x2EBF0));  // 15.1, ideograph extension I
  EXPECT_TRUE(is_in(letters, 0x1C89));   // 16.0, Cyrillic
  EXPECT_FALSE(is_in(letters, 0x088F));  // assigned in 17.0
  EXPECT_TRUE(is_in(matched_by("\\p{Mc}", own_properties()), 0x1171E));  // Mn until 14.0
  EXPECT_FALSE(is_in(matched_by("\\p{Mn}", own_properties()), 0x1171E));
}

TEST(RegexTranslation, escapes_mean_what_they_mean_in_oniguruma) {
  const auto matches = [](const char* pattern) { return matched_by(pattern, own_properties()); };
  EXPECT_EQ(matches("\\h"), (CodePointSet{{'0', '9'}, {'A', 'F'}, {'a', 'f'}}));
  EXPECT_EQ(matches("\\v"), (CodePointSet{{0x0B, 0x0B}}));
  EXPECT_EQ(matches("\\d"), scalar_values_of("Nd"));
  EXPECT_EQ(matches("[\\b\\t\\n\\r\\f\\a\\e]"),
            (CodePointSet{{7, 0x0A}, {0x0C, 0x0D}, {0x1B, 0x1B}}));
  EXPECT_EQ(matches("\\x41|\\x{1F600}|\\u00e9"),
            (CodePointSet{{0x41, 0x41}, {0xE9, 0xE9}, {0x1F600, 0x1F600}}));
  EXPECT_EQ(matches("[\\-\\]\\[\\^a-c-]"),
            (CodePointSet{{'-', '-'}, {'[', '['}, {']', '^'}, {'a', 'c'}}));
  EXPECT_EQ(matches("[]a]"), (CodePointSet{{']', ']'}, {'a', 'a'}}));
  EXPECT_EQ(matches("[\u0800-\uFFFD]"), (CodePointSet{{0x800, 0xD7FF}, {0xE000, 0xFFFD}}));
  EXPECT_EQ(matches("[.$*(|]"),
            (CodePointSet{{'$', '$'}, {'(', '('}, {'*', '*'}, {'.', '.'}, {'|', '|'}}));
  EXPECT_EQ(matches("\\.|\\/|#| "), (CodePointSet{{' ', ' '}, {'#', '#'}, {'.', '/'}}));
  EXPECT_EQ(matches("."), complement({{'\n', '\n'}}));
}

TEST(RegexTranslation, keeps_operators_and_writes_intervals_out) {
  const auto translate = [](const char* p) {
    return translate_pattern(p, PcreProperties::kUnicode16);
  };
  EXPECT_EQ(translate("(?:.*+|.+?)?(?=^)(?!$)(?<=.)(?<!.)(?>.)(?i:.)(.)"),
            "(?:.*+|.+?)?(?=^)(?!$)(?<=.)(?<!.)(?>.)(?i:.)(.)");
  EXPECT_EQ(translate(".{2}.{2,}.{,3}.{2,3}?"), ".{2}.{2,}.{0,3}.{2,3}?");
  EXPECT_EQ(translate(".{,}{x"), ".\\x{7B}\\x{2C}\\x{7D}\\x{7B}\\x{78}");
  EXPECT_EQ(translate("\\p{L}\\A\\z\\Z"), "[\\p{L}]\\A\\z\\Z");
}

TEST(CodePointSets, difference_and_complement) {
  EXPECT_EQ(difference({{0, 9}}, {{3, 4}, {6, 6}}), (CodePointSet{{0, 2}, {5, 5}, {7, 9}}));
  EXPECT_EQ(difference({{0, 9}, {20, 29}}, {{5, 24}}), (CodePointSet{{0, 4}, {25, 29}}));
  EXPECT_EQ(difference({{5, 9}}, {{0, 20}}), CodePointSet{});
  EXPECT_EQ(difference({{5, 9}}, {}), (CodePointSet{{5, 9}}));
  EXPECT_EQ(complement({}), (CodePointSet{{0, 0xD7FF}, {0xE000, 0x10FFFF}}));
  EXPECT_EQ(general_category("Xx", UnicodeVersion::k16_0), std::nullopt);
  EXPECT_EQ(general_category("", UnicodeVersion::k16_0), std::nullopt);
}

TEST(Utf8, decodes_all_scalar_values_and_nothing_else) {
  EXPECT_TRUE(is_valid_utf8(all_scalar_values()));
  EXPECT_EQ(repair_utf8(all_scalar_values()), all_scalar_values());
  for (const char* bad :
       {"\x80", "\xC0\x80", "\xC1\xBF", "\xE0\x9F\xBF", "\xED\xA0\x80", "\xF0\x8F\xBF\xBF",
        "\xF4\x90\x80\x80", "\xF5\x80\x80\x80", "\xFF", "\xC3"}) {
    EXPECT_FALSE(is_valid_utf8(bad));
  }
}

// The example of the Unicode Standard, section 3.9, table 3-8 and the ones after it.
TEST(Utf8, replaces_maximal_subparts) {
  const auto repaired = [](std::string_view text) {
    std::string out = repair_utf8(text);
    for (size_t at; (at = out.find(kReplacementCharacter)) != std::string::npos;)
      out.replace(at, 3, "?");
    return out;
  };
  EXPECT_EQ(repaired("\xC0\xAF\xE0\x80\xBF\xF0\x81\x82\x41"), "????????A");
  EXPECT_EQ(repaired("\xED\xA0\x80\xED\xBF\xBF\xED\xAF\x41"), "????????A");
  EXPECT_EQ(repaired("\xF4\x91\x92\x93\xFF\x41\x80\xBF\x42"), "?????A??B");
  EXPECT_EQ(repaired("\xE1\x80\xE2\xF0\x91\x92\xF1\xBF\x41"), "????A");
}

TEST(Utf8, a_stream_cut_anywhere_is_repaired_like_the_whole) {
  const std::string text =
      "aé中😀\xF0\x9F\x98\xE2\x82"
      "b\xFF\xC3";
  for (size_t first = 0; first <= text.size(); ++first) {
    for (size_t second = first; second <= text.size(); ++second) {
      Utf8StreamRepairer repairer;
      std::string out;
      repairer.push(std::string_view(text).substr(0, first), out);
      repairer.push(std::string_view(text).substr(first, second - first), out);
      repairer.push(std::string_view(text).substr(second), out);
      repairer.flush(out);
      ASSERT_EQ(out, repair_utf8(text)) << first << " " << second;
    }
  }
}

TEST(ByteAlphabet, maps_every_byte_and_back) {
  EXPECT_EQ(byte_to_code_point(' '), 0x120u);
  EXPECT_EQ(byte_to_code_point('\n'), 0x10Au);
  EXPECT_EQ(byte_to_code_point('A'), static_cast<uint32_t>('A'));
  EXPECT_EQ(byte_to_code_point(0xAD), 0x143u);
  std::string bytes;
  for (int byte = 0; byte < 256; ++byte) bytes.push_back(static_cast<char>(byte));
  EXPECT_EQ(bytes_of_alphabet_text(alphabet_text_of_bytes(bytes)), bytes);
  EXPECT_EQ(bytes_of_alphabet_text("a b"), std::nullopt);
  EXPECT_EQ(bytes_of_alphabet_text("｜"), std::nullopt);
}

}  // namespace
}  // namespace atl::text
