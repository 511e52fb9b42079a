// The coordinator on a GPU, emulated or (built with ATOLL_ON_DEVICE) real: after every layer the
// bits that the CPU gives.
#include "coordinator/engine/cuda_compute.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <utility>

#include "coordinator/engine/engine.h"
#include "deployment/deployment.h"
#include "tests/support/golden.h"

namespace atl::coordinator {
namespace {

deployment::DeploymentOptions options_for(const std::string& model, const std::string& device) {
  deployment::DeploymentOptions options;
  options.model_dir = test::tests_dir() / "models" / model;
  options.device = device;
  options.threads = 1;
  options.cache_tokens = 1024;
  return options;
}

// All that a step shows of itself, as bytes.
struct Record final : StepObserver {
  std::vector<std::vector<int32_t>> ids;
  std::vector<std::vector<float>> floats;

  void on_routes(int64_t, std::span<const int32_t> topk_ids,
                 std::span<const float> weights) override {
    ids.emplace_back(topk_ids.begin(), topk_ids.end());
    floats.emplace_back(weights.begin(), weights.end());
  }
  void on_hidden(int64_t, std::span<const float> hidden) override {
    floats.emplace_back(hidden.begin(), hidden.end());
  }
  void on_hint(int64_t, std::span<const int32_t> experts) override {
    ids.emplace_back(experts.begin(), experts.end());
  }
};

void expect_same(const Record& cpu, const Record& gpu, const std::string& what) {
  EXPECT_EQ(cpu.ids, gpu.ids) << what;
  ASSERT_EQ(cpu.floats.size(), gpu.floats.size()) << what;
  for (size_t i = 0; i < cpu.floats.size(); ++i) {
    ASSERT_EQ(cpu.floats[i].size(), gpu.floats[i].size()) << what;
    ASSERT_EQ(std::memcmp(cpu.floats[i].data(), gpu.floats[i].data(),
                          cpu.floats[i].size() * sizeof(float)),
              0)
        << what << ", record " << i << " of " << cpu.floats.size();
  }
}

std::vector<int32_t> some_tokens(int64_t count, int64_t vocab_size) {
  std::vector<int32_t> tokens;
  for (int64_t i = 0; i < count; ++i) {
    tokens.push_back(static_cast<int32_t>((i * 7919 + 13) % std::min<int64_t>(vocab_size, 3000)));
  }
  return tokens;
}

// Steps of the given numbers of rows of one sequence, all logits wanted.
Record run(Engine& engine, std::span<const int64_t> steps) {
  Record record;
  Sequence sequence;
  int64_t at = 0, total = 0;
  for (const int64_t rows : steps) total += rows;
  const std::vector<int32_t> tokens = some_tokens(total, engine.config().vocab_size);
  for (const int64_t rows : steps) {
    const SequenceRows work{&sequence, std::span(tokens).subspan(at, rows), WantLogits::kAll};
    std::optional<Error> error;
    const Status status = engine.step(
        std::span(&work, 1),
        [&](size_t, size_t, std::span<const float> logits) {
          record.floats.emplace_back(logits.begin(), logits.end());
        },
        std::span(&error, 1), &record);
    EXPECT_TRUE(status.ok());
    EXPECT_FALSE(error);
    at += rows;
  }
  engine.release(sequence);
  return record;
}

void expect_equal_steps(const deployment::DeploymentOptions& on_cpu) {
  deployment::DeploymentOptions on_gpu = on_cpu;
  on_gpu.device = "cuda:0";
  deployment::Deployment cpu(on_cpu), gpu(on_gpu);
  EXPECT_EQ(cpu.device(), "cpu");
  EXPECT_THAT(gpu.device(), testing::StartsWith("cuda:0 ("));
  // One row, a few, more than are attended at once; chunks that end within blocks of the cache.
  const std::vector<std::vector<int64_t>> plans = {{1, 1, 3, 1}, {70, 1}, {33, 40, 2}};
  for (const auto& plan : plans) {
    expect_same(run(cpu.engine(), plan), run(gpu.engine(), plan),
                fmt::format("{} steps", plan.size()));
    if (testing::Test::HasFatalFailure()) return;
  }
}

class OnGpu : public testing::Test {
 protected:
  void SetUp() override {
#ifdef ATOLL_ON_DEVICE
    if (auto device = kernels::cuda::open_device(0); !device) {
      GTEST_SKIP() << device.error().message;
    }
#endif
  }
};

TEST_F(OnGpu, gives_the_cpu_s_bits_after_every_layer_of_every_kind_of_model) {
  for (const char* model : {"tiny-fp8", "tiny-bf16", "rand-v2", "rand-ragged"}) {
    SCOPED_TRACE(model);
    ASSERT_NO_FATAL_FAILURE(expect_equal_steps(options_for(model, "cpu")));
  }
}

TEST_F(OnGpu, gives_the_cpu_s_bits_with_int4_weights_an_f32_cache_and_hints) {
  deployment::DeploymentOptions options = options_for("tiny-fp8", "cpu");
  options.numerics.dense_format = kernels::WeightFormat::kInt4;
  options.numerics.activations = kernels::Activations::kF32;
  options.numerics.cache = kernels::RowType::kF32;
  options.prefetch = Prefetch::kNextLayer;
  ASSERT_NO_FATAL_FAILURE(expect_equal_steps(options));
}

TEST_F(OnGpu, reuses_a_prefix_and_mixes_sequences_as_the_cpu) {
  deployment::Deployment cpu(options_for("tiny-fp8", "cpu")),
      gpu(options_for("tiny-fp8", "cuda:0"));
  const std::vector<int32_t> prompt = some_tokens(150, 3000), other = some_tokens(3, 3000);
  const auto logits_of = [&](Engine& engine) {
    Sequence first;
    std::vector<std::vector<float>> all;
    const auto step = [&](std::span<const SequenceRows> work) {
      std::vector<std::optional<Error>> errors(work.size());
      EXPECT_TRUE(engine.step(
          work,
          [&](size_t, size_t, std::span<const float> row) {
            all.emplace_back(row.begin(), row.end());
          },
          errors));
    };
    const SequenceRows whole{&first, prompt, WantLogits::kLast};
    step(std::span(&whole, 1));
    engine.keep(first, prompt);
    engine.release(first);
    Sequence again, beside;
    engine.reuse(again, prompt);
    EXPECT_EQ(again.num_tokens, 128);
    const SequenceRows both[] = {{&again, std::span(prompt).subspan(128), WantLogits::kLast},
                                 {&beside, other, WantLogits::kAll}};
    step(both);
    EXPECT_EQ(all[0], all[1]);  // with the prefix as without it
    engine.release(again);
    engine.release(beside);
    return all;
  };
  EXPECT_EQ(logits_of(cpu.engine()), logits_of(gpu.engine()));
}

TEST_F(OnGpu, computes_halves_of_a_step_to_the_bits_of_whole_ones) {
  const std::vector<int32_t> tokens = some_tokens(75, 3000);
  std::vector<float> logits[2];
  for (const bool halved : {false, true}) {
    deployment::DeploymentOptions options = options_for("tiny-fp8", "cuda:0");
    options.halves = halved ? Halves::kOn : Halves::kOff;
    deployment::Deployment gpu(options);
    Sequence sequence;
    for (size_t begin = 0, end = 70; begin < tokens.size(); begin = std::exchange(end, 75)) {
      const SequenceRows rows{
          &sequence, std::span(tokens).subspan(begin, end - begin), WantLogits::kAll, {}};
      std::optional<Error> error;
      ASSERT_TRUE(gpu.engine().step(
          std::span(&rows, 1),
          [&](size_t, size_t, std::span<const float> row) {
            logits[halved].insert(logits[halved].end(), row.begin(), row.end());
          },
          std::span(&error, 1)));
      ASSERT_FALSE(error);
    }
    EXPECT_EQ(gpu.engine().times().halved_steps, halved ? 2u : 0u);
    gpu.engine().release(sequence);
  }
  ASSERT_EQ(logits[0].size(), logits[1].size());
  EXPECT_EQ(std::memcmp(logits[0].data(), logits[1].data(), logits[0].size() * sizeof(float)), 0);
}

TEST_F(OnGpu, drafts_by_the_next_token_layer_as_the_cpu) {
  std::vector<int32_t> drafts[2];
  for (const bool gpu : {false, true}) {
    deployment::DeploymentOptions options = options_for("tiny-fp8", gpu ? "cuda:0" : "cpu");
    options.next_token_layer = deployment::NextTokenLayer::kRequired;
    deployment::Deployment deployment(options);
    const std::vector<int32_t> text = some_tokens(76, 3000);
    Sequence sequence;
    for (size_t begin = 0, end = 70; end < text.size(); begin = end++) {
      const SequenceRows rows{&sequence, std::span(text).subspan(begin, end - begin),
                              WantLogits::kNone, 0};
      std::optional<Error> error;
      ASSERT_TRUE(deployment.engine().step(std::span(&rows, 1), {}, std::span(&error, 1)).ok());
      DraftWork work{&sequence, std::span(text).first(end + 1), 3, {}};
      ASSERT_TRUE(deployment.engine().draft(std::span(&work, 1)).ok());
      drafts[gpu].insert(drafts[gpu].end(), work.draft.begin(), work.draft.end());
    }
    deployment.engine().release(sequence);
  }
  EXPECT_EQ(drafts[0].size(), 18u);
  EXPECT_EQ(drafts[1], drafts[0]);
}

TEST_F(OnGpu, refuses_what_it_has_no_kernel_for_and_auto_takes_the_cpu) {
  deployment::DeploymentOptions options = options_for("tiny-fp8", "cuda:0");
  options.numerics.dense_format = kernels::WeightFormat::kInt4;
  options.numerics.activations = kernels::Activations::kI8;
  try {
    deployment::Deployment deployment(options);
    FAIL() << "started";
  } catch (const LoadError& error) {
    EXPECT_THAT(error.what(), testing::HasSubstr(
                                  "--device cuda:0: dense weights that meet rows rounded to int8"));
  }
  options.device = "auto";
  EXPECT_EQ(deployment::Deployment(options).device(), "cpu");
  options = options_for("tiny-fp8", "cuda:99");
  EXPECT_THROW(deployment::Deployment deployment(options), LoadError);
}

}  // namespace
}  // namespace atl::coordinator
