// The GPU's kernels give the reference's bits: on the emulator, in three orders of threads, and,
// built with ATOLL_ON_DEVICE, on a device.
#include <gtest/gtest.h>

#include <limits>
#include <numeric>

#include "base/fp_env.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/emulator.h"
#include "kernels/cuda/launches.h"
#include "kernels/reference/reference.h"
#include "tests/kernels/kernel_test_util.h"

namespace atl::kernels {
namespace {

using namespace testing;
using cuda::Device;
using cuda::DeviceBuffer;

class Cuda : public ::testing::TestWithParam<simt::Order> {
 protected:
  void SetUp() override {
    simt::order = GetParam();
    auto device = cuda::open_device(0);
#ifdef ATOLL_ON_DEVICE
    if (!device) GTEST_SKIP() << device.error().message;
#endif
    ASSERT_TRUE(device.has_value()) << device.error().message;
    device_ = std::move(*device);
  }
  void TearDown() override { simt::order = simt::Order::kFirstIn; }

  DeviceBuffer memory(size_t bytes) {
    auto buffer = DeviceBuffer::make(*device_, bytes);
    EXPECT_TRUE(buffer.has_value());
    return std::move(*buffer);
  }
  template <typename T>
  DeviceBuffer uploaded(const std::vector<T>& values) {
    DeviceBuffer buffer = memory(values.size() * sizeof(T));
    device_->upload(buffer.data(), values.data(), values.size() * sizeof(T));
    return buffer;
  }
  template <typename T>
  std::vector<T> downloaded(const DeviceBuffer& buffer) {
    std::vector<T> values(buffer.size() / sizeof(T));
    device_->download(values.data(), buffer.data(), buffer.size());
    EXPECT_TRUE(device_->wait().ok());
    return values;
  }

  ScopedStandardFpEnv fp_env_;
  std::unique_ptr<Device> device_;
};

#ifdef ATOLL_ON_DEVICE
INSTANTIATE_TEST_SUITE_P(Device, Cuda, ::testing::Values(simt::Order::kFirstIn),
                         [](const auto&) { return "InOrder"; });
#else
INSTANTIATE_TEST_SUITE_P(Orders, Cuda,
                         ::testing::Values(simt::Order::kFirstIn, simt::Order::kNewestFirst,
                                           simt::Order::kRandom),
                         [](const auto& info) {
                           return info.param == simt::Order::kFirstIn       ? "FirstIn"
                                  : info.param == simt::Order::kNewestFirst ? "NewestFirst"
                                                                            : "Random";
                         });
#endif

// ---- Linear layers ------------------------------------------------------------------------------

struct LinearCase {
  int64_t outputs, k;
  PanelSource source;
};
// Ragged on every side; more groups than a wave has; outputs beyond a pair of panels.
const LinearCase kLinearCases[] = {
    {1, 1, {}},
    {16, 128, {}},
    {50, 131, {.row_begin = 16, .col_begin = 0}},
    {33, 7, {.row_begin = 0, .col_begin = 3}},
    {145, 260, {.row_begin = 100, .col_begin = 126}},
    {20, 129, {.row_begin = 127, .col_begin = 1, .transposed = true}},
    {40, 1412, {.row_begin = 100, .col_begin = 124}},
};

TEST_P(Cuda, linear_equals_the_reference_for_any_rows_and_format) {
  std::mt19937 rng(11);
  for (const Arithmetic& arithmetic : kArithmetics) {
    if (arithmetic.activations != Activations::kF32) continue;
    if (arithmetic.format == WeightFormat::kF16) continue;  // of models without GPU kernels
    for (const LinearCase& c : kLinearCases) {
      const int64_t rows = c.source.row_begin + (c.source.transposed ? c.k : c.outputs);
      const int64_t cols = c.source.col_begin + (c.source.transposed ? c.outputs : c.k);
      const Packed w =
          pack_as(arithmetic, random_matrix(rng, arithmetic.source_format(), rows, cols), c.outputs,
                  c.k, c.source);
      const PanelShape& shape = w.matrix.shape;
      const auto groups = cuda::panel_groups(shape);
      const auto bytes_of = [](const void* data, size_t bytes) {
        const auto* at = static_cast<const std::byte*>(data);
        return std::vector<std::byte>(at, at + bytes);
      };
      const DeviceBuffer codes = uploaded(bytes_of(w.matrix.codes, shape.total_code_bytes()));
      const DeviceBuffer scales = uploaded(bytes_of(w.matrix.scales, shape.total_scale_bytes()));
      const DeviceBuffer group_table = uploaded(groups);
      const DeviceBuffer matrix = uploaded(std::vector{cuda::DeviceMatrix{
          codes.as<uint32_t>(), scales.as<float>(), group_table.as<cuda::PanelGroup>(),
          static_cast<int32_t>(groups.size()), static_cast<int32_t>(c.k),
          static_cast<int32_t>(c.outputs),
          static_cast<uint32_t>(shape.panel_code_bytes() / sizeof(uint32_t)),
          static_cast<uint32_t>(shape.panel_scales()), shape.scale_per_output}});
      for (const int64_t n : {1, 2, 3, 4, 5, 8, 19}) {
        SCOPED_TRACE(arithmetic.name() + " [" + std::to_string(c.outputs) + ", " +
                     std::to_string(c.k) + "], " + std::to_string(n) + " rows");
        std::vector<float> x = random_values(rng, n * c.k);
        x[rng() % x.size()] = -0.0f;
        x[rng() % x.size()] = 1e-39f;
        if (n == 5) x[rng() % x.size()] = std::numeric_limits<float>::infinity();
        std::vector<float> expected(static_cast<size_t>(n * c.outputs));
        for (int64_t row = 0; row < n; ++row) {
          const float* from = &x[row * c.k];
          float* to = &expected[row * c.outputs];
          reference::linear_panels(w.matrix, 0, shape.num_panels(), {&from, 1}, {&to, 1});
        }
        const DeviceBuffer device_x = uploaded(x);
        const DeviceBuffer y = memory(expected.size() * sizeof(float));
        cuda::LinearCall call;
        call.format = shape.format;
        call.matrices = matrix.as<cuda::DeviceMatrix>();
        call.outputs = static_cast<int32_t>(c.outputs);
        call.num_rows = static_cast<int32_t>(n);
        call.x = device_x.as<float>();
        call.x_row = c.k;
        call.y = y.as<float>();
        call.y_row = c.outputs;
        cuda::linear(device_->stream(), call);
        ASSERT_NO_FATAL_FAILURE(expect_same_bits(expected, downloaded<float>(y), "y"));
      }
    }
  }
}

// ---- Small operations ---------------------------------------------------------------------------

TEST_P(Cuda, rms_norm_equals_the_reference) {
  std::mt19937 rng(2);
  for (const int64_t n : {1, 15, 16, 17, 40, 300, 1536}) {
    const int64_t stride = n + 3;  // what lies between the rows stays
    const std::vector<float> x = random_values(rng, 3 * stride), weight = random_values(rng, n);
    std::vector<float> expected = x;
    for (int64_t row = 0; row < 3; ++row) {
      reference::rms_norm(&x[row * stride], weight.data(), 1e-6f, n, &expected[row * stride]);
    }
    const DeviceBuffer values = uploaded(x), weights = uploaded(weight);
    cuda::rms_norm(device_->stream(), 3, static_cast<int32_t>(n), values.as<float>(), stride,
                   weights.as<float>(), 1e-6f, values.as<float>(), stride);
    ASSERT_NO_FATAL_FAILURE(
        expect_same_bits(expected, downloaded<float>(values), std::to_string(n)));
  }
}

TEST_P(Cuda, rope_silu_and_sums_equal_the_reference) {
  std::mt19937 rng(3);
  constexpr int64_t kRows = 3, kHeads = 5, kWidth = 14, kPairs = 3, kNope = kWidth - 2 * kPairs;
  std::vector<float> q = random_values(rng, kRows * kHeads * kWidth);
  const std::vector<float> cos = random_values(rng, kRows * kPairs);
  const std::vector<float> sin = random_values(rng, kRows * kPairs);
  const DeviceBuffer device_q = uploaded(q), device_cos = uploaded(cos), device_sin = uploaded(sin);
  cuda::rope(device_->stream(), kRows, kHeads, kPairs, device_cos.as<float>(),
             device_sin.as<float>(), device_q.as<float>() + kNope, kHeads * kWidth, kWidth);
  for (int64_t row = 0; row < kRows; ++row) {
    for (int64_t head = 0; head < kHeads; ++head) {
      reference::rope_interleaved(&q[(row * kHeads + head) * kWidth + kNope], &cos[row * kPairs],
                                  &sin[row * kPairs], kPairs);
    }
  }
  ASSERT_NO_FATAL_FAILURE(expect_same_bits(q, downloaded<float>(device_q), "rope"));

  // Beyond both ends of exp, and what is no number.
  std::vector<float> gate = random_values(rng, 1000, 40.0f), up = random_values(rng, 1000);
  gate[0] = -1e30f, gate[1] = 1e30f, gate[2] = -104.5f, gate[3] = 0.0f, gate[4] = -0.0f;
  gate[5] = std::numeric_limits<float>::quiet_NaN(), gate[6] = 88.9f, gate[7] = -88.9f;
  std::vector<float> h(gate.size()), sum = up;
  reference::silu_mul(gate.data(), up.data(), 1000, h.data());
  reference::add_in_place(sum.data(), gate.data(), 1000);
  const DeviceBuffer device_gate = uploaded(gate), device_up = uploaded(up);
  const DeviceBuffer device_sum = uploaded(up);
  cuda::add(device_->stream(), 1000, device_gate.as<float>(), device_sum.as<float>());
  cuda::silu_mul(device_->stream(), 1000, device_gate.as<float>(), device_up.as<float>());
  ASSERT_NO_FATAL_FAILURE(expect_same_bits(h, downloaded<float>(device_gate), "silu_mul"));
  ASSERT_NO_FATAL_FAILURE(expect_same_bits(sum, downloaded<float>(device_sum), "add"));
}

// ---- Attention ----------------------------------------------------------------------------------

struct AttentionCase {
  LatentShape shape;
  int64_t heads;
};

TEST_P(Cuda, attention_writes_and_reads_the_paged_cache_as_the_reference) {
  std::mt19937 rng(41);
  const AttentionCase cases[] = {{{40, 8, RowType::kBf16}, 7},
                                 {{40, 8, RowType::kF32}, 33},
                                 {{5, 2, RowType::kF32}, 1},
                                 {{512, 64, RowType::kBf16}, 3}};
  const std::vector<int32_t> positions = {1, 64, 65, 200, 17};
  constexpr int32_t kBlocksMax = 4;
  const auto rows = static_cast<int32_t>(positions.size());
  for (const auto& [shape, heads] : cases) {
    SCOPED_TRACE(std::to_string(shape.width()) + " wide");
    const int64_t width = shape.width();
    // Blocks of the rows lie in any order; what no row wrote stays NaN.
    std::vector<int32_t> ids(static_cast<size_t>(rows * kBlocksMax));
    std::iota(ids.begin(), ids.end(), 0);
    std::shuffle(ids.begin(), ids.end(), rng);
    const size_t block_bytes = static_cast<size_t>(64 * width) * element_bytes(shape.cache_type);
    std::vector<std::vector<std::byte>> blocks(
        ids.size(), std::vector<std::byte>(block_bytes, std::byte{0xff}));
    const DeviceBuffer entries = memory(ids.size() * block_bytes);
    const DeviceBuffer table = uploaded(ids);
    const std::vector<float> q = random_values(rng, rows * heads * width);
    const DeviceBuffer device_q = uploaded(q);
    cuda::CacheCall cache;
    cache.type = shape.cache_type;
    cache.entries = entries.data();
    cache.rank = static_cast<int32_t>(shape.kv_lora_rank);
    cache.rope = static_cast<int32_t>(shape.qk_rope_head_dim);
    cache.num_rows = rows;
    cache.block_table = table.as<int32_t>();
    cache.blocks_max = kBlocksMax;
    // Position by position, all rows that have it at once (the others write their first again).
    std::vector<std::vector<float>> latents;
    for (int32_t t = 0; t < 200; ++t) {
      std::vector<int32_t> now(positions.size());
      std::vector<float> latent = random_values(rng, rows * width);
      latents.push_back(latent);
      for (size_t row = 0; row < now.size(); ++row) {
        const int32_t at = t < positions[row] ? t : 0;
        now[row] = at + 1;
        const float* values = &latents[static_cast<size_t>(at)][row * static_cast<size_t>(width)];
        std::copy_n(values, width, &latent[row * static_cast<size_t>(width)]);
        std::byte* to =
            blocks[static_cast<size_t>(ids[row * kBlocksMax + static_cast<size_t>(at / 64)])]
                .data() +
            static_cast<size_t>(at % 64 * width) * element_bytes(shape.cache_type);
        reference::store_rounded(values, width, shape.cache_type, to);
      }
      const DeviceBuffer counts = uploaded(now), device_latent = uploaded(latent);
      cache.num_positions = counts.as<int32_t>();
      cuda::write_cache(device_->stream(), cache, device_latent.as<float>());
    }
    std::vector<float> expected(static_cast<size_t>(rows * heads * shape.kv_lora_rank));
    for (int32_t row = 0; row < rows; ++row) {
      std::vector<const void*> of_row;
      for (int32_t b = 0; b * 64 < positions[static_cast<size_t>(row)]; ++b) {
        of_row.push_back(
            blocks[static_cast<size_t>(ids[static_cast<size_t>(row * kBlocksMax + b)])].data());
      }
      reference::mla_attend(shape, heads, &q[row * heads * width], of_row,
                            positions[static_cast<size_t>(row)], 0.3f,
                            &expected[row * heads * shape.kv_lora_rank]);
    }
    const DeviceBuffer counts = uploaded(positions);
    cache.num_positions = counts.as<int32_t>();
    const DeviceBuffer out = memory(expected.size() * sizeof(float));
    const DeviceBuffer scratch = memory(static_cast<size_t>(cuda::attend_scratch_floats(
                                            rows, static_cast<int32_t>(heads), kBlocksMax)) *
                                        sizeof(float));
    cuda::mla_attend(device_->stream(), cache,
                     {static_cast<int32_t>(heads), 0.3f, device_q.as<float>(), out.as<float>(),
                      scratch.as<float>()});
    ASSERT_NO_FATAL_FAILURE(expect_same_bits(expected, downloaded<float>(out), "out"));
  }
}

// ---- Router -------------------------------------------------------------------------------------

TEST_P(Cuda, router_chooses_as_the_cpu_in_both_families) {
  std::mt19937 rng(5);
  const RouterShape shapes[] = {
      {ScoringFunc::kSigmoid, TopkMethod::kNoauxTc, 256, 8, 8, 4, true, 2.5f},
      {ScoringFunc::kSigmoid, TopkMethod::kNoauxTc, 40, 3, 1, 1, true, 1.0f},
      {ScoringFunc::kSoftmax, TopkMethod::kGroupLimitedGreedy, 160, 6, 8, 3, false, 16.0f},
      {ScoringFunc::kSoftmax, TopkMethod::kGreedy, 64, 6, 1, 1, false, 1.0f},
      {ScoringFunc::kSoftmax, TopkMethod::kGreedy, 7, 7, 1, 1, true, 1.0f},
  };
  constexpr int64_t kRows = 6;
  for (const RouterShape& shape : shapes) {
    const int64_t n = shape.n_routed_experts, k = shape.num_experts_per_tok;
    std::vector<float> logits = random_values(rng, kRows * n);
    std::fill_n(logits.begin() + n, n, 0.5f);                                // ties throughout
    for (float& v : std::span(logits).subspan(2 * n, n)) v = std::round(v);  // many ties
    logits[3 * n + n / 2] = std::numeric_limits<float>::infinity();
    logits[4 * n] = -200.0f;
    std::vector<float> bias = random_values(rng, n, 0.3f);
    const bool biased = shape.topk_method == TopkMethod::kNoauxTc;
    const DeviceBuffer device_logits = uploaded(logits), device_bias = uploaded(bias);
    const DeviceBuffer ids = memory(kRows * k * sizeof(int32_t));
    const DeviceBuffer weights = memory(kRows * k * sizeof(float)), finite = memory(kRows);
    cuda::route(device_->stream(), shape, kRows, device_logits.as<float>(),
                biased ? device_bias.as<float>() : nullptr, ids.as<int32_t>(), weights.as<float>(),
                finite.as<uint8_t>());
    std::vector<int32_t> expected_ids(kRows * k, -1);
    std::vector<float> expected_weights(kRows * k, 0.0f);
    std::vector<uint8_t> expected_finite(kRows, 0);
    for (int64_t row = 0; row < kRows; ++row) {
      expected_finite[row] = row != 3;
      if (row == 3) continue;
      ASSERT_TRUE(route(shape, &logits[row * n], biased ? bias.data() : nullptr,
                        &expected_ids[row * k], &expected_weights[row * k]));
    }
    EXPECT_EQ(downloaded<int32_t>(ids), expected_ids);
    EXPECT_EQ(downloaded<uint8_t>(finite), expected_finite);
    ASSERT_NO_FATAL_FAILURE(
        expect_same_bits(expected_weights, downloaded<float>(weights), "weights"));
  }
}

#ifndef ATOLL_ON_DEVICE
// ---- The emulator itself ------------------------------------------------------------------------

void one_ends_kernel(int) {
  if (simt::thread_x() == 5) return;
  (void)simt::ballot(true);
}
void no_barrier_kernel(int* out) {
  int* shared = simt::shared<int>();
  shared[simt::thread_x()] = simt::thread_x();
  out[simt::thread_x()] = shared[(simt::thread_x() + 1) % 64];
}

TEST(Emulator, tells_a_barrier_that_not_all_reach) {
  // 32 threads wait while 32 have ended: CUDA leaves that undefined; here those that wait go on,
  // unless somebody waits elsewhere.
  EXPECT_DEATH(simt::launch(one_ends_kernel, dim3(1), 32, 0, nullptr, 0), "threads have ended");
}

TEST(Emulator, shows_a_missing_barrier_in_some_order) {
  std::vector<int> out(64, -1), expected(64);
  for (int i = 0; i < 64; ++i) expected[static_cast<size_t>(i)] = (i + 1) % 64;
  simt::order = simt::Order::kFirstIn;
  simt::launch(no_barrier_kernel, dim3(1), 64, 64 * sizeof(int), nullptr, out.data());
  EXPECT_NE(out, expected);
}
#endif

}  // namespace
}  // namespace atl::kernels
