// Models without experts: the same bits on any way through the engine, what they refuse, and served
// as a process.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <csignal>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "base/child_process.h"
#include "coordinator/engine/engine.h"
#include "deployment/deployment.h"
#include "http/http_client.h"
#include "tests/support/command.h"
#include "tests/support/golden.h"
#include "tests/support/temp_dir.h"

namespace atl {
namespace {

using coordinator::Engine;
using coordinator::Sequence;
using coordinator::SequenceRows;
using coordinator::WantLogits;
using kernels::WeightFormat;
using nlohmann::json;
using test::tests_dir;
using testing::HasSubstr;

constexpr const char* kModels[] = {"rand-qwen2", "rand-llama3", "rand-llama-linear",
                                   "rand-qwen2-yarn"};

deployment::DeploymentOptions options_for(const std::string& model, int threads = 1) {
  deployment::DeploymentOptions options;
  options.model_dir = tests_dir() / "models" / model;
  options.threads = threads;
  options.cache_tokens = 1024;
  return options;
}

std::vector<int32_t> tokens_of(size_t count, int32_t seed) {
  std::vector<int32_t> tokens;
  for (size_t i = 0; i < count; ++i) {
    tokens.push_back((seed + 37 * static_cast<int32_t>(i)) % 290 + 3);
  }
  return tokens;
}

// Logits of the sequence's last row after each of these pieces, in one step each; with `beside`
// another sequence's tokens in each step.
std::vector<float> last_logits(Engine& engine, Sequence& sequence,
                               const std::vector<int32_t>& tokens, size_t piece,
                               std::optional<int32_t> beside = {}) {
  std::vector<float> last;
  Sequence other;
  for (size_t at = static_cast<size_t>(sequence.num_tokens); at < tokens.size(); at += piece) {
    const auto rest = std::span(tokens).subspan(at);
    std::vector<SequenceRows> rows;
    const std::vector<int32_t> neighbour = tokens_of(at % 5 + 1, beside.value_or(0));
    if (beside) rows.push_back({&other, neighbour, WantLogits::kNone});
    rows.push_back({&sequence, rest.first(std::min(piece, rest.size())), WantLogits::kLast});
    std::vector<std::optional<Error>> errors(rows.size());
    const size_t own = rows.size() - 1;
    EXPECT_TRUE(engine.step(
        rows,
        [&](size_t w, size_t, std::span<const float> logits) {
          if (w == own) last.assign(logits.begin(), logits.end());
        },
        errors));
    for (const auto& error : errors) EXPECT_FALSE(error) << error->message;
  }
  engine.release(other);
  return last;
}

struct Held {
  kernels::RowType cache;
  std::optional<WeightFormat> format;
};
constexpr Held kHeld[] = {{kernels::RowType::kF32, {}},
                          {kernels::RowType::kBf16, {}},
                          {kernels::RowType::kBf16, WeightFormat::kInt8},
                          {kernels::RowType::kBf16, WeightFormat::kInt4}};

TEST(Dense, same_bits_for_any_chunk_batch_and_number_of_threads) {
  const std::vector<int32_t> tokens = tokens_of(150, 5);
  for (const char* model : kModels) {
    for (const Held& held : kHeld) {
      SCOPED_TRACE(std::string(model) + " " +
                   (held.format ? std::string(to_string(*held.format)) : "as it is"));
      std::vector<float> expected;
      for (const int threads : {1, 2}) {
        deployment::DeploymentOptions options = options_for(model, threads);
        options.numerics.cache = held.cache;
        options.numerics.dense_format = held.format;
        deployment::Deployment deployment(options);
        Engine& engine = deployment.engine();
        const auto run = [&](size_t piece, std::optional<int32_t> beside) {
          Sequence sequence;
          std::vector<float> logits = last_logits(engine, sequence, tokens, piece, beside);
          engine.release(sequence);
          return logits;
        };
        if (threads == 1) expected = run(tokens.size(), {});
        ASSERT_FALSE(expected.empty());
        EXPECT_EQ(run(97, 23), expected);
        if (threads > 1) continue;  // small steps of several threads mostly wait
        EXPECT_EQ(run(1, {}), expected);
        EXPECT_EQ(run(7, {}), expected);
        EXPECT_EQ(run(64, 11), expected);
      }
    }
  }
}

TEST(Dense, a_kept_prefix_changes_no_bit) {
  for (const char* model : kModels) {
    SCOPED_TRACE(model);
    deployment::Deployment deployment(options_for(model));
    Engine& engine = deployment.engine();
    std::vector<int32_t> tokens = tokens_of(150, 5);
    Sequence first;
    const std::vector<float> alone = last_logits(engine, first, tokens, 150);
    engine.keep(first, tokens);
    engine.release(first);
    Sequence again;
    engine.reuse(again, tokens);
    EXPECT_EQ(again.num_tokens, 128);
    EXPECT_EQ(last_logits(engine, again, tokens, 22), alone);
    engine.release(again);

    tokens[100] = 9;  // in the second block
    Sequence branched;
    engine.reuse(branched, tokens);
    EXPECT_EQ(branched.num_tokens, 64);
    const std::vector<float> found = last_logits(engine, branched, tokens, 86);
    Sequence fresh;
    EXPECT_EQ(last_logits(engine, fresh, tokens, 150), found);
    EXPECT_NE(found, alone);
    engine.release(branched);
    engine.release(fresh);
  }
}

// Positions far beyond the original context of the rope scaling, up to the model's end and no
// further.
TEST(Dense, the_last_position_counts_and_there_is_none_behind_it) {
  deployment::DeploymentOptions options = options_for("rand-qwen2-yarn");
  deployment::Deployment deployment(options);
  Engine& engine = deployment.engine();
  const std::vector<int32_t> tokens = tokens_of(512, 3);
  Sequence sequence;
  const std::vector<float> whole = last_logits(engine, sequence, tokens, 512);
  const std::vector<int32_t> more = {7};
  const SequenceRows rows{&sequence, more, WantLogits::kLast};
  std::optional<Error> error;
  ASSERT_TRUE(engine.step(std::span(&rows, 1), {}, std::span(&error, 1)));
  ASSERT_TRUE(error);
  EXPECT_EQ(error->message, "context of 513 tokens is longer than the model's 512 positions");
  engine.release(sequence);
  Sequence in_pieces;
  EXPECT_EQ(last_logits(engine, in_pieces, tokens, 100), whole);
  engine.release(in_pieces);
}

TEST(Dense, holds_what_the_memory_check_counts) {
  for (const char* model : kModels) {
    for (const Held& held : kHeld) {
      SCOPED_TRACE(model);
      deployment::DeploymentOptions options = options_for(model);
      options.numerics.cache = held.cache;
      options.numerics.dense_format = held.format;
      deployment::Deployment deployment(options);
      const auto opened = model::open(options.model_dir);
      deployment::MemoryRequest request;
      request.numerics = opened->settle(options.numerics);
      request.cache_tokens = options.cache_tokens;
      const deployment::DeploymentNeed need = deployment::memory_need(*opened, request);
      EXPECT_TRUE(need.nodes.empty());
      EXPECT_EQ(need.coordinator.experts, 0u);
      EXPECT_EQ(need.coordinator.weights, deployment.engine().weights().bytes());
      const coordinator::KvCache& cache = deployment.engine().cache();
      EXPECT_EQ(need.coordinator.kv_cache,
                static_cast<uint64_t>(cache.max_blocks()) *
                    coordinator::KvCache::block_bytes(deployment.config().num_hidden_layers,
                                                      cache.shape()));
    }
  }
}

// A tied embedding is in memory once, unless the head is held in another format.
TEST(Dense, a_tied_embedding_is_held_once) {
  const auto opened = model::open(tests_dir() / "models/rand-qwen2");
  const model::ModelTensors tensors = opened->tensors();
  const uint64_t embedding = tensors.embed_tokens.weight->bytes;
  const auto held = [&](std::optional<WeightFormat> format) {
    return coordinator::Weights::held_bytes(opened->config, tensors, {format, {}});
  };
  uint64_t all = 0;
  for (const storage::TensorInfo& tensor : opened->checkpoint.tensors()) {
    if (tensor.shape.size() == 2) all += tensor.bytes;
  }
  // Panels of 16 outputs: 331 rows take the room of 336.
  EXPECT_EQ(held({}), all + 5 * embedding / 331);
  EXPECT_GT(held(WeightFormat::kF32), 2 * all);
}

// ---- As a process ------------------------------------------------------------------------------

test::CommandResult atoll(std::vector<std::string> arguments) {
  arguments.insert(arguments.begin(), ATOLL_BINARY);
  return test::run_command(arguments);
}

// A Qwen2 shape with a token for each byte and a chat template with DeepSeek's marks.
class DenseProcess : public testing::Test {
 protected:
  DenseProcess() {
    const test::CommandResult made =
        atoll({"synth", "--like", "qwen2-1.5b", "--layers", "2", "--hidden", "64", "--heads", "6",
               "--intermediate", "96", "--vocab", "300", "--out", model()});
    if (made.exit_code != 0) throw std::runtime_error(made.err);
    test::write_file(dir_ / "model/chat_template.jinja",
                     "{{ bos_token }}{% for m in messages %}{{ '<|' + m['role'] + '|>' + "
                     "m['content'] }}{% endfor %}{% if add_generation_prompt %}<|assistant|>"
                     "{% endif %}");
  }
  std::string model() const { return (dir_.path() / "model").string(); }

  const test::TempDir dir_;
};

TEST_F(DenseProcess, refuses_what_only_routed_experts_have) {
  const std::string alone =
      ": a qwen2 model has no routed experts that nodes could hold: it runs on the coordinator "
      "alone\n";
  const std::pair<std::vector<std::string>, std::string> cases[] = {
      {{"--nodes", "2"}, "--nodes" + alone},
      {{"--tiles", "1,1"}, "--tiles" + alone},
      {{"--redundancy", "2"}, "--redundancy" + alone},
      {{"--ram-budget", "1GiB"},
       "--ram-budget: a qwen2 model has no routed experts: all its weights stay in RAM\n"},
      {{"--format", "int4"},
       "--format: a qwen2 model has no routed experts: --dense-format says how weights are held\n"},
      {{"--prefetch", "next-layer"}, "--prefetch: a qwen2 model has no routed experts\n"},
  };
  for (const auto& [options, message] : cases) {
    std::vector<std::string> arguments = {"run", model(), "--prompt", "x", "--max-tokens", "1"};
    arguments.insert(arguments.end(), options.begin(), options.end());
    const test::CommandResult result = atoll(arguments);
    EXPECT_EQ(result.exit_code, 1);
    EXPECT_EQ(result.err, "atoll: error: " + message);
    EXPECT_EQ(result.out, "");
  }
  test::write_file(
      dir_ / "cluster.yaml",
      "cluster: c\nmodel: " + model() + "\nnodes:\n  - {name: n1, control: \"127.0.0.1:7001\"}\n");
  const test::CommandResult with_nodes =
      atoll({"run", "--config", (dir_.path() / "cluster.yaml").string(), "--prompt", "x"});
  EXPECT_EQ(with_nodes.exit_code, 1);
  EXPECT_THAT(with_nodes.err, HasSubstr("cluster.yaml: nodes" + alone));
  const test::CommandResult packed =
      atoll({"pack", model(), "--out", (dir_.path() / "pack").string()});
  EXPECT_EQ(packed.exit_code, 1);
  EXPECT_THAT(packed.err, HasSubstr("the model has no routed experts: there is nothing to pack"));
  const test::CommandResult node = atoll({"node", model(), "--listen", "127.0.0.1:0"});
  EXPECT_EQ(node.exit_code, 1);
  EXPECT_THAT(node.err, HasSubstr("a qwen2 model has no routed experts that a node could hold"));
}

TEST_F(DenseProcess, inspect_tells_what_it_is_and_takes) {
  const test::CommandResult text = atoll({"inspect", model()});
  EXPECT_EQ(text.exit_code, 0) << text.err;
  EXPECT_THAT(text.out, HasSubstr("6 heads of 128, 1 of keys and values; q, k and v with bias"));
  EXPECT_THAT(text.out, HasSubstr("theta 10000, not scaled"));
  EXPECT_THAT(text.out, testing::Not(HasSubstr("tiles")));
  const test::CommandResult result = atoll({"inspect", model(), "--json"});
  const json facts = json::parse(result.out);
  EXPECT_EQ(facts["model"]["num_key_value_heads"], 1);
  EXPECT_EQ(facts["tiles"], nullptr);
  EXPECT_EQ(facts["kv_cache_bytes_per_token"]["bf16"], 2 * 2 * 128 * 2);
  EXPECT_EQ(facts["memory"]["nodes"], json::array());
  const test::CommandResult device = atoll({"inspect", model(), "--device-memory", "24GiB"});
  EXPECT_THAT(device.out, HasSubstr("grouped-query attention (Qwen2, Llama) has no GPU kernel"));
}

TEST_F(DenseProcess, is_served_with_prefixes_and_schemas) {
  ChildOptions child;
  child.argv = {ATOLL_BINARY, "serve", model(), "--port", "0", "--log-level", "warn"};
  child.pipe_stdout = true;
  ChildProcess process = ChildProcess::start(child);
  const auto line = process.read_line(std::chrono::seconds(60));
  ASSERT_TRUE(line) << line.error().message;
  const std::string url = line->substr(std::string("listening on ").size());
  http::HttpClient client(*http::parse_http_url(url));
  const auto post = [&](const char* path, const json& body) {
    auto answer = client.ask({.method = "POST", .path = path, .body = body.dump()});
    EXPECT_TRUE(answer) << answer.error().message;
    return answer ? json::parse(answer->body) : json();
  };
  // The tokens of `run`, and the same once more from the cache.
  const std::string prompt(100, 'w');
  const test::CommandResult run =
      atoll({"run", model(), "--prompt", prompt, "--max-tokens", "12", "--json"});
  const std::string expected = json::parse(run.out)["text"];
  const json completion = {
      {"model", "model"}, {"prompt", prompt}, {"max_tokens", 12}, {"temperature", 0}};
  for (const int cached : {0, 64}) {
    const json answer = post("/v1/completions", completion);
    EXPECT_EQ(answer["choices"][0]["text"], expected) << answer.dump();
    EXPECT_EQ(answer["usage"]["prompt_tokens_details"]["cached_tokens"], cached) << answer.dump();
  }
  // Random weights, held to a schema.
  const json chat = {{"model", "model"},
                     {"max_tokens", 200},
                     {"seed", 3},
                     {"messages", {{{"role", "user"}, {"content", "Hi"}}}},
                     {"response_format",
                      {{"type", "json_schema"},
                       {"json_schema",
                        {{"name", "s"},
                         {"schema",
                          {{"type", "object"},
                           {"properties", {{"ok", {{"type", "boolean"}}}}},
                           {"required", {"ok"}},
                           {"additionalProperties", false}}}}}}}};
  const json answer = post("/v1/chat/completions", chat);
  const json content = json::parse(answer["choices"][0]["message"]["content"].get<std::string>());
  EXPECT_TRUE(content["ok"].is_boolean()) << answer.dump();
  // What shows a running server does so without nodes.
  const auto stats = client.ask({.path = "/stats"});
  ASSERT_TRUE(stats);
  const json told = json::parse(stats->body);
  EXPECT_EQ(told["nodes"], json::array());
  EXPECT_EQ(told["model"]["experts"], 0);
  EXPECT_EQ(told["server"]["state"], "ready");
  for (const char* path : {"/metrics", "/health", "/experts", "/version"}) {
    const auto page = client.ask({.path = path});
    ASSERT_TRUE(page) << path;
    EXPECT_EQ(page->status, 200) << path << " " << page->body;
  }
  process.send_signal(SIGTERM);
  const auto ended = process.wait(std::chrono::seconds(30));
  EXPECT_EQ(ended ? *ended : ended.error().message, "exit code 0");
}

}  // namespace
}  // namespace atl
