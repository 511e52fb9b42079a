// A GGUF file in place of the checkpoint that it was made from: equal bits, one-line errors.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>
#include <string>
#include <vector>

#include "coordinator/engine/evaluate.h"
#include "deployment/deployment.h"
#include "model/gguf_source.h"
#include "tests/support/command.h"
#include "tests/support/gguf_bytes.h"
#include "tests/support/gguf_model.h"
#include "tests/support/temp_dir.h"
#include "text/chat_template.h"
#include "text/tokenizer.h"

namespace atl {
namespace {

namespace fs = std::filesystem;
using kernels::WeightFormat;
using test::CommandResult;
using test::GgufBytes;
using test::TempDir;
using ::testing::HasSubstr;

constexpr uint32_t kF32 = 0, kQ8_0 = 8, kBf16 = 30;

CommandResult atoll(std::vector<std::string> arguments) {
  arguments.insert(arguments.begin(), ATOLL_BINARY);
  return test::run_command(arguments);
}

std::vector<float> logits(const fs::path& model, int nodes = 0,
                          const model::NumericsProfile& numerics = {}) {
  deployment::DeploymentOptions options;
  options.model_dir = model;
  options.cache_tokens = 256;
  options.rows_max = 4;
  options.node_program = ATOLL_BINARY;
  options.nodes = nodes;
  options.numerics = numerics;
  deployment::Deployment deployment(options);
  const std::vector<std::vector<int32_t>> rows = {{0, 5, 400, 14, 262, 300, 9}, {0, 42, 199}};
  std::vector<float> all;
  coordinator::EvaluateOptions evaluate;
  evaluate.rows_max = options.rows_max;
  auto result = coordinator::evaluate(deployment.engine(), rows, evaluate,
                                      [&](size_t, size_t, std::span<const float> row) {
                                        all.insert(all.end(), row.begin(), row.end());
                                      });
  EXPECT_TRUE(result) << (result ? "" : result.error().message);
  return all;
}

void expect_same_bits(const std::vector<float>& found, const std::vector<float>& expected,
                      const std::string& what) {
  ASSERT_FALSE(expected.empty());
  ASSERT_EQ(found.size(), expected.size()) << what;
  EXPECT_EQ(std::memcmp(found.data(), expected.data(), found.size() * sizeof(float)), 0) << what;
}

class Gguf : public ::testing::Test {
 protected:
  void SetUp() override { test::write_small_bf16_model(model_); }
  fs::path write(const std::string& name, const test::GgufModelSpec& spec) {
    test::write_gguf_model(model_, dir_ / name, spec);
    return dir_ / name;
  }
  TempDir dir_;
  fs::path model_ = dir_ / "model";
};

TEST_F(Gguf, gives_the_bits_of_its_checkpoint_in_either_layout_of_kv_b) {
  const std::vector<float> expected = logits(model_);
  expect_same_bits(logits(write("split.gguf", {kBf16, false, 1})), expected, "BF16, k_b and v_b");
  expect_same_bits(logits(write("joined.gguf", {kBf16, true, 1})), expected, "BF16, kv_b");
  test::write_dequantized_model(model_, dir_ / "f32", kF32);
  expect_same_bits(logits(write("f32.gguf", {kF32, false, 1})), logits(dir_ / "f32"), "F32");
}

TEST_F(Gguf, in_three_files_read_by_two_nodes_gives_the_same_bits) {
  write("m", {kBf16, false, 3});
  expect_same_bits(logits(dir_ / "m-00001-of-00003.gguf", 2), logits(model_), "three files");
  fs::remove(dir_ / "m-00002-of-00003.gguf");
  const CommandResult result = atoll({"inspect", (dir_ / "m-00001-of-00003.gguf").string()});
  EXPECT_EQ(result.exit_code, 1);
  EXPECT_THAT(result.err, HasSubstr("1 of 3 weight files is missing (\"m-00002-of-00003.gguf\")"));
}

TEST_F(Gguf, quantized_gives_the_bits_of_the_values_that_it_stands_for) {
  const fs::path file = write("q8.gguf", {kQ8_0, false, 1});
  test::write_dequantized_model(model_, dir_ / "values", kQ8_0);
  model::NumericsProfile exact, held;
  exact.format = exact.dense_format = WeightFormat::kF32;
  expect_same_bits(logits(file, 0, exact), logits(dir_ / "values"), "nothing lost");
  held.format = WeightFormat::kInt8;  // what is chosen for it
  held.dense_format = WeightFormat::kBf16;
  const std::vector<float> expected = logits(dir_ / "values", 0, held);
  expect_same_bits(logits(file), expected, "as it is held");

  const CommandResult packed = atoll({"pack", file.string(), "--out", (dir_ / "pack").string()});
  ASSERT_EQ(packed.exit_code, 0) << packed.err;
  EXPECT_THAT(packed.err, HasSubstr("experts (8.50 bits a weight) of Q8_0 in the file are held in "
                                    "int8: relative rms error 0.0"));
  EXPECT_THAT(packed.err, HasSubstr("other linear layers of Q8_0 in the file are held in bf16: "
                                    "relative rms error 0 (of"));
  expect_same_bits(logits(dir_ / "pack"), expected, "packed");
  const auto direct = model::open(file), pack = model::open(dir_ / "pack");
  EXPECT_EQ(direct->fingerprint(), pack->fingerprint());
}

TEST_F(Gguf, has_the_config_tokenizer_and_template_of_its_checkpoint) {
  const auto source = model::GgufSource::open(write("m.gguf", {kBf16, false, 1}));
  const auto text = [&](const char* name) { return *source->small_file(name, 1 << 30); };
  const auto found =
      text::Tokenizer::parse(text("tokenizer.json"), text("tokenizer_config.json"), "m.gguf");
  const auto expected = text::Tokenizer::load(model_);
  EXPECT_EQ(found.vocab_size(), expected.vocab_size());
  EXPECT_EQ(found.bos_id(), expected.bos_id());
  EXPECT_EQ(found.eos_id(), expected.eos_id());
  EXPECT_EQ(found.add_bos_token(), expected.add_bos_token());
  for (const std::string prompt :
       {"Call me Ishmael. 1851 \xe4\xb8\xad\xe6\x96\x87\r\n  <\xef\xbd\x9c"
        "end\xe2\x96\x81of\xe2\x96\x81sentence\xef\xbd\x9c>",
        "<think> it's\t</think>", ""}) {
    EXPECT_EQ(*found.encode(prompt), *expected.encode(prompt)) << prompt;
  }
  for (int32_t id = 0; id < expected.id_end(); ++id) {
    EXPECT_EQ(found.token_bytes(id), expected.token_bytes(id)) << id;
    EXPECT_EQ(found.is_special(id), expected.is_special(id)) << id;
  }
  const auto chat = text::ChatTemplate::parse_config(text("tokenizer_config.json"), "m.gguf");
  const auto of_model = text::ChatTemplate::load(model_);
  ASSERT_EQ(chat.has_value(), of_model.has_value());
  if (chat) {
    EXPECT_EQ(chat->source(), of_model->source());
  }

  const model::ModelConfig a = model::load_config(dir_ / "m.gguf"), b = model::load_config(model_);
  EXPECT_EQ(a.model_type, b.model_type);
  EXPECT_EQ(a.softmax_scale(), b.softmax_scale());
  EXPECT_EQ(a.rope_magnitude(), b.rope_magnitude());
  EXPECT_EQ(a.rope_inv_freq(), b.rope_inv_freq());
  EXPECT_EQ(a.rms_norm_eps, b.rms_norm_eps);
  EXPECT_EQ(a.routed_scaling_factor, b.routed_scaling_factor);
  EXPECT_EQ(a.bos_token_id, b.bos_token_id);
  EXPECT_EQ(a.eos_token_ids, b.eos_token_ids);
}

TEST_F(Gguf, commands_take_it) {
  const std::string file = write("m.gguf", {kQ8_0, false, 1}).string();
  const CommandResult inspected = atoll({"inspect", file});
  EXPECT_EQ(inspected.exit_code, 0) << inspected.err;
  EXPECT_THAT(inspected.out, HasSubstr("Q8_0"));
  const std::vector<std::string> how = {"--prompt", "Call me",       "--max-tokens",
                                        "4",        "--temperature", "0"};
  std::vector<std::string> run = {"run", file};
  run.insert(run.end(), how.begin(), how.end());
  const CommandResult result = atoll(run);
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_THAT(result.err, HasSubstr("held in int8: relative rms error"));
}

TEST_F(Gguf, without_a_tokenizer_is_inspected_all_the_same) {
  for (const char* name : {"tokenizer.json", "tokenizer_config.json"}) fs::remove(model_ / name);
  const std::string file = write("m.gguf", {kBf16, false, 1}).string();
  const CommandResult inspected = atoll({"inspect", file});
  EXPECT_EQ(inspected.exit_code, 0) << inspected.err;
  const CommandResult run = atoll({"run", file, "--prompt", "a"});
  EXPECT_EQ(run.exit_code, 1);
  EXPECT_THAT(run.err, HasSubstr("key tokenizer.ggml.model: missing"));
}

// The converter puts the two values of a rotary pair next to each other.
TEST(GgufOfLlama, has_the_rows_of_q_where_they_were_published) {
  const TempDir dir;
  std::string rows;  // of one value: their number in the file
  for (int row = 0; row < 8; ++row) {
    const auto value = static_cast<float>(row);
    rows.append(reinterpret_cast<const char*>(&value), sizeof value);
  }
  GgufBytes bytes;
  bytes.string("general.architecture", "llama").integer("llama.attention.head_count", 2);
  bytes.tensor("blk.0.attn_q.weight", {8, 1}, kF32, rows);
  test::write_file(dir / "m.gguf", bytes.file());
  const auto source = model::GgufSource::open(dir / "m.gguf");
  const auto* q = source->find("model.layers.0.self_attn.q_proj.weight");
  ASSERT_NE(q, nullptr);
  std::vector<float> values(8);
  source->read(*q, 0, std::as_writable_bytes(std::span(values)));
  EXPECT_THAT(values, ::testing::ElementsAre(0, 2, 1, 3, 4, 6, 5, 7));
}

TEST(GgufOfLlama, is_read_from_the_middle_of_a_block) {
  const TempDir dir;
  std::string blocks;  // of Q8_0: a scale of 1 in FP16, 32 codes
  for (int block = 0; block < 3; ++block) {
    blocks += std::string("\x00\x3c", 2);
    for (int i = 0; i < 32; ++i) blocks += static_cast<char>(32 * block + i);
  }
  GgufBytes bytes;
  bytes.string("general.architecture", "llama");
  bytes.tensor("token_embd.weight", {1, 96}, kQ8_0, blocks);
  test::write_file(dir / "m.gguf", bytes.file());
  const auto source = model::GgufSource::open(dir / "m.gguf");
  const auto* embedding = source->find("model.embed_tokens.weight");
  ASSERT_NE(embedding, nullptr);
  std::vector<float> values(70);
  source->read(*embedding, 5 * sizeof(float), std::as_writable_bytes(std::span(values)));
  for (size_t i = 0; i < values.size(); ++i) EXPECT_EQ(values[i], static_cast<float>(5 + i));
}

TEST(GgufOfV3, that_does_not_say_its_groups_is_noted) {
  const TempDir dir;
  const auto groups_are_missing = [&](bool says) {
    GgufBytes bytes;
    bytes.string("general.architecture", "deepseek2");
    bytes.integer("deepseek2.expert_gating_func", 2).integer("deepseek2.expert_count", 256);
    if (says) bytes.integer("deepseek2.expert_group_count", 8);
    test::write_file(dir / "m.gguf", bytes.file());
    return model::GgufSource::open(dir / "m.gguf")->summary().groups_are_missing;
  };
  EXPECT_TRUE(groups_are_missing(false));
  EXPECT_FALSE(groups_are_missing(true));
}

TEST(GgufRefusals, are_one_line_that_names_what_is_not_supported) {
  const TempDir dir;
  const auto error_of = [&](const GgufBytes& bytes) {
    test::write_file(dir / "m.gguf", bytes.file());
    const CommandResult result = atoll({"inspect", (dir / "m.gguf").string()});
    EXPECT_EQ(result.exit_code, 1);
    EXPECT_EQ(std::count(result.err.begin(), result.err.end(), '\n'), 1) << result.err;
    return result.err;
  };
  const auto deepseek = [] {
    GgufBytes bytes;
    bytes.string("general.architecture", "deepseek2");
    return bytes;
  };
  EXPECT_THAT(error_of(GgufBytes().string("general.architecture", "gemma3")),
              HasSubstr("m.gguf: key general.architecture: \"gemma3\" isn't supported; supported "
                        "are deepseek2, qwen2 and llama"));
  EXPECT_THAT(error_of(GgufBytes()), HasSubstr("key general.architecture: missing"));
  EXPECT_THAT(error_of(deepseek()), HasSubstr("key deepseek2.embedding_length: missing"));
  EXPECT_THAT(error_of(deepseek().tensor("t", {256}, 16, std::string(66, ' '))),
              HasSubstr("tensor \"t\": type IQ2_XXS isn't supported; supported are F32, F16"));
  const std::string zeros(600'000 * 4, 0);
  EXPECT_THAT(error_of(deepseek()
                           .integer("deepseek2.expert_count", 600'000)
                           .tensor("blk.0.ffn_up_exps.weight", {600'000, 1, 1}, kF32, zeros)),
              HasSubstr("600000 experts: more than 524288 tensors in all"));
  EXPECT_THAT(error_of(GgufBytes()
                           .string("general.architecture", "llama")
                           .tensor("rope_freqs.weight", {600'000}, kF32, zeros)),
              HasSubstr("600000 factors, expected at most 4096"));
  EXPECT_THAT(error_of(deepseek().tensor("t", {32}, 39, std::string(17, ' '))),
              HasSubstr("tensor \"t\": type MXFP4 isn't supported"));
}

}  // namespace
}  // namespace atl
