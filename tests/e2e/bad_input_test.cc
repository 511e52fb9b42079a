// What a user gets for a mistake: one line that says what is wrong, and an exit code. Real process.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <functional>
#include <limits>
#include <nlohmann/json.hpp>

#include "tests/support/command.h"
#include "tests/support/golden.h"
#include "tests/support/synthetic_model.h"
#include "tests/support/temp_dir.h"

namespace atl {
namespace {

using test::CommandResult;

constexpr int kFailure = 1, kUsage = 2;

const std::string kTiny = (test::tests_dir() / "models/tiny-fp8").string();
const std::string kIds = (test::tests_dir() / "golden/ppl/kjv.ids.u16.bin").string();

struct BadInput {
  std::vector<std::string> arguments;
  int exit_code;
  std::string says;  // part of the one line on stderr
};

void expect_refused(const BadInput& bad) {
  std::vector<std::string> argv = {ATOLL_BINARY};
  argv.insert(argv.end(), bad.arguments.begin(), bad.arguments.end());
  std::string shown;
  for (const std::string& argument : bad.arguments) shown += " " + argument.substr(0, 60);
  SCOPED_TRACE("atoll" + shown);
  const CommandResult result = test::run_command(argv);
  std::printf("atoll%s\n  exit %d: %s", shown.c_str(), result.exit_code, result.err.c_str());
  EXPECT_EQ(result.exit_code, bad.exit_code);
  EXPECT_EQ(result.out, "");
  EXPECT_THAT(result.err, testing::HasSubstr(bad.says));
  EXPECT_THAT(result.err, testing::StartsWith("atoll: error: "));
  EXPECT_EQ(std::count(result.err.begin(), result.err.end(), '\n'), 1) << "more than one line";
}

TEST(BadInput, flags) {
  const std::vector<BadInput> cases = {
      {{}, kUsage, "a command is required"},
      {{"rnu", kTiny}, kUsage, "rnu"},
      {{"run"}, kUsage, "model_dir"},
      {{"run", kTiny}, kFailure, "stdin is empty, and neither --prompt nor --prompt-file"},
      {{"run", kTiny, "--prompt", "a\xff"},
       kFailure,
       "--prompt is not UTF-8: byte 0xFF at offset 1"},
      {{"run", kTiny, "--prompt-file", "/nowhere/x"}, kFailure, "/nowhere/x: cannot be opened"},
      {{"run", kTiny, "--prompt-file", "/"}, kFailure, "/: is no file"},
      {{"run", kTiny, "--prompt-file", "/etc/hostname", "--prompt", "x"}, kUsage, "--prompt-file"},
      {{"eval", kTiny, "--text", "/bin/true", "--row-length", "8"},
       kFailure,
       "/bin/true is not UTF-8"},
      {{"run", kTiny, "--prompt", "x", "--node", "2"}, kUsage, "--nodes"},
      {{"run", kTiny, "--prompt", "x", "--nodes", "-1"}, kUsage, "--nodes"},
      {{"run", kTiny, "--prompt", "x", "--nodes", "two"}, kUsage, "--nodes"},
      {{"run", kTiny, "--prompt", "x", "--transport", "rdma"}, kUsage, "--transport"},
      {{"run", kTiny, "--prompt", "x", "--wire", "f16"}, kUsage, "--wire"},
      {{"run", kTiny, "--prompt", "x", "--kv", "fp8"}, kUsage, "--kv"},
      {{"run", kTiny, "--prompt", "x", "--format", "q4"}, kUsage, "--format"},
      {{"run", kTiny, "--prompt", "x", "--dense-format", "q4"}, kUsage, "--dense-format"},
      {{"run", kTiny, "--prompt", "x", "--activations", "i4"}, kUsage, "--activations"},
      {{"run", kTiny, "--prompt", "x", "--activations", "i8"},
       kFailure,
       "--activations i8 is for matrices in int4, and none is asked for"},
      {{"node", kTiny, "--format", "fp8", "--activations", "f32"},
       kFailure,
       "--activations f32 is for matrices in int4"},
      {{"run", kTiny, "--prompt", "x", "--max-tokens", "0"}, kUsage, "--max-tokens"},
      {{"run", kTiny, "--prompt", "x", "--chunk", "0"}, kUsage, "--chunk"},
      {{"run", kTiny, "--prompt", "x", "--threads", "-3"}, kUsage, "--threads"},
      {{"run", kTiny, "--prompt", "x", "--temperature", "-1"}, kFailure, "temperature"},
      {{"run", kTiny, "--prompt", "x", "--top-p", "1.5"}, kFailure, "top_p"},
      {{"run", kTiny, "--prompt", "x", "--top-k", "-2"}, kFailure, "top_k"},
      {{"run", kTiny, "--prompt", "x", "--min-p", "2"}, kFailure, "min_p"},
      {{"run", kTiny, "--prompt", "x", "--nodes", "2", "--tiles", "1,2"},
       kFailure,
       "tile counts 1,2 sum up to 3, expected 4"},
      {{"run", kTiny, "--prompt", "x", "--nodes", "3", "--tiles", "2,2"},
       kFailure,
       "--tiles names 2 nodes, --nodes 3"},
      {{"run", kTiny, "--prompt", "x", "--nodes", "5"},
       kFailure,
       "--nodes 5: expected 0 to 4: an expert of this model has 4 tiles"},
      {{"inspect", kTiny, "--nodes", "5"}, kFailure, "--nodes 5: expected 0 to 4"},
      {{"inspect", kTiny, "--context", "4096"}, kFailure, "--context 4096: the model has 2048"},
      {{"serve", kTiny, "--context", "4096"}, kFailure, "--context 4096: the model has 2048 pos"},
      {{"run", "deepseek-ai/DeepSeek-V3", "--prompt", "x"},
       kFailure,
       "huggingface-cli download deepseek-ai/DeepSeek-V3 --local-dir DeepSeek-V3"},
      {{"tokenize", "deepseek-ai/DeepSeek-V3"}, kFailure, "huggingface-cli download"},
      {{"serve", kTiny + "/config.json"},
       kFailure,
       "a file, expected its directory: give " + kTiny},
      {{"eval", kTiny + "/../x.gguf", "--tokens", kIds, "--row-length", "8"},
       kFailure,
       "x.gguf: there is no such file"},
      {{"run", kTiny, "--prompt", "x", "--log-level", "loud"}, kUsage, "loud"},
      {{"eval", kTiny, "--row-length", "8"}, kUsage, "--tokens"},
      {{"eval", kTiny, "--tokens", kIds}, kUsage, "--row-length"},
      {{"eval", kTiny, "--tokens", kIds, "--row-length", "1"}, kUsage, "--row-length"},
      {{"eval", kTiny, "--tokens", kIds, "--row-length", "8", "--dtype", "u8"}, kUsage, "--dtype"},
      {{"node", kTiny, "--listen", "nowhere"}, kUsage, "expected HOST:PORT"},
      {{"node", kTiny, "--name", "n1", "--keys", "/nowhere"}, kFailure, "/nowhere/ca.pem"},
      {{"node", kTiny, "--coordinators", "c1"}, kUsage, "--keys"},
      {{"keys", "--nodes", "n1"}, kUsage, "--out"},
      {{"keys", "--nodes", "../n1", "--out", "keys"}, kFailure, "'../n1' is no name of a member"},
      {{"keys", "--nodes", "n1,n1", "--out", "keys"}, kFailure, "n1 is named twice"},
      {{"keys", "--nodes", "n1", "--out", "/nowhere/keys"}, kFailure, "/nowhere/keys"},
      {{"node", kTiny, "--listen", "127.0.0.1:99999"}, kUsage, "expected HOST:PORT"},
      {{"node", kTiny, "--listen", "0.0.0.0:7001"}, kUsage, "can be reached from other machines"},
      {{"node", kTiny, "--listen", "[::]:7001"}, kUsage, "can be reached from other machines"},
      {{"node", kTiny, "--listen", "192.168.1.5:7001"},
       kUsage,
       "expected an address of this machine"},
      {{"node", kTiny, "--listen", "n1.example:7001"},
       kUsage,
       "expected an address of this machine"},
      {{"node", kTiny, "--cpus", "1023"},
       kFailure,
       "may not run on processor 1023, expected some of"},
      {{"serve", kTiny, "--port", "99999"}, kUsage, "--port: Value 99999 not in range 0 to 65535"},
  };
  for (const BadInput& bad : cases) expect_refused(bad);
}

TEST(BadInput, files_of_an_evaluation) {
  const test::TempDir dir;
  test::write_file(dir / "odd", std::string(10, '\0'));
  test::write_file(dir / "empty", "");
  const std::string high("\xff\xff\x00\x00", 4);  // ids 65535, 0
  test::write_file(dir / "high", high);
  const auto eval = [&](const std::string& file, const std::string& length) {
    return std::vector<std::string>{"eval", kTiny, "--tokens", file, "--row-length", length};
  };
  const std::string odd = (dir / "odd").string(), high_file = (dir / "high").string();
  const std::vector<BadInput> cases = {
      {eval((dir / "none").string(), "4"), kFailure, "No such file"},
      {eval(odd, "4"), kFailure, "10 bytes are not a whole number of rows of 4 u16 ids (8 bytes"},
      {eval((dir / "empty").string(), "4"), kFailure, "0 bytes are not a whole number of rows"},
      {eval(high_file, "2"), kFailure, "row 0, place 0: id 65535 is not in the vocabulary of 3328"},
      {eval(kIds, "4096"), kFailure, "longer than the model's 2048 positions"},
      {{"eval", kTiny, "--text", (dir / "empty").string(), "--row-length", "8"},
       kFailure,
       "no text"},
      {{"eval", kTiny, "--tokens", kIds, "--row-length", "384", "--logits-out", "/nowhere/x"},
       kFailure,
       "/nowhere/x: cannot be written"},
  };
  for (const BadInput& bad : cases) expect_refused(bad);
}

// A copy of a small generated model with one thing wrong.
TEST(BadInput, checkpoints) {
  struct Damage {
    const char* what;
    std::function<void(const std::filesystem::path&)> apply;
    std::string says;
  };
  const auto resize = [](const char* file, int64_t by) {
    return [file, by](const std::filesystem::path& dir) {
      std::filesystem::resize_file(dir / file, std::filesystem::file_size(dir / file) + by);
    };
  };
  const auto replace = [](const char* file, const std::string& from, const std::string& to) {
    return [=](const std::filesystem::path& dir) {
      std::ifstream in(dir / file, std::ios::binary);
      std::string text((std::istreambuf_iterator<char>(in)), {});
      const size_t at = text.find(from);
      ASSERT_NE(at, std::string::npos) << from;
      text.replace(at, from.size(), to);
      in.close();
      test::write_file(dir / file, text);
    };
  };
  const std::string shard = [] {
    const test::TempDir dir;
    test::write_small_model(dir.path(), 128, 64);
    for (const auto& entry : std::filesystem::directory_iterator(dir.path())) {
      if (entry.path().extension() == ".safetensors") return entry.path().filename().string();
    }
    return std::string();
  }();
  const char* s = shard.c_str();
  const std::vector<Damage> damages = {
      {"no config", [](const auto& dir) { std::filesystem::remove(dir / "config.json"); },
       "config.json"},
      {"config cut short", resize("config.json", -20), "config.json"},
      {"unknown architecture", replace("config.json", "deepseek_v3", "llama_moe_7"), "llama_moe_7"},
      {"no shard", [s](const auto& dir) { std::filesystem::remove(dir / s); }, s},
      {"shard cut short", resize(s, -1000), s},
      {"shard too long", resize(s, 100), s},
      {"header length absurd",
       [s](const auto& dir) {
         std::fstream file(dir / s, std::ios::in | std::ios::out | std::ios::binary);
         file.write("\xff\xff\xff\xff\xff\xff\xff\x7f", 8);
       },
       "header"},
      {"tensor renamed", replace(s, "model.norm.weight", "model.nrom.weight"),
       "tensor \"model.norm.weight\" is missing"},
      {"dtype changed", replace(s, "\"F8_E4M3\"", "\"F8_E5M2\""), "F8_E5M2"},
      {"scale not finite",
       [](const auto& dir) {
         test::patch_tensor(dir, "model.layers.0.self_attn.o_proj.weight_scale_inv", 0, 1,
                            std::numeric_limits<float>::quiet_NaN());
       },
       "model.layers.0.self_attn.o_proj.weight_scale_inv"},
      {"expert scale not finite",
       [](const auto& dir) {
         test::patch_tensor(dir, "model.layers.1.mlp.experts.3.down_proj.weight_scale_inv", 0, 1,
                            std::numeric_limits<float>::infinity());
       },
       "model.layers.1.mlp.experts.3.down_proj.weight_scale_inv"},
      {"FP8 NaN",
       [](const auto& dir) {  // four bytes of 0x7f
         test::patch_tensor(dir, "model.layers.1.mlp.experts.2.up_proj.weight", 64, 1,
                            std::bit_cast<float>(0x7f7f7f7fu));
       },
       "model.layers.1.mlp.experts.2.up_proj.weight"},
      {"bias not finite",
       [](const auto& dir) {
         test::patch_tensor(dir, "model.layers.1.mlp.gate.e_score_correction_bias", 0, 1,
                            std::numeric_limits<float>::quiet_NaN());
       },
       "e_score_correction_bias"},
      {"other FP8 blocks",
       [](const auto& dir) {
         std::ifstream in(dir / "config.json");
         nlohmann::json config = nlohmann::json::parse(in);
         config["quantization_config"]["weight_block_size"] = {64, 64};
         test::write_file(dir / "config.json", config.dump());
       },
       "weight_block_size"},
  };
  for (const Damage& damage : damages) {
    SCOPED_TRACE(damage.what);
    const test::TempDir dir;
    test::write_small_model(dir.path(), 128, 64);
    damage.apply(dir.path());
    test::write_file(dir / "ids", std::string(32, '\1'));
    for (const char* nodes : {"0", "2"}) {
      const CommandResult result =
          test::run_command({ATOLL_BINARY, "eval", dir.path().string(), "--tokens",
                             (dir / "ids").string(), "--row-length", "8", "--nodes", nodes});
      std::printf("%s, %s nodes\n  exit %d: %s", damage.what, nodes, result.exit_code,
                  result.err.c_str());
      EXPECT_EQ(result.exit_code, kFailure);
      EXPECT_EQ(result.out, "");
      const size_t error_line = result.err.rfind("atoll: error: ");
      ASSERT_NE(error_line, std::string::npos) << result.err;
      EXPECT_THAT(result.err.substr(error_line), testing::HasSubstr(damage.says));
    }
  }
}

TEST(BadInput, a_child_node_that_cannot_start_is_named_and_nothing_stays_behind) {
  test::CommandOptions options;
  options.environment = {"UCX_TLS=nonsense"};
  const CommandResult result = test::run_command(
      {ATOLL_BINARY, "run", kTiny, "--prompt", "x", "--nodes", "2", "--transport", "shm"}, options);
  std::printf("UCX_TLS=nonsense\n  exit %d: %s", result.exit_code, result.err.c_str());
  EXPECT_EQ(result.exit_code, kFailure);
  EXPECT_THAT(result.err, testing::HasSubstr("UCX"));
}

}  // namespace
}  // namespace atl
