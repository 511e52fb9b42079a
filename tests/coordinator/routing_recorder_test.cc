#include "coordinator/engine/routing_recorder.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "base/result.h"
#include "tests/support/temp_dir.h"

namespace atl::coordinator {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::Pair;
using testing::SizeIs;

model::ModelConfig small_config() {
  model::ModelConfig config;
  config.num_hidden_layers = 3;
  config.n_routed_experts = 300;
  config.num_experts_per_tok = 2;
  return config;
}

// As docs/profiling.md says.
struct Record {
  uint32_t step = 0;
  uint16_t layer = 0, rows = 0;
  std::vector<std::pair<int, int>> experts;
};
struct Recorded {
  nlohmann::json about;
  std::vector<Record> records;
};
Recorded read_back(const std::filesystem::path& path) {
  std::ostringstream text;
  text << std::ifstream(path, std::ios::binary).rdbuf();
  const std::string file = text.str();
  size_t at = file.find('\n') + 1;
  Recorded recorded{nlohmann::json::parse(file.substr(0, at)), {}};
  const auto number = [&](size_t bytes) {
    uint64_t value = 0;
    for (size_t i = 0; i < bytes; ++i) {
      value |= uint64_t{static_cast<unsigned char>(file.at(at++))} << (8 * i);
    }
    return value;
  };
  while (at < file.size()) {
    Record& record = recorded.records.emplace_back();
    record.step = static_cast<uint32_t>(number(4));
    record.layer = static_cast<uint16_t>(number(2));
    record.rows = static_cast<uint16_t>(number(2));
    for (uint64_t n = number(2); n > 0; --n) {
      const auto expert = static_cast<int>(number(2));
      record.experts.emplace_back(expert, static_cast<int>(number(2)));
    }
  }
  return recorded;
}

TEST(RoutingRecorder, writes_the_experts_of_each_step_and_layer_and_not_whose_they_were) {
  const test::TempDir dir;
  {
    RoutingRecorder recorder({dir / "routing", 1 << 20, "a model", "abc"}, small_config());
    recorder.begin_step();
    recorder.on_layer(1, std::vector<int32_t>{299, 4, 4, 7, -1, -1});
    recorder.on_layer(2, std::vector<int32_t>{0, 1, 0, 1, 0, 1});
    recorder.begin_step();
    recorder.on_layer(1, std::vector<int32_t>{5, 4});
  }
  const Recorded recorded = read_back(dir / "routing");
  EXPECT_EQ(recorded.about.at("atoll_routing"), 1);
  EXPECT_EQ(recorded.about.at("checkpoint"), "abc");
  EXPECT_EQ(recorded.about.at("experts"), 300);
  ASSERT_THAT(recorded.records, SizeIs(3));
  EXPECT_EQ(recorded.records[0].step, 1u);
  EXPECT_EQ(recorded.records[0].layer, 1);
  EXPECT_EQ(recorded.records[0].rows, 3);
  EXPECT_THAT(recorded.records[0].experts, ElementsAre(Pair(4, 2), Pair(7, 1), Pair(299, 1)));
  EXPECT_THAT(recorded.records[1].experts, ElementsAre(Pair(0, 3), Pair(1, 3)));
  EXPECT_EQ(recorded.records[2].step, 2u);
}

TEST(RoutingRecorder, ends_with_whole_steps_at_its_bound) {
  const test::TempDir dir;
  constexpr uint64_t kBound = 2000;
  {
    RoutingRecorder recorder({dir / "routing", kBound, "m", "abc"}, small_config());
    for (int step = 0; step < 200; ++step) {
      recorder.begin_step();
      for (int layer = 0; layer < 3; ++layer) {
        recorder.on_layer(layer, std::vector<int32_t>{step, step + 1});
      }
    }
    EXPECT_EQ(recorder.steps_lost(), 0u);
  }
  EXPECT_LE(std::filesystem::file_size(dir / "routing"), kBound);
  const Recorded recorded = read_back(dir / "routing");
  ASSERT_GT(recorded.records.size(), 50u);
  EXPECT_EQ(recorded.records.size() % 3, 0u);
  EXPECT_EQ(recorded.records.back().step, recorded.records.size() / 3);
}

TEST(RoutingRecorder, says_that_a_file_cannot_be_made) {
  const test::TempDir dir;
  const std::string message = test::message_of<LoadError>(dir.path(), [&] {
    RoutingRecorder({dir / "none/file", 1 << 20, "m", "abc"}, small_config());
  });
  EXPECT_THAT(message, HasSubstr("--record-routing DIR/none/file: cannot be written: No "
                                 "such file or directory"));
}

}  // namespace
}  // namespace atl::coordinator
