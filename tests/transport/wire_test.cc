#include "transport/data/wire.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>

namespace atl::transport {
namespace {

class TestMessage final : public Message {
 public:
  TestMessage(std::vector<std::byte> header, std::span<const std::byte> payload)
      : header_(std::move(header)),
        payload_(std::max<size_t>(payload.size(), 1)),
        payload_bytes_(payload.size()) {
    if (!payload.empty()) std::memcpy(payload_.data(), payload.data(), payload.size());
  }
  std::span<const std::byte> header() const override { return header_; }
  std::span<const std::byte> payload() const override { return {payload_.data(), payload_bytes_}; }

 private:
  std::vector<std::byte> header_;
  HostBuffer payload_;
  size_t payload_bytes_;
};

WireLimits test_limits() { return {16, 320, 4, 6, 32, 16, WireRowType::kBf16}; }

DispatchNames test_names() {
  return {SessionId(0x0123456789abcdef), DispatchId(0xfedcba9876543210), Epoch(7), 5};
}

struct TestFrame {
  std::vector<std::byte> header;
  std::vector<std::byte> payload;

  template <typename T>
  void set(size_t offset, T value) {
    ASSERT_LE(offset + sizeof value, header.size());
    std::memcpy(header.data() + offset, &value, sizeof value);
  }
  template <typename T>
  void set_payload(size_t offset, T value) {
    ASSERT_LE(offset + sizeof value, payload.size());
    std::memcpy(payload.data() + offset, &value, sizeof value);
  }
};

// 3 rows; row r chooses experts r, 8 + r, -1, 31 with weights (r + 1) / 8.
TestFrame test_dispatch() {
  const WireLimits limits = test_limits();
  TestFrame frame;
  Dispatch dispatch;
  dispatch.names = test_names();
  dispatch.num_rows = 3;
  dispatch.hidden_size = limits.hidden_size;
  dispatch.top_k = limits.top_k;
  dispatch.tiles = {{0, 4}, {4, 5}, {9, 16}};
  encode_dispatch_header(dispatch, &frame.header);
  const auto layout = dispatch_payload_layout(3, limits.hidden_size, limits.top_k, limits.row_type);
  frame.payload.resize(layout.bytes);
  for (int r = 0; r < 3; ++r) {
    const int32_t ids[4] = {r, 8 + r, -1, 31};
    for (int i = 0; i < 4; ++i) {
      frame.set_payload(layout.ids + (r * 4 + i) * 4, ids[i]);
      frame.set_payload(layout.weights + (r * 4 + i) * 4, static_cast<float>(r + 1) / 8);
    }
  }
  for (size_t i = layout.rows; i < layout.bytes; ++i)
    frame.payload[i] = static_cast<std::byte>(i * 13);
  return frame;
}

TestFrame test_partial(uint8_t element_bits = 48) {
  TestFrame frame;
  Partial partial;
  partial.names = test_names();
  partial.row_begin = 2;
  partial.num_rows = 5;
  partial.output_begin = 64;
  partial.num_outputs = 128;
  partial.element_bits = element_bits;
  partial.failed_rows = {{2, 31}, {4, 0}, {6, 7}};
  encode_partial_header(partial, &frame.header);
  std::vector<int64_t> values(5 * 128);
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<int64_t>(i) * 1000003 - 7;
  frame.payload.resize(partial_elements_bytes(5, 128, element_bits));
  pack_elements(values, element_bits, frame.payload.data());
  return frame;
}

TestFrame test_refusal() {
  TestFrame frame;
  encode_refusal({test_names(), {ErrorCode::kUnavailable, "tile 3 of layer 5 is on no disk here"}},
                 &frame.header);
  return frame;
}

constexpr int32_t kHintedExperts[] = {0, 7, 8, 31};

TestFrame test_hint() {
  TestFrame frame;
  Hint hint;
  hint.names = test_names();
  hint.names.dispatch = DispatchId(0);
  hint.tiles = {{0, 4}, {9, 16}};
  hint.experts = kHintedExperts;
  encode_hint_header(hint, &frame.header);
  frame.payload.resize(sizeof kHintedExperts);
  std::memcpy(frame.payload.data(), kHintedExperts, sizeof kHintedExperts);
  return frame;
}

TestFrame test_note(const std::string& text = "req-1 req-2") {
  TestFrame frame;
  StepNote note{test_names(), text};
  note.names.layer = 0;
  encode_step_note(note, &frame.header);
  return frame;
}

Result<Frame> decode(const TestFrame& frame, const WireLimits& limits = test_limits()) {
  static std::vector<std::unique_ptr<TestMessage>> kept;  // frames borrow from it
  if (kept.size() > 100) kept.clear();
  kept.push_back(std::make_unique<TestMessage>(frame.header, frame.payload));
  return decode_frame(*kept.back(), limits);
}

TEST(Wire, a_dispatch_comes_back_as_it_was) {
  const TestFrame frame = test_dispatch();
  auto decoded = decode(frame);
  ASSERT_TRUE(decoded.has_value()) << decoded.error().message;
  ASSERT_EQ(decoded->kind, Frame::Kind::kDispatch);
  const Dispatch& d = decoded->dispatch;
  EXPECT_EQ(d.names, test_names());
  EXPECT_EQ(d.row_type, WireRowType::kBf16);
  EXPECT_EQ(d.num_rows, 3u);
  EXPECT_EQ(d.hidden_size, 320u);
  EXPECT_EQ(d.top_k, 4u);
  EXPECT_EQ(d.tiles, (std::vector<TileRange>{{0, 4}, {4, 5}, {9, 16}}));
  EXPECT_EQ(d.topk_ids.size(), 12u);
  EXPECT_EQ(d.topk_ids[5], 9);
  EXPECT_EQ(d.topk_ids[6], -1);
  EXPECT_EQ(d.topk_weights[11], 0.375f);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(d.rows.data()) % 64, 0u);
  ASSERT_EQ(d.rows.size(), 3u * 320 * 2);
  EXPECT_EQ(std::memcmp(d.rows.data(), frame.payload.data() + 128, d.rows.size()), 0);
}

TEST(Wire, bytes_are_as_drawn_in_the_document) {
  const TestFrame dispatch = test_dispatch();
  const uint8_t expected[] = {0x41, 0x46, 3,    0,    1,    1,    60,   0,     //
                              0xef, 0xcd, 0xab, 0x89, 0x67, 0x45, 0x23, 0x01,  //
                              0x10, 0x32, 0x54, 0x76, 0x98, 0xba, 0xdc, 0xfe,  //
                              7,    0,    0,    0,    5,    0,    0,    0,     //
                              3,    0,    0,    0,    0x40, 1,    0,    0,    4, 0, 0,  0,
                              3,    0,    0,    0,  //
                              0,    0,    4,    0,    4,    0,    5,    0,    9, 0, 16, 0};
  ASSERT_EQ(dispatch.header.size(), sizeof expected);
  EXPECT_EQ(std::memcmp(dispatch.header.data(), expected, sizeof expected), 0);
  EXPECT_EQ(test_partial().header.size(), 32u + 24 + 3 * 4);
  EXPECT_EQ(test_refusal().header.size(), 32u + 8 + 36);
  const uint8_t expected_hint[] = {0x41, 0x46, 3,    0,    4,    0,    48,   0,     //
                                   0xef, 0xcd, 0xab, 0x89, 0x67, 0x45, 0x23, 0x01,  //
                                   0,    0,    0,    0,    0,    0,    0,    0,     //
                                   7,    0,    0,    0,    5,    0,    0,    0,     //
                                   4,    0,    0,    0,    2,    0,    0,    0,     //
                                   0,    0,    4,    0,    9,    0,    16,   0};
  const TestFrame hint = test_hint();
  ASSERT_EQ(hint.header.size(), sizeof expected_hint);
  EXPECT_EQ(std::memcmp(hint.header.data(), expected_hint, sizeof expected_hint), 0);
}

TEST(Wire, a_note_comes_back_as_it_was_cut_and_without_control_characters) {
  auto decoded = decode(test_note());
  ASSERT_TRUE(decoded) << decoded.error().message;
  ASSERT_EQ(decoded->kind, Frame::Kind::kStepNote);
  EXPECT_EQ(decoded->note.names.dispatch, test_names().dispatch);
  EXPECT_EQ(decoded->note.text, "req-1 req-2");
  EXPECT_EQ(test_note().header.size(), 32u + 8 + 11);
  decoded = decode(test_note("a\nb" + std::string(2000, 'c')));
  ASSERT_TRUE(decoded);
  EXPECT_EQ(decoded->note.text, "a?b" + std::string(1021, 'c'));
  decoded = decode(test_note(""));
  ASSERT_TRUE(decoded);
  EXPECT_EQ(decoded->note.text, "");
}

TEST(Wire, a_hint_comes_back_as_it_was) {
  auto decoded = decode(test_hint());
  ASSERT_TRUE(decoded.has_value()) << decoded.error().message;
  ASSERT_EQ(decoded->kind, Frame::Kind::kHint);
  EXPECT_EQ(decoded->hint.names.session, test_names().session);
  EXPECT_EQ(decoded->hint.names.epoch, test_names().epoch);
  EXPECT_EQ(decoded->hint.names.layer, test_names().layer);
  EXPECT_EQ(decoded->hint.tiles, (std::vector<TileRange>{{0, 4}, {9, 16}}));
  EXPECT_TRUE(std::ranges::equal(decoded->hint.experts, kHintedExperts));
}

TEST(Wire, a_hint_may_name_every_expert) {
  TestFrame frame;
  Hint hint;
  std::vector<int32_t> all(test_limits().n_routed_experts);
  for (size_t i = 0; i < all.size(); ++i) all[i] = static_cast<int32_t>(i);
  hint.tiles = {{0, 16}};
  hint.experts = all;
  encode_hint_header(hint, &frame.header);
  frame.payload.resize(test_limits().hint_payload_bytes_max());
  ASSERT_EQ(frame.payload.size(), std::span(all).size_bytes());
  std::memcpy(frame.payload.data(), all.data(), frame.payload.size());
  auto decoded = decode(frame);
  ASSERT_TRUE(decoded.has_value()) << decoded.error().message;
  EXPECT_TRUE(std::ranges::equal(decoded->hint.experts, all));
}

TEST(Wire, a_partial_comes_back_as_it_was) {
  for (const uint8_t bits : {48, 64}) {
    auto decoded = decode(test_partial(bits));
    ASSERT_TRUE(decoded.has_value()) << decoded.error().message;
    ASSERT_EQ(decoded->kind, Frame::Kind::kPartial);
    const Partial& p = decoded->partial;
    EXPECT_EQ(p.names, test_names());
    EXPECT_EQ(p.row_begin, 2u);
    EXPECT_EQ(p.num_rows, 5u);
    EXPECT_EQ(p.output_begin, 64u);
    EXPECT_EQ(p.num_outputs, 128u);
    EXPECT_EQ(p.element_bits, bits);
    EXPECT_EQ(p.failed_rows, (std::vector<FailedRow>{{2, 31}, {4, 0}, {6, 7}}));
    std::vector<int64_t> sum(640, 5);
    add_elements(p.elements, p.element_bits, sum);
    for (size_t i = 0; i < sum.size(); ++i)
      ASSERT_EQ(sum[i], static_cast<int64_t>(i) * 1000003 - 2) << i;
  }
}

TEST(Wire, a_refusal_comes_back_in_one_clean_line) {
  auto decoded = decode(test_refusal());
  ASSERT_TRUE(decoded.has_value()) << decoded.error().message;
  ASSERT_EQ(decoded->kind, Frame::Kind::kRefusal);
  EXPECT_EQ(decoded->refusal.names, test_names());
  EXPECT_EQ(decoded->refusal.error.code, ErrorCode::kUnavailable);
  EXPECT_EQ(decoded->refusal.error.message, "tile 3 of layer 5 is on no disk here");
  TestFrame frame;
  encode_refusal({test_names(), {ErrorCode::kCorrupt, "a\nb\x1b" + std::string(5000, 'x')}},
                 &frame.header);
  decoded = decode(frame);
  ASSERT_TRUE(decoded.has_value()) << decoded.error().message;
  EXPECT_EQ(decoded->refusal.error.message.size(), 1024u);
  EXPECT_EQ(decoded->refusal.error.message.substr(0, 5), "a?b?x");
}

TEST(Wire, the_largest_frames_fit) {
  WireLimits limits{kPartialRowsMax, 7168, 8, 61, 256, 65535, WireRowType::kF32};
  Dispatch dispatch;
  dispatch.num_rows = 1;
  for (uint32_t i = 0; i < kTileRangesMax; ++i)
    dispatch.tiles.push_back({static_cast<uint16_t>(2 * i), static_cast<uint16_t>(2 * i + 1)});
  std::vector<std::byte> header;
  encode_dispatch_header(dispatch, &header);
  EXPECT_LE(header.size(), kHeaderBytesMax);

  TestFrame frame;
  Partial partial;
  partial.num_rows = kPartialRowsMax;
  partial.num_outputs = 1;
  for (uint32_t i = 0; i < kPartialRowsMax; ++i) partial.failed_rows.push_back({i, 255});
  encode_partial_header(partial, &frame.header);
  EXPECT_LE(frame.header.size(), kHeaderBytesMax);
  frame.payload.resize(partial_elements_bytes(kPartialRowsMax, 1, 48));
  auto decoded = decode(frame, limits);
  ASSERT_TRUE(decoded.has_value()) << decoded.error().message;
  EXPECT_EQ(decoded->partial.failed_rows, partial.failed_rows);
  // V3's: 512 rows of 7168, 4 B or 8 B each.
  limits.rows_max = 512;
  EXPECT_EQ(limits.dispatch_payload_bytes_max(), 512u * 8 * 8 + 512u * 7168 * 4);
  EXPECT_EQ(limits.partial_payload_bytes_max(), 512u * 7168 * 8);
}

// Every refusal names the field, what was found and what was expected.
struct BadFrame {
  std::string says;
  TestFrame frame;
};

template <typename T>
BadFrame bad(TestFrame frame, size_t offset, T value, const char* says) {
  frame.set(offset, value);
  return {says, frame};
}
template <typename T>
BadFrame bad_payload(size_t offset, T value, const char* says) {
  TestFrame frame = test_dispatch();
  frame.set_payload(offset, value);
  return {says, frame};
}
BadFrame bad_hinted(size_t index, int32_t expert, const char* says) {
  TestFrame frame = test_hint();
  frame.set_payload(index * sizeof expert, expert);
  return {says, frame};
}
BadFrame resized(TestFrame frame, int header_delta, int payload_delta, const char* says) {
  frame.header.resize(frame.header.size() + header_delta);
  frame.set(6, static_cast<uint16_t>(frame.header.size()));
  frame.payload.resize(frame.payload.size() + payload_delta);
  return {says, frame};
}

TEST(Wire, every_field_is_checked_and_named) {
  const TestFrame d = test_dispatch(), p = test_partial(), r = test_refusal(), h = test_hint(),
                  n = test_note();
  const float kInf = std::numeric_limits<float>::infinity();
  const std::vector<BadFrame> frames = {
      bad(d, 0, uint16_t{1}, "magic is 1, expected 17985"),
      bad(d, 2, uint16_t{9}, "version is 9, expected 3"),
      bad(d, 4, uint8_t{0}, "kind is 0, expected 1 to 5"),
      bad(d, 4, uint8_t{6}, "kind is 6"),
      bad(d, 6, uint16_t{59}, "header bytes is 59, expected 60"),
      bad(d, 28, uint32_t{6}, "layer is 6, expected below 6"),
      bad(d, 5, uint8_t{2}, "row type is 2, expected 1"),
      bad(d, 32, uint32_t{0}, "number of rows is 0, expected 1 to 16"),
      bad(d, 32, uint32_t{17}, "number of rows is 17"),
      bad(d, 36, uint32_t{321}, "hidden size is 321, expected 320"),
      bad(d, 40, uint32_t{5}, "top_k is 5, expected 4"),
      bad(d, 44, uint32_t{0}, "number of tile ranges is 0"),
      bad(d, 44, uint32_t{257}, "number of tile ranges is 257"),
      bad(d, 44, uint32_t{4}, "bytes of tile ranges is 12, expected 16"),
      bad(d, 48, uint16_t{4}, "tile range 0 is [4, 4)"),
      bad(d, 52, uint16_t{3}, "tile range 1 is [3, 5)"),
      bad(d, 58, uint16_t{17}, "tile range 2 is [9, 17), expected a range that isn't empty, in [5"),
      resized(d, 1, 0, "bytes of tile ranges is 13"),
      resized(d, -20, 0, "header bytes is 40, expected at least 48"),
      resized(d, 0, 1, "payload bytes is 2049, expected 2048"),
      resized(d, 0, -1, "payload bytes is 2047, expected 2048"),
      bad_payload(0, int32_t{-2}, "expert id 0 of row 0 is -2, expected -1 to 31"),
      bad_payload(44, int32_t{32}, "expert id 3 of row 2 is 32"),
      bad_payload(4, int32_t{31}, "expert id 31 stands twice in row 0"),
      bad_payload(48, std::nanf(""), "weight 0 of row 0 is nan"),
      bad_payload(48 + 44, kInf, "weight 3 of row 2 is inf"),
      bad_payload(127, uint8_t{1}, "padding before the rows is 1, expected 0"),
      bad(p, 5, uint8_t{32}, "element bits is 32, expected 48 or 64"),
      bad(p, 32, uint32_t{12}, "row range is 12 +5"),
      bad(p, 32, uint32_t{UINT32_MAX}, "row range is 4294967295 +5"),
      bad(p, 36, uint32_t{0}, "row range is 2 +0"),
      bad(p, 40, uint32_t{200}, "output range is 200 +128, expected a range in [0, 320)"),
      bad(p, 44, uint32_t{0}, "output range is 64 +0"),
      bad(p, 44, uint32_t{127}, "payload bytes is 3840, expected 3810"),
      bad(p, 48, uint32_t{6}, "number of failed rows is 6"),
      bad(p, 48, uint32_t{2}, "bytes of failed rows is 12, expected 8"),
      bad(p, 52, uint32_t{1}, "reserved field is 1"),
      bad(p, 56, uint16_t{5}, "failed row 5 of the piece"),
      bad(p, 60, uint16_t{0}, "failed row 0 of the piece, expected one in (0, 5)"),
      bad(p, 58, uint16_t{32}, "expert of a failed row is 32"),
      resized(p, 0, 6, "payload bytes is 3846"),
      bad(r, 5, uint8_t{7}, "error code is 7, expected 0 to 6"),
      bad(r, 32, uint32_t{35}, "text bytes is 36, expected 35"),
      bad(r, 36, uint32_t{1}, "reserved field is 1"),
      resized(r, 0, 1, "payload bytes is 1, expected 0"),
      bad(h, 5, uint8_t{1}, "detail of a hint is 1, expected 0"),
      bad(h, 16, uint64_t{3}, "dispatch of a hint is 3, expected 0"),
      bad(h, 28, uint32_t{6}, "layer is 6, expected below 6"),
      bad(h, 32, uint32_t{0}, "number of experts is 0, expected 1 to 32"),
      bad(h, 32, uint32_t{33}, "number of experts is 33, expected 1 to 32"),
      bad(h, 32, uint32_t{3}, "payload bytes is 16, expected 12"),
      bad(h, 36, uint32_t{0}, "number of tile ranges is 0, expected 1 to 256"),
      bad(h, 36, uint32_t{257}, "number of tile ranges is 257"),
      bad(h, 36, uint32_t{1}, "bytes of tile ranges is 8, expected 4"),
      bad(h, 40, uint16_t{4}, "tile range 0 is [4, 4)"),
      bad(h, 44, uint16_t{3}, "tile range 1 is [3, 16)"),
      bad(h, 46, uint16_t{17}, "tile range 1 is [9, 17)"),
      resized(h, -16, 0, "header bytes is 32, expected at least 40"),
      resized(h, 0, 4, "payload bytes is 20, expected 16"),
      bad_hinted(0, -1, "hinted expert 0 is -1, expected one in (-1, 32)"),
      bad_hinted(1, 0, "hinted expert 1 is 0, expected one in (0, 32)"),
      bad_hinted(3, 32, "hinted expert 3 is 32, expected one in (8, 32)"),
      bad(n, 5, uint8_t{1}, "detail of a note is 1, expected 0"),
      bad(n, 28, uint32_t{1}, "layer of a note is 1, expected 0"),
      bad(n, 32, uint32_t{12}, "text bytes is 11, expected 12"),
      bad(n, 36, uint32_t{1}, "reserved field is 1"),
      resized(n, 0, 1, "payload bytes is 1, expected 0"),
      resized(n, -12, 0, "header bytes is 39, expected at least 40"),
  };
  for (const BadFrame& frame : frames) {
    auto decoded = decode(frame.frame);
    ASSERT_FALSE(decoded.has_value()) << "taken: " << frame.says;
    EXPECT_EQ(decoded.error().code, ErrorCode::kInvalid);
    EXPECT_NE(decoded.error().message.find(frame.says), std::string::npos)
        << decoded.error().message << "\n  should say: " << frame.says;
  }
}

TEST(Wire, rows_and_weights_of_missing_choices_may_hold_anything) {
  TestFrame frame = test_dispatch();
  frame.set_payload(48 + 8, std::nanf(""));  // choice 2 of row 0 is -1
  for (size_t i = 128; i < frame.payload.size(); ++i) frame.payload[i] = std::byte{0xff};
  auto decoded = decode(frame);
  EXPECT_TRUE(decoded.has_value()) << decoded.error().message;
}

TEST(Wire, no_frame_crashes_the_decoder) {
  const TestFrame originals[] = {test_dispatch(), test_partial(48), test_partial(64),
                                 test_refusal(),  test_hint(),      test_note()};
  int taken = 0, refused = 0;
  const auto look = [&](const TestFrame& frame) { ++(decode(frame) ? taken : refused); };
  for (const TestFrame& original : originals) {
    for (size_t i = 0; i < original.header.size(); ++i)  // every byte, every value
      for (int value = 0; value < 256; ++value) {
        TestFrame frame{original.header, original.payload};
        frame.header[i] = static_cast<std::byte>(value);
        if (value % 16 != 0) frame.payload.resize(std::min<size_t>(frame.payload.size(), 256));
        look(frame);
      }
    for (size_t bytes = 0; bytes < original.header.size(); ++bytes) {
      TestFrame frame = original;
      frame.header.resize(bytes);
      look(frame);
      if (bytes >= 8) frame.set(6, static_cast<uint16_t>(bytes));
      look(frame);
    }
    for (size_t bytes = 0; bytes < original.payload.size(); bytes += 37) {
      TestFrame frame = original;
      frame.payload.resize(bytes);
      look(frame);
    }
  }
  std::mt19937_64 random(20);
  for (int round = 0; round < 20000; ++round) {
    TestFrame frame = originals[random() % 5];
    if (round % 4 == 0) {  // all random but what leads to the later checks
      for (size_t i = 8; i < frame.header.size(); ++i)
        frame.header[i] = static_cast<std::byte>(random());
      frame.set(28, uint32_t{1});
    } else {
      for (int changes = 1 + random() % 6; changes > 0; --changes) {
        const size_t at = random() % frame.header.size();
        frame.header[at] = static_cast<std::byte>(random() % 3 == 0 ? 0xff : random());
        if (!frame.payload.empty())
          frame.payload[random() % frame.payload.size()] = static_cast<std::byte>(random());
      }
    }
    look(frame);
  }
  EXPECT_GT(refused, 10000);
  EXPECT_GT(taken, 100);
}

TEST(Wire, elements_of_48_and_64_bits_are_exact) {
  constexpr int64_t kMax48 = (int64_t{1} << 47) - 1, kMin48 = -(int64_t{1} << 47);
  for (const size_t n : {0, 1, 2, 3, 7, 8, 1000, 7168}) {
    std::mt19937_64 random(n);
    std::vector<int64_t> values(n);
    for (auto& v : values) v = static_cast<int64_t>(random()) >> 16;
    if (n > 2) {
      values[0] = kMax48;
      values[n - 1] = kMin48;
      values[1] = -1;
    }
    EXPECT_EQ(narrowest_element_bits(values), 48);
    for (const uint8_t bits : {48, 64}) {
      // Exactly as large as needed: a byte too far is seen by the address sanitizer.
      std::vector<std::byte> packed(n * bits / 8);
      pack_elements(values, bits, packed.data());
      std::vector<int64_t> sum(n, -3);
      add_elements(packed, bits, sum);
      add_elements(packed, bits, sum);
      for (size_t i = 0; i < n; ++i) ASSERT_EQ(sum[i], 2 * values[i] - 3) << i << " of " << n;
    }
  }
  for (const int64_t outside : {kMax48 + 1, kMin48 - 1, INT64_MAX, INT64_MIN}) {
    const std::vector<int64_t> values = {0, outside, 5};
    EXPECT_EQ(narrowest_element_bits(values), 64) << outside;
    std::vector<std::byte> packed(24);
    pack_elements(values, 64, packed.data());
    std::vector<int64_t> sum(3, 0);
    add_elements(packed, 64, sum);
    EXPECT_EQ(sum, values);
  }
  EXPECT_EQ(narrowest_element_bits(std::vector<int64_t>{kMax48, kMin48}), 48);
}

}  // namespace
}  // namespace atl::transport
