#include "model/synthetic.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <map>

#include "base/result.h"
#include "model/weights_map.h"
#include "storage/checkpoint/checkpoint.h"
#include "tests/support/temp_dir.h"

namespace atl::model {
namespace {

using kernels::WeightFormat;
using storage::Checkpoint;
using storage::DType;
using storage::TensorInfo;
using test::TempDir;

ModelConfig small_config() {
  ModelConfig c;
  c.model_type = "deepseek_v3";
  c.vocab_size = 300;
  c.hidden_size = 320;
  c.intermediate_size = 200;
  c.moe_intermediate_size = 640;
  c.num_hidden_layers = 3;
  c.first_k_dense_replace = 1;
  c.num_attention_heads = 4;
  c.q_lora_rank = 24;
  c.kv_lora_rank = 32;
  c.qk_nope_head_dim = 16;
  c.qk_rope_head_dim = 8;
  c.v_head_dim = 12;
  c.n_routed_experts = 8;
  c.n_shared_experts = 1;
  c.num_experts_per_tok = 2;
  c.n_group = 4;
  c.topk_group = 2;
  c.max_position_embeddings = 128;
  c.num_nextn_predict_layers = 1;
  c.rope_scaling.factor = 4;
  c.rope_scaling.mscale_all_dim = 1;
  c.routed_scaling_factor = 2.5;
  c.bos_token_id = 0;
  c.eos_token_ids = {1, 7};
  return c;
}

std::map<std::string, std::string> files_of(const TempDir& dir) {
  std::map<std::string, std::string> files;
  for (const auto& entry : std::filesystem::directory_iterator(dir.path())) {
    files[entry.path().filename().string()] = test::read_file(entry.path());
  }
  return files;
}

std::vector<double> values_of(const Checkpoint& checkpoint, const std::string& name) {
  const TensorInfo& tensor = *checkpoint.find(name);
  std::vector<std::byte> raw(tensor.bytes);
  checkpoint.read(tensor, 0, raw);
  std::vector<double> values;
  for (size_t i = 0; i < raw.size(); i += storage::dtype_bytes(tensor.dtype)) {
    float f = 0;
    uint16_t half = 0;
    switch (tensor.dtype) {
      case DType::kF8E4m3:
        f = kernels::e4m3_to_float(static_cast<uint8_t>(raw[i]));
        break;
      case DType::kBf16:
        std::memcpy(&half, &raw[i], 2);
        f = kernels::bf16_to_float(half);
        break;
      default:
        std::memcpy(&f, &raw[i], 4);
    }
    values.push_back(f);
  }
  return values;
}

struct Moments {
  double mean = 0, deviation = 0, least = 0, most = 0;
};

Moments moments(const std::vector<double>& values) {
  Moments m;
  for (const double v : values) m.mean += v / static_cast<double>(values.size());
  for (const double v : values) {
    m.deviation += (v - m.mean) * (v - m.mean) / static_cast<double>(values.size());
  }
  m.deviation = std::sqrt(m.deviation);
  m.least = *std::min_element(values.begin(), values.end());
  m.most = *std::max_element(values.begin(), values.end());
  return m;
}

TEST(Synthetic, same_seed_same_bytes_for_any_threads) {
  SyntheticSpec spec;
  spec.config = small_config();
  spec.shard_bytes = 2 << 20;
  TempDir one, three, other_seed;
  write_synthetic_checkpoint(one.path(), spec);
  spec.num_threads = 3;
  write_synthetic_checkpoint(three.path(), spec);
  EXPECT_TRUE(files_of(one) == files_of(three));
  EXPECT_GT(files_of(one).size(), 5u);  // config, generation_config, index, several shards
  spec.seed = 2;
  write_synthetic_checkpoint(other_seed.path(), spec);
  EXPECT_NE(Checkpoint::open(one.path()).fingerprint(),
            Checkpoint::open(other_seed.path()).fingerprint());
}

TEST(Synthetic, config_reads_back_the_same) {
  TempDir dir, again;
  for (const Architecture architecture : {Architecture::kDeepseekV3, Architecture::kDeepseekV2}) {
    SyntheticSpec spec;
    spec.config = small_config();
    spec.config.architecture = architecture;
    if (architecture == Architecture::kDeepseekV2) {
      spec.config.topk_method = kernels::TopkMethod::kGroupLimitedGreedy;
      spec.config.scoring_func = kernels::ScoringFunc::kSoftmax;
      spec.config.norm_topk_prob = false;
      spec.config.q_lora_rank = 0;
    }
    write_config(dir.path(), spec);
    SyntheticSpec read = spec;
    read.config = load_config(dir.path());
    write_config(again.path(), read);
    EXPECT_EQ(test::read_file(dir / "config.json"), test::read_file(again / "config.json"));
    EXPECT_TRUE(read.config.fp8);
    EXPECT_EQ(read.config.q_lora_rank, spec.config.q_lora_rank);
    EXPECT_EQ(read.config.rope_scaling.factor, 4);
    EXPECT_EQ(read.config.topk_method, spec.config.topk_method);
    EXPECT_THAT(read.config.eos_token_ids, testing::ElementsAre(1, 7));
  }
}

TEST(Synthetic, every_format_is_a_complete_model_with_finite_values) {
  for (const WeightFormat format :
       {WeightFormat::kFp8E4m3, WeightFormat::kBf16, WeightFormat::kF32}) {
    SCOPED_TRACE(to_string(format));
    TempDir dir;
    SyntheticSpec spec;
    spec.config = small_config();
    spec.format = format;
    write_synthetic_checkpoint(dir.path(), spec);
    const ModelConfig config = load_config(dir.path());
    EXPECT_EQ(config.fp8, format == WeightFormat::kFp8E4m3);
    const Checkpoint checkpoint = Checkpoint::open(dir.path());
    EXPECT_EQ(map_experts(config, checkpoint).format, format);
    EXPECT_NO_THROW(map_tensors(config, checkpoint));
    for (const TensorInfo& tensor : checkpoint.tensors()) {
      for (const double v : values_of(checkpoint, tensor.name)) {
        ASSERT_TRUE(std::isfinite(v)) << tensor.name;
      }
    }
    EXPECT_EQ(values_of(checkpoint, "model.layers.3.embed_tokens.weight"),
              values_of(checkpoint, "model.embed_tokens.weight"));
    EXPECT_EQ(values_of(checkpoint, "model.layers.3.shared_head.head.weight"),
              values_of(checkpoint, "lm_head.weight"));
  }
}

// Standard errors: 1/sqrt(2n) of the deviation, 1/sqrt(n) of the mean; bounds are 5 of them plus 2
// % for the table and rounding.
TEST(Synthetic, values_have_the_promised_spread) {
  TempDir dir;
  SyntheticSpec spec;
  spec.config = small_config();
  write_synthetic_checkpoint(dir.path(), spec);
  const Checkpoint checkpoint = Checkpoint::open(dir.path());

  const Moments norm = moments(values_of(checkpoint, "model.norm.weight"));
  EXPECT_GE(norm.least, 0.5);
  EXPECT_LE(norm.most, 1.5);
  EXPECT_NEAR(norm.mean, 1.0, 0.1);
  const Moments bias =
      moments(values_of(checkpoint, "model.layers.1.mlp.gate.e_score_correction_bias"));
  EXPECT_GE(bias.least, -0.1);
  EXPECT_LE(bias.most, 0.1);
  EXPECT_GT(bias.deviation, 0.0);
  const auto expect_normal = [&](const Moments& m, double deviation, double n) {
    EXPECT_NEAR(m.deviation / deviation, 1.0, 5 / std::sqrt(2 * n) + 0.02);
    EXPECT_NEAR(m.mean / deviation, 0.0, 5 / std::sqrt(n));
  };
  expect_normal(moments(values_of(checkpoint, "model.embed_tokens.weight")), 1, 300 * 320);
  expect_normal(moments(values_of(checkpoint, "lm_head.weight")), 1 / std::sqrt(320), 300 * 320);

  // FP8: 448 stands for 3 deviations; scales are base * (0.5 .. 1.5), all different.
  const std::string down = "model.layers.1.mlp.experts.0.down_proj.weight";
  const Moments codes = moments(values_of(checkpoint, down));
  expect_normal(codes, 448 / 3.0, 320 * 640);
  EXPECT_GE(codes.most, 384);
  std::vector<double> scales = values_of(checkpoint, down + "_scale_inv");
  ASSERT_EQ(scales.size(), 3u * 5);
  const double base = 3.0 / 448 / std::sqrt(640.0);
  std::sort(scales.begin(), scales.end());
  EXPECT_GE(scales.front(), 0.5 * base);
  EXPECT_LE(scales.back(), 1.5 * base);
  EXPECT_EQ(std::adjacent_find(scales.begin(), scales.end()), scales.end());
  EXPECT_NE(values_of(checkpoint, down),
            values_of(checkpoint, "model.layers.1.mlp.experts.1.down_proj.weight"));
}

TEST(Synthetic, copies_a_tokenizer_and_says_if_it_cannot) {
  TempDir dir;
  SyntheticSpec spec;
  spec.config = small_config();
  spec.tokenizer_dir = std::filesystem::path(ATOLL_SOURCE_DIR) / "tests/models/tiny-fp8";
  write_synthetic_checkpoint(dir.path(), spec);
  EXPECT_EQ(test::read_file(dir / "tokenizer.json"),
            test::read_file(spec.tokenizer_dir / "tokenizer.json"));
  spec.tokenizer_dir = dir / "nowhere";
  EXPECT_EQ(test::message_of<LoadError>(dir.path(),
                                        [&] { write_synthetic_checkpoint(dir.path(), spec); }),
            "DIR/nowhere/tokenizer.json: cannot copy: No such file or directory");
}

// DeepSeek-V3 in its real size, sparse files without data: all figures of docs/model.md 2.2 and 7.
TEST(Synthetic, v3_has_the_published_tensor_count_and_bytes_per_component) {
  SyntheticSpec spec;
  ModelConfig& c = spec.config;
  c.model_type = "deepseek_v3";
  c.fp8 = true;
  c.vocab_size = 129280;
  c.hidden_size = 7168;
  c.intermediate_size = 18432;
  c.moe_intermediate_size = 2048;
  c.num_hidden_layers = 61;
  c.first_k_dense_replace = 3;
  c.num_attention_heads = 128;
  c.q_lora_rank = 1536;
  c.kv_lora_rank = 512;
  c.qk_nope_head_dim = 128;
  c.qk_rope_head_dim = 64;
  c.v_head_dim = 128;
  c.n_routed_experts = 256;
  c.n_shared_experts = 1;
  c.num_experts_per_tok = 8;
  c.n_group = 8;
  c.topk_group = 4;
  c.max_position_embeddings = 163840;
  c.num_nextn_predict_layers = 1;
  const std::vector<storage::TensorSpec> tensors = synthetic_tensors(spec);
  ASSERT_EQ(tensors.size(), 91'991u);
  TempDir dir;
  try {
    storage::CheckpointWriter writer(dir.path(), tensors, uint64_t{4'300'000'000});
    EXPECT_EQ(writer.data_bytes(), 688'574'839'360u);
  } catch (const LoadError& error) {
    GTEST_SKIP() << "sparse files of 4 GB: " << error.what();
  }
  const Checkpoint checkpoint = Checkpoint::open(dir.path());
  EXPECT_EQ(checkpoint.tensors().size(), 91'991u);
  EXPECT_NO_THROW(map_tensors(c, checkpoint));
  const storage::ExpertCatalog catalog = map_experts(c, checkpoint);
  EXPECT_EQ(catalog.experts.size(), 58u);
  EXPECT_EQ(catalog.moe_layers.front(), 3);

  std::map<Component, std::pair<uint64_t, uint64_t>> totals;  // parameters, bytes
  for (const ComponentRow& row : component_table(c, checkpoint)) {
    totals[row.component].first += row.parameters;
    totals[row.component].second += row.bytes;
  }
  using Total = std::pair<uint64_t, uint64_t>;
  EXPECT_EQ(totals[Component::kEmbedding], Total(926'679'040, 1'853'358'080));
  EXPECT_EQ(totals[Component::kHead], Total(926'679'040, 1'853'358'080));
  EXPECT_EQ(totals[Component::kDenseMlp], Total(1'189'085'184, 1'189'375'488));
  EXPECT_EQ(totals[Component::kSharedExperts], Total(2'554'331'136, 2'554'954'752));
  EXPECT_EQ(totals[Component::kRouter], Total(106'445'312, 212'920'320));
  EXPECT_EQ(totals[Component::kRoutedExperts], Total(653'908'770'816, 654'068'416'512));
  EXPECT_EQ(totals[Component::kAttention], Total(11'413'422'080, 11'416'215'392));
  EXPECT_EQ(totals[Component::kNorms], Total(1'006'592, 2'013'184));
  // With its copies of embedding and head.
  EXPECT_EQ(totals[Component::kMtp],
            Total(11'610'068'224 + 2 * 926'679'040ull, 11'717'511'392 + 2 * 1'853'358'080ull));
  EXPECT_EQ(totals.count(Component::kOther), 0u);
}

}  // namespace
}  // namespace atl::model
