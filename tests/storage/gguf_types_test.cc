#include "storage/gguf/gguf_types.h"

#include <gtest/gtest.h>

#include <bit>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <set>
#include <string>
#include <vector>

#include "tests/support/golden.h"

namespace atl::storage {
namespace {

// tests/golden/gguf/make_blocks.py writes the file and says what is in it.
uint32_t read_u32(std::ifstream& in) {
  unsigned char bytes[4] = {};
  in.read(reinterpret_cast<char*>(bytes), 4);
  return bytes[0] | bytes[1] << 8 | bytes[2] << 16 | static_cast<uint32_t>(bytes[3]) << 24;
}

TEST(GgufTypes, values_are_those_of_the_gguf_package_bit_for_bit) {
  const char* more = std::getenv("ATOLL_GGUF_BLOCKS");
  std::ifstream in(more ? more : (test::tests_dir() / "golden/gguf/blocks.bin").string(),
                   std::ios::binary);
  ASSERT_TRUE(in);
  std::set<std::string_view> seen;
  uint64_t compared = 0;
  while (in.peek() != std::ifstream::traits_type::eof()) {
    const auto type = static_cast<GgmlType>(read_u32(in));
    const uint32_t blocks = read_u32(in);
    const GgmlTypeInfo& info = info_of(type);
    std::vector<std::byte> raw(blocks * info.block_bytes);
    std::vector<float> expected(blocks * static_cast<size_t>(info.block_values)), found(expected);
    in.read(reinterpret_cast<char*>(raw.data()), static_cast<std::streamsize>(raw.size()));
    in.read(reinterpret_cast<char*>(expected.data()),
            static_cast<std::streamsize>(expected.size() * sizeof(float)));
    ASSERT_TRUE(in);
    dequantize(type, raw, found);
    for (size_t i = 0; i < found.size(); ++i) {
      ASSERT_EQ(std::bit_cast<uint32_t>(found[i]), std::bit_cast<uint32_t>(expected[i]))
          << info.name << " value " << i << ": " << found[i] << ", expected " << expected[i];
    }
    seen.insert(info.name);
    compared += blocks;
  }
  EXPECT_EQ(seen.size(), 15u);
  RecordProperty("blocks", std::to_string(compared));
  for (const std::string_view name : seen) {
    EXPECT_NE(readable_ggml_types().find(name), std::string_view::npos) << name;
  }
}

TEST(GgufTypes, only_types_that_can_be_dequantized_are_called_readable) {
  int readable = 0;
  for (uint32_t number = 0; number < 64; ++number) {
    const GgmlTypeInfo* info = find_ggml_type(number);
    if (info == nullptr || !info->readable) continue;
    ++readable;
    std::vector<std::byte> block(info->block_bytes);
    std::vector<float> values(static_cast<size_t>(info->block_values), 1.0f);
    dequantize(static_cast<GgmlType>(number), block, values);
    EXPECT_EQ(values.back(), 0.0f) << info->name;  // scale 0
  }
  EXPECT_EQ(readable, 15);
  EXPECT_EQ(find_ggml_type(4), nullptr);  // Q4_2, which is no more
  EXPECT_EQ(find_ggml_type(4096), nullptr);
}

}  // namespace
}  // namespace atl::storage
