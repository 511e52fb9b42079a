#include "storage/gguf/gguf_header.h"

#include <gtest/gtest.h>

#include <memory>
#include <string>

#include "base/result.h"
#include "tests/support/gguf_bytes.h"

namespace atl::storage {
namespace {

using test::GgufBytes;

GgufHeader parse(const std::string& file) {
  auto header = parse_gguf_header(std::make_shared<std::string>(file), file.size(), "m.gguf");
  EXPECT_TRUE(header.has_value());
  return std::move(*header);
}

std::string error_of(const std::string& file, uint64_t file_bytes = 0) {
  try {
    parse_gguf_header(std::make_shared<std::string>(file), file_bytes ? file_bytes : file.size(),
                      "m.gguf");
  } catch (const LoadError& error) {
    return error.what();
  }
  return "no error";
}

GgufBytes whole(uint32_t version = 3) {
  GgufBytes bytes(version);
  bytes.string("general.architecture", "deepseek2")
      .integer("deepseek2.block_count", 61)
      .number("deepseek2.rope.freq_base", 10000)
      .boolean("flag", true)
      .strings("tokens", {"a", "", "\xc3\xa9"})
      .integers("types", {1, -3})
      .tensor("v", {3}, 0, std::string(12, 'v'))
      .tensor("w", {2, 32}, 8, std::string(68, 'w'));
  return bytes;
}

TEST(GgufHeader, reads_keys_and_tensors_of_both_versions) {
  for (const uint32_t version : {2u, 3u}) {
    const std::string file = whole(version).file();
    const GgufHeader header = parse(file);
    EXPECT_EQ(header.version, version);
    EXPECT_EQ(std::get<std::string_view>(*header.find("general.architecture")), "deepseek2");
    EXPECT_EQ(std::get<uint64_t>(*header.find("deepseek2.block_count")), 61u);
    EXPECT_EQ(std::get<double>(*header.find("deepseek2.rope.freq_base")), 10000.0);
    EXPECT_TRUE(std::get<bool>(*header.find("flag")));
    EXPECT_EQ(std::get<GgufArray>(*header.find("tokens")).strings(),
              (std::vector<std::string_view>{"a", "", "\xc3\xa9"}));
    EXPECT_EQ(std::get<GgufArray>(*header.find("types")).integers(), (std::vector<int64_t>{1, -3}));
    EXPECT_EQ(header.find("nothing"), nullptr);
    ASSERT_EQ(header.tensors.size(), 2u);
    const GgufTensor& w = header.tensors[1];
    EXPECT_EQ(w.name, "w");
    EXPECT_EQ(w.shape, (std::vector<int64_t>{2, 32}));
    EXPECT_EQ(w.bytes, 68u);
    EXPECT_EQ(file.substr(w.offset, w.bytes), std::string(68, 'w'));
  }
}

TEST(GgufHeader, asks_for_more_of_the_file_while_the_header_goes_on) {
  const std::string file = whole().file();
  const uint64_t header_bytes = parse(file).data_offset - 31;  // at least
  for (size_t bytes = 0; bytes < header_bytes; ++bytes) {
    EXPECT_FALSE(parse_gguf_header(std::make_shared<std::string>(file.substr(0, bytes)),
                                   file.size(), "m.gguf"))
        << bytes;
  }
}

TEST(GgufHeader, a_file_that_ends_anywhere_is_refused) {
  const std::string file = whole().file();
  for (size_t bytes = 0; bytes < file.size(); ++bytes) {
    EXPECT_NE(error_of(file.substr(0, bytes)), "no error") << bytes;
  }
}

TEST(GgufHeader, wrong_files_are_one_line_that_says_what_is_wrong) {
  const std::string ten(10, 'x');
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"JUNK" + ten, "m.gguf: not a GGUF file: it doesn't begin with the letters GGUF"},
      {GgufBytes(1).file(), "m.gguf: version 1 of GGUF, expected 2 or 3"},
      {GgufBytes(0x03000000).file(),
       "m.gguf: a GGUF file of a big-endian machine, which isn't supported"},
      {GgufBytes().string("k", "v").string("k", "w").file(),
       "m.gguf: key \"k\": it is there twice"},
      {GgufBytes().key("k", 13, ten).file(),
       "m.gguf: key \"k\": a value of kind 13, expected 0 to 12"},
      {GgufBytes().key("k", 7, "\x02").file(), "m.gguf: key \"k\": a bool of 2, expected 0 or 1"},
      {GgufBytes().key("k", 9, GgufBytes::u32(9) + GgufBytes::u64(1)).file(),
       "m.gguf: key \"k\": an array of arrays"},
      {GgufBytes().key("k", 9, GgufBytes::u32(10) + GgufBytes::u64(uint64_t{1} << 62)).file(),
       "m.gguf: key \"k\": an array of 4611686018427387904 values"},
      {GgufBytes().key("k", 8, GgufBytes::u64(1000)).file(),
       "m.gguf: key \"k\": 1000 bytes at offset 45 of a file of 64: the file is cut off or "
       "damaged"},
      {GgufBytes().integer("general.alignment", 24).file(),
       "m.gguf: general.alignment: expected a power of two up to 1048576"},
      {GgufBytes().tensor("t", {1}, 0, "1234").tensor("t", {1}, 0, "1234").file(),
       "m.gguf: tensor \"t\": it is there twice"},
      {GgufBytes().tensor("t", {1}, 77, "1234").file(),
       "m.gguf: tensor \"t\": type 77, which this program doesn't know; it reads F32, F16, BF16, "
       "Q8_0, Q6_K, Q5_K, Q5_1, Q5_0, Q4_K, Q4_1, Q4_0, IQ4_XS, IQ4_NL, Q3_K, Q2_K"},
      {GgufBytes().tensor("t", {2, 48}, 8, ten).file(),
       "m.gguf: tensor \"t\": rows of 48 values, expected whole Q8_0 blocks of 32"},
      {GgufBytes().tensor("t", {0}, 0, "").file(),
       "m.gguf: tensor \"t\": dimension 0 is 0: more values than a file can have, or none"},
      {GgufBytes().tensor("t", {uint64_t{1} << 40, uint64_t{1} << 40}, 0, "").file(),
       "m.gguf: tensor \"t\": dimension 1 is 1099511627776: more values than a file can have, or "
       "none"},
      {GgufBytes().tensor("t", {}, 0, "").file(),
       "m.gguf: tensor \"t\": 0 dimensions, expected 1 to 4"},
      {GgufBytes().tensor("t", {4}, 0, "1234").file(),
       "m.gguf: tensor \"t\": 16 bytes at offset 0 of 4 bytes of data: the file is cut off or "
       "damaged"},
      {GgufBytes().entry("t", {1}, 0, ~uint64_t{0} - 31).file(),
       "m.gguf: tensor \"t\": 4 bytes at offset 18446744073709551584 of 0 bytes of data: the file "
       "is cut off or damaged"},
      {GgufBytes().entry("t", {1}, 0, 4).tensor("u", {4}, 0, std::string(16, 'u')).file(),
       "m.gguf: tensor \"t\": offset 4, expected a multiple of 32"},
      {GgufBytes().entry("t", {1}, 0, 0).tensor("u", {4}, 0, std::string(16, 'u')).file(),
       "m.gguf: tensor \"u\": its data overlap those of \"t\""},
  };
  for (const auto& [file, message] : cases) EXPECT_EQ(error_of(file), message);
}

TEST(GgufHeader, counts_beyond_any_model_are_refused_before_they_cost_memory) {
  std::string file = GgufBytes().file();
  file.replace(8, 8, GgufBytes::u64(~uint64_t{0}));
  EXPECT_EQ(error_of(file, uint64_t{1} << 40),
            "m.gguf: 18446744073709551615 tensors and 0 keys, expected at most 131072 and 65536");
}

TEST(GgufHeader, arrays_of_another_kind_are_refused) {
  const GgufHeader header = parse(GgufBytes().strings("s", {"a"}).integers("i", {1}).file());
  EXPECT_THROW((void)std::get<GgufArray>(*header.find("s")).integers(), LoadError);
  EXPECT_THROW((void)std::get<GgufArray>(*header.find("i")).strings(), LoadError);
}

}  // namespace
}  // namespace atl::storage
