#include "model/weights_map.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <fstream>
#include <functional>

#include "base/result.h"
#include "model/synthetic.h"
#include "storage/checkpoint/checkpoint.h"
#include "tests/support/temp_dir.h"

namespace atl::model {
namespace {

using kernels::WeightFormat;
using storage::Checkpoint;
using storage::DType;
using storage::TensorSpec;
using test::TempDir;

const std::filesystem::path kModels = std::filesystem::path(ATOLL_SOURCE_DIR) / "tests/models";

// 3 layers (the first dense), 4 experts of 130 x 140, q_lora, one MTP layer.
SyntheticSpec small_spec() {
  SyntheticSpec spec;
  ModelConfig& c = spec.config;
  c.model_type = "deepseek_v3";
  c.fp8 = true;
  c.vocab_size = 40;
  c.hidden_size = 140;
  c.intermediate_size = 200;
  c.moe_intermediate_size = 130;
  c.num_hidden_layers = 3;
  c.first_k_dense_replace = 1;
  c.num_attention_heads = 2;
  c.q_lora_rank = 24;
  c.kv_lora_rank = 32;
  c.qk_nope_head_dim = 16;
  c.qk_rope_head_dim = 8;
  c.v_head_dim = 12;
  c.n_routed_experts = 4;
  c.n_shared_experts = 2;
  c.num_experts_per_tok = 2;
  c.max_position_embeddings = 128;
  c.num_nextn_predict_layers = 1;
  return spec;
}

// The tensors of small_spec() after `change`, headers only, and what mapping them says.
std::string map_error(const std::function<void(std::vector<TensorSpec>&)>& change,
                      const std::function<void(ModelConfig&)>& change_config = {}) {
  TempDir dir;
  SyntheticSpec spec = small_spec();
  std::vector<TensorSpec> tensors = synthetic_tensors(spec);
  change(tensors);
  { storage::CheckpointWriter writer(dir.path(), tensors, ~uint64_t{0}); }
  if (change_config) change_config(spec.config);
  const Checkpoint checkpoint = Checkpoint::open(dir.path());
  return test::message_of<LoadError>(dir.path(),
                                     [&] { (void)map_tensors(spec.config, checkpoint); });
}

TensorSpec& tensor(std::vector<TensorSpec>& tensors, const std::string& name) {
  for (TensorSpec& t : tensors) {
    if (t.name == name) return t;
  }
  throw std::runtime_error("no tensor " + name);
}

void remove(std::vector<TensorSpec>& tensors, const std::string& name) {
  std::erase_if(tensors, [&](const TensorSpec& t) { return t.name == name; });
}

TEST(WeightsMap, finds_every_tensor_of_the_bundled_models) {
  for (const char* name : {"tiny-fp8", "tiny-bf16", "rand-ragged", "rand-v2", "rand-long"}) {
    SCOPED_TRACE(name);
    const ModelConfig config = load_config(kModels / name);
    const Checkpoint checkpoint = Checkpoint::open(kModels / name);
    const ModelTensors model = map_tensors(config, checkpoint);
    ASSERT_EQ(model.layers.size(), static_cast<size_t>(config.num_hidden_layers));
    const LayerTensors& last = model.layers.back();
    EXPECT_EQ(last.router.rows, config.n_routed_experts);
    EXPECT_EQ(model.layers[0].router.weight, nullptr);
    EXPECT_EQ(last.e_score_correction_bias.tensor != nullptr, config.has_correction_bias());
    const auto& attention = std::get<MlaTensors>(last.attention);
    EXPECT_EQ(attention.q_a_proj.weight != nullptr, config.q_lora_rank > 0);
    EXPECT_EQ(attention.q_a_layernorm.tensor != nullptr, config.q_lora_rank > 0);
    EXPECT_EQ(last.ffn.down_proj.cols, config.n_shared_experts * config.moe_intermediate_size);
    const storage::ExpertCatalog catalog = map_experts(config, checkpoint);
    EXPECT_EQ(catalog.format, config.fp8 ? WeightFormat::kFp8E4m3 : WeightFormat::kBf16);
    EXPECT_EQ(catalog.experts.size(), catalog.moe_layers.size());
    EXPECT_EQ(catalog.moe_layers.front(), config.first_k_dense_replace);
    EXPECT_EQ(catalog.experts[0].size(), static_cast<size_t>(config.n_routed_experts));
    EXPECT_EQ(catalog.experts[0][3].down.weight->name,
              fmt::format("model.layers.{}.mlp.experts.3.down_proj.weight",
                          config.first_k_dense_replace));
    EXPECT_EQ(catalog.experts[0][3].gate.scale != nullptr, config.fp8);
  }
}

TEST(WeightsMap, takes_weight_and_scale_from_different_shards_and_ragged_grids) {
  TempDir dir;
  const SyntheticSpec spec = small_spec();
  { storage::CheckpointWriter writer(dir.path(), synthetic_tensors(spec), 1); }  // a shard each
  const Checkpoint checkpoint = Checkpoint::open(dir.path());
  const ModelTensors model = map_tensors(spec.config, checkpoint);
  const storage::MatrixSource& o = std::get<MlaTensors>(model.layers[0].attention).o_proj;
  EXPECT_NE(o.weight->shard, o.scale->shard);
  EXPECT_THAT(o.weight->shape, testing::ElementsAre(140, 24));
  EXPECT_THAT(o.scale->shape, testing::ElementsAre(2, 1));
  EXPECT_THAT(model.layers[1].ffn.gate_proj.scale->shape, testing::ElementsAre(3, 2));
}

TEST(WeightsMap, takes_converted_checkpoints_and_other_legal_variants) {
  const auto none = [](ModelConfig&) {};
  // Everything BF16 or F32 without scales although the config still says fp8.
  for (const WeightFormat format : {WeightFormat::kBf16, WeightFormat::kF32}) {
    EXPECT_EQ(map_error(
                  [&](auto& tensors) {
                    SyntheticSpec spec = small_spec();
                    spec.format = format;
                    tensors = synthetic_tensors(spec);
                  },
                  none),
              "no error");
  }
  EXPECT_EQ(map_error([](auto& t) {
              tensor(t, "model.norm.weight").dtype = DType::kF32;
              tensor(t, "model.layers.1.mlp.gate.weight").dtype = DType::kF32;
              tensor(t, "model.layers.1.mlp.gate.e_score_correction_bias").dtype = DType::kBf16;
              t.push_back({"model.layers.0.self_attn.rotary_emb.inv_freq", DType::kF32, {4}});
            }),
            "no error");
  // MTP tensors are left out whole, or not there.
  EXPECT_EQ(map_error([](auto& tensors) {
              std::erase_if(tensors, [](const TensorSpec& t) {
                return t.name.starts_with("model.layers.3.");
              });
            }),
            "no error");
}

// Of a quantized KV cache, which this one is not.
TEST(WeightsMap, ignores_scales_of_a_cache) {
  EXPECT_EQ(map_error([](auto& t) {
              t.push_back({"model.layers.0.self_attn.k_scale", DType::kF32, {}});
              t.push_back({"model.layers.1.self_attn.attn.v_scale", DType::kBf16, {1}});
            }),
            "no error");
  EXPECT_THAT(map_error([](auto& t) {
                t.push_back({"model.layers.0.self_attn.k_scale", DType::kF32, {2}});
              }),
              testing::HasSubstr("k_scale\": not part of a deepseek_v3 model"));
  EXPECT_THAT(map_error([](auto& t) {
                t.push_back({"model.layers.0.mlp.k_scale", DType::kF32, {1}});
              }),
              testing::HasSubstr("k_scale\": not part of a deepseek_v3 model"));
}

// The first matrix of each kind, packed.
std::vector<std::vector<std::byte>> packed(const std::filesystem::path& dir,
                                           const ModelConfig& config) {
  const Checkpoint checkpoint = Checkpoint::open(dir);
  const ModelTensors model = map_tensors(config, checkpoint);
  const auto experts = map_experts(config, checkpoint);
  std::vector<std::vector<std::byte>> all;
  for (const storage::MatrixSource& matrix :
       {std::get<MlaTensors>(model.layers[0].attention).o_proj, model.layers[0].ffn.down_proj,
        experts.experts[0][3].gate, experts.experts[1][1].down}) {
    storage::PackTarget target;
    target.shape =
        storage::HeldFormat().shape(matrix.format, matrix.rows, matrix.cols, target.source);
    std::vector<std::byte>& bytes = all.emplace_back();
    const size_t codes = target.shape.total_code_bytes();
    bytes.resize(codes + target.shape.total_scale_bytes() + 64);
    target.codes = bytes.data();
    target.scales = reinterpret_cast<float*>(bytes.data() + codes);
    std::vector<float> window(static_cast<size_t>(matrix.cols) * 8);
    NoProgress progress;
    storage::pack_matrix(checkpoint, matrix, 0, matrix.rows, {&target, 1},
                         std::as_writable_bytes(std::span(window)), progress);
  }
  return all;
}

// Writes small_spec() with scales that BF16 holds exactly, as `dtype` and with names that end so.
void write_with_scales(const std::filesystem::path& dir, DType dtype, const std::string& suffix) {
  std::vector<TensorSpec> specs = synthetic_tensors(small_spec());
  for (TensorSpec& spec : specs) {
    if (!spec.name.ends_with("_scale_inv")) continue;
    spec.dtype = dtype;
    spec.name.replace(spec.name.size() - 10, 10, suffix);
  }
  storage::CheckpointWriter writer(dir, specs, ~uint64_t{0});
  for (const storage::TensorInfo& tensor : writer.tensors()) {
    std::vector<std::byte> data(tensor.bytes, std::byte{0x35});
    const size_t value_bytes = dtype == DType::kF32 ? 4 : 2;
    if (tensor.name.ends_with(suffix)) {
      for (size_t i = 0; i < data.size(); i += value_bytes) {  // the upper half of 1.25, 1.5, ...
        const uint16_t bits = 0x3fa0 + 0x20 * (i / value_bytes % 5);
        std::memset(data.data() + i, 0, value_bytes);
        std::memcpy(data.data() + i + value_bytes - 2, &bits, 2);
      }
    }
    writer.write(tensor, 0, data);
  }
  writer.finish();
}

TEST(WeightsMap, scales_of_either_dtype_and_name_are_the_same_weights) {
  TempDir published, other;
  const ModelConfig config = small_spec().config;
  write_with_scales(published.path(), DType::kF32, "_scale_inv");
  write_with_scales(other.path(), DType::kBf16, "_scale");
  const auto expected = packed(published.path(), config);
  EXPECT_EQ(packed(other.path(), config), expected);
  EXPECT_NE(expected[0], expected[1]);
  const auto rows = component_table(config, Checkpoint::open(other.path()));
  EXPECT_TRUE(std::none_of(rows.begin(), rows.end(), [](const ComponentRow& row) {
    return row.component == Component::kOther;
  }));
}

TEST(WeightsMap, takes_the_first_mtp_layer_if_it_is_asked_for) {
  TempDir dir;
  const SyntheticSpec spec = small_spec();
  { storage::CheckpointWriter writer(dir.path(), synthetic_tensors(spec), 1 << 20); }
  const Checkpoint checkpoint = Checkpoint::open(dir.path());
  EXPECT_EQ(why_no_mtp(spec.config, checkpoint), "");
  EXPECT_FALSE(map_tensors(spec.config, checkpoint).mtp);
  const ModelTensors model =
      map_tensors(spec.config, checkpoint, RoutedExperts::kInCheckpoint, MtpLayers::kFirst);
  ASSERT_TRUE(model.mtp);
  EXPECT_EQ(model.mtp->eh_proj.cols, 2 * spec.config.hidden_size);
  EXPECT_EQ(model.mtp->norm.tensor->name, "model.layers.3.shared_head.norm.weight");
  EXPECT_EQ(model.mtp->layer.router.weight->name, "model.layers.3.mlp.gate.weight");
  const storage::ExpertCatalog catalog = map_experts(spec.config, checkpoint, MtpLayers::kFirst);
  EXPECT_THAT(catalog.moe_layers, testing::ElementsAre(1, 2, 3));
  EXPECT_EQ(catalog.num_layers, 4);
  EXPECT_EQ(catalog.num_mtp_layers, 1);

  TempDir without;
  SyntheticSpec plain = small_spec();
  plain.config.num_nextn_predict_layers = 0;
  { storage::CheckpointWriter writer(without.path(), synthetic_tensors(plain), 1 << 20); }
  EXPECT_EQ(why_no_mtp(plain.config, Checkpoint::open(without.path())),
            "the model has no next-token layer");
}

// The index names all files; some were not downloaded.
TEST(WeightsMap, files_of_nothing_but_the_mtp_layer_may_be_absent) {
  TempDir dir;
  const SyntheticSpec spec = small_spec();
  { storage::CheckpointWriter writer(dir.path(), synthetic_tensors(spec), 1); }  // a shard each
  std::string of_mtp, of_layer;
  {
    const auto source = open_checkpoint(dir.path(), spec.config);
    const storage::TensorSource& whole = *source;
    EXPECT_TRUE(whole.absent().empty());
    const auto file_of = [&](const char* name) {
      return whole.shards()[whole.find(name)->shard].file_name;
    };
    of_mtp = file_of("model.layers.3.eh_proj.weight");
    of_layer = file_of("model.layers.2.self_attn.o_proj.weight");
  }
  std::filesystem::remove(dir / of_mtp);
  EXPECT_THROW((void)Checkpoint::open(dir.path()), LoadError);
  const auto source = open_checkpoint(dir.path(), spec.config);
  const storage::TensorSource& checkpoint = *source;
  EXPECT_THAT(checkpoint.absent(), testing::ElementsAre("model.layers.3.eh_proj.weight"));
  EXPECT_EQ(map_tensors(spec.config, checkpoint).layers.size(), 3u);
  EXPECT_EQ(map_experts(spec.config, checkpoint, MtpLayers::kAll).num_layers, 3);
  EXPECT_EQ(why_no_mtp(spec.config, checkpoint),
            "1 tensors of the next-token layer are in files that are not there");
  std::filesystem::remove(dir / of_layer);
  EXPECT_THAT(test::message_of<LoadError>(dir.path(),
                                          [&] { (void)open_checkpoint(dir.path(), spec.config); }),
              testing::HasSubstr(of_layer));
}

struct BadTensors {
  const char* name;
  std::function<void(std::vector<TensorSpec>&)> change;
  std::string message;
  std::function<void(ModelConfig&)> change_config;
};

std::vector<BadTensors> bad_tensors() {
  const std::string gate = "model.layers.1.mlp.experts.2.gate_proj.weight";
  const std::string file = "DIR/model.safetensors: ";
  return {
      {"embedding_missing",
       [](auto& t) { remove(t, "model.embed_tokens.weight"); },
       "DIR: tensor \"model.embed_tokens.weight\" is missing",
       {}},
      {"head_missing",
       [](auto& t) { remove(t, "lm_head.weight"); },
       "DIR: tensor \"lm_head.weight\" is missing",
       {}},
      {"expert_missing",
       [=](auto& t) { remove(t, gate); },
       "DIR: tensor \"" + gate + "\" is missing",
       {}},
      {"bias_missing",
       [](auto& t) { remove(t, "model.layers.2.mlp.gate.e_score_correction_bias"); },
       "DIR: tensor \"model.layers.2.mlp.gate.e_score_correction_bias\" is missing",
       {}},
      {"scale_missing",
       [=](auto& t) { remove(t, gate + "_scale_inv"); },
       "DIR: tensor \"" + gate + "_scale_inv\" is missing",
       {}},
      {"weight_shape",
       [=](auto& t) {
         tensor(t, gate).shape = {131, 140};
       },
       file + "tensor \"" + gate + "\": shape [131, 140], expected [130, 140]",
       {}},
      {"weight_transposed",
       [](auto& t) {
         tensor(t, "model.layers.0.mlp.down_proj.weight").shape = {200, 140};
       },
       file + "tensor \"model.layers.0.mlp.down_proj.weight\": shape [200, 140], expected [140, "
              "200]",
       {}},
      {"scale_shape",
       [=](auto& t) {
         tensor(t, gate + "_scale_inv").shape = {1, 2};
       },
       file + "tensor \"" + gate + "_scale_inv\": shape [1, 2], expected [2, 2]",
       {}},
      {"scale_flat",
       [=](auto& t) { tensor(t, gate + "_scale_inv").shape = {4}; },
       file + "tensor \"" + gate + "_scale_inv\": shape [4], expected [2, 2]",
       {}},
      {"scale_dtype",
       [=](auto& t) { tensor(t, gate + "_scale_inv").dtype = DType::kF16; },
       file + "tensor \"" + gate + "_scale_inv\": dtype \"F16\", expected F32 or BF16",
       {}},
      {"weight_dtype",
       [=](auto& t) { tensor(t, gate).dtype = DType::kI8; },
       file + "tensor \"" + gate + "\": dtype \"I8\", expected F8_E4M3, BF16 or F32",
       {}},
      {"half_precision",
       [](auto& t) { tensor(t, "model.embed_tokens.weight").dtype = DType::kF16; },
       file + "tensor \"model.embed_tokens.weight\": dtype \"F16\", expected F8_E4M3, BF16 or F32",
       {}},
      {"norm_dtype",
       [](auto& t) { tensor(t, "model.norm.weight").dtype = DType::kF8E4m3; },
       file + "tensor \"model.norm.weight\": dtype \"F8_E4M3\", expected BF16 or F32",
       {}},
      {"norm_shape",
       [](auto& t) { tensor(t, "model.norm.weight").shape = {139}; },
       file + "tensor \"model.norm.weight\": shape [139], expected [140]",
       {}},
      {"scale_of_bf16_weight",
       [=](auto& t) { tensor(t, gate).dtype = DType::kBf16; },
       file + "tensor \"" + gate + "_scale_inv\": a scale for a weight of dtype BF16",
       {}},
      {"experts_in_two_formats",
       [=](auto& t) {
         tensor(t, gate).dtype = DType::kBf16;
         remove(t, gate + "_scale_inv");
       },
       file + "tensor \"" + gate +
           "\": routed experts in two formats: bf16 here, fp8 in "
           "\"model.layers.1.mlp.experts.0.gate_proj.weight\"",
       {}},
      {"router_fp8",
       [](auto& t) {
         tensor(t, "model.layers.1.mlp.gate.weight").dtype = DType::kF8E4m3;
         t.push_back({"model.layers.1.mlp.gate.weight_scale_inv", DType::kF32, {1, 2}});
       },
       file + "tensor \"model.layers.1.mlp.gate.weight\": dtype F8_E4M3, expected BF16 or F32",
       {}},
      {"fp8_without_config", [](auto&) {},
       file + "tensor \"model.layers.0.self_attn.q_a_proj.weight\": dtype F8_E4M3, but config.json "
              "has no quantization_config",
       [](ModelConfig& c) { c.fp8 = false; }},
      {"unknown_tensor",
       [](auto& t) {
         t.push_back({"model.layers.1.self_attn.indexer.wk.weight", DType::kBf16, {2, 2}});
         t.push_back({"model.layers.2.self_attn.indexer.wk.weight", DType::kBf16, {2, 2}});
       },
       file + "tensor \"model.layers.1.self_attn.indexer.wk.weight\": not part of a deepseek_v3 "
              "model of 3 layers as config.json describes it (2 such tensors)",
       {}},
      {"expert_too_many",
       [](auto& t) {
         t.push_back({"model.layers.1.mlp.experts.4.gate_proj.weight", DType::kBf16, {2, 2}});
       },
       file + "tensor \"model.layers.1.mlp.experts.4.gate_proj.weight\": not part of a deepseek_v3 "
              "model of 3 layers as config.json describes it (1 such tensors)",
       {}},
      // Layer 2 is ordinary, not MTP: a config with too few layers must not leave it out.
      {"layer_too_many", [](auto&) {},
       file + "tensor \"model.layers.2.input_layernorm.weight\": not part of a deepseek_v3 model "
              "of 2 layers as config.json describes it (46 such tensors)",
       [](ModelConfig& c) { c.num_hidden_layers = 2; }},
      {"layer_too_few", [](auto&) {},
       "DIR: tensor \"model.layers.4.input_layernorm.weight\" is missing",
       [](ModelConfig& c) { c.num_hidden_layers = 5; }},
  };
}

class BadTensorLists : public testing::TestWithParam<BadTensors> {};

TEST_P(BadTensorLists, are_refused_in_one_line) {
  EXPECT_EQ(map_error(GetParam().change, GetParam().change_config), GetParam().message);
}

INSTANTIATE_TEST_SUITE_P(WeightsMap, BadTensorLists, testing::ValuesIn(bad_tensors()),
                         [](const auto& info) { return std::string(info.param.name); });

// "model.layers.1" must not be taken for "model.layers.11" or the other way round.
TEST(WeightsMap, compares_layer_numbers_not_prefixes) {
  TempDir dir;
  SyntheticSpec spec = small_spec();
  spec.config.num_hidden_layers = 12;
  { storage::CheckpointWriter writer(dir.path(), synthetic_tensors(spec), ~uint64_t{0}); }
  const Checkpoint checkpoint = Checkpoint::open(dir.path());
  const ModelTensors model = map_tensors(spec.config, checkpoint);
  EXPECT_EQ(model.layers[11].input_layernorm.tensor->name,
            "model.layers.11.input_layernorm.weight");
  uint64_t mtp = 0;
  for (const ComponentRow& row : component_table(spec.config, checkpoint)) {
    if (row.component == Component::kMtp) mtp += row.tensors;
  }
  uint64_t in_layer_12 = 0;
  for (const storage::TensorInfo& t : checkpoint.tensors()) {
    in_layer_12 += t.name.starts_with("model.layers.12.");
  }
  EXPECT_EQ(mtp, in_layer_12);
}

void overwrite(const Checkpoint& checkpoint, const storage::TensorInfo& tensor, uint64_t at,
               const std::string& bytes) {
  std::fstream file(checkpoint.directory() / checkpoint.shards()[tensor.shard].file_name,
                    std::ios::in | std::ios::out | std::ios::binary);
  file.seekp(static_cast<std::streamoff>(tensor.offset + at));
  file << bytes << std::flush;
  ASSERT_TRUE(file.good());
}

TEST(WeightsMap, read_plain_converts_and_refuses_what_is_not_finite) {
  TempDir dir;
  const std::vector<TensorSpec> specs = {{"bf16", DType::kBf16, {3}}, {"f32", DType::kF32, {2}}};
  { storage::CheckpointWriter writer(dir.path(), specs, ~uint64_t{0}); }
  const Checkpoint checkpoint = Checkpoint::open(dir.path());
  const PlainTensor bf16{checkpoint.find("bf16")}, f32{checkpoint.find("f32")};
  overwrite(checkpoint, *bf16.tensor, 2, std::string("\xc0\xbf", 2));         // -1.5
  overwrite(checkpoint, *f32.tensor, 4, std::string("\x00\x00\x80\x7e", 4));  // 2^126
  EXPECT_THAT(read_plain(checkpoint, bf16, 3), testing::ElementsAre(0.0f, -1.5f, 0.0f));
  EXPECT_THAT(read_plain(checkpoint, f32, 2), testing::ElementsAre(0.0f, 0x1p126f));
  const auto error = [&](const PlainTensor& plain, int64_t count) {
    return test::message_of<LoadError>(dir.path(),
                                       [&] { (void)read_plain(checkpoint, plain, count); });
  };
  EXPECT_EQ(error(f32, 3), "DIR/model.safetensors: tensor \"f32\": 2 values, expected 3");
  overwrite(checkpoint, *bf16.tensor, 4, std::string("\x80\xff", 2));
  EXPECT_EQ(error(bf16, 3),
            "DIR/model.safetensors: tensor \"bf16\": value 2 is not finite: the file is damaged, "
            "fetch it again");
  overwrite(checkpoint, *f32.tensor, 0, std::string("\x01\x00\x80\x7f", 4));
  EXPECT_EQ(error(f32, 2),
            "DIR/model.safetensors: tensor \"f32\": value 0 is not finite: the file is damaged, "
            "fetch it again");
}

}  // namespace
}  // namespace atl::model
