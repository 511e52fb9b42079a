#include "cli/experts_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/result.h"
#include "coordinator/api/experts_json.h"

namespace atl::cli {
namespace {

using testing::DoubleNear;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::Not;
using testing::SizeIs;

model::ModelConfig model_config(int64_t layers, int64_t experts, int64_t top_k) {
  model::ModelConfig config;
  config.num_hidden_layers = layers;
  config.n_routed_experts = experts;
  config.num_experts_per_tok = top_k;
  return config;
}

// Two layers of four experts, one a token: 3, 2, 1, 0 rows, always followed by expert 3.
std::string document() {
  ManualClock clock;
  coordinator::ExpertLoad load(model_config(2, 4, 1), clock);
  for (const int32_t expert : {0, 0, 0, 1, 1, 2}) {
    load.begin_step();
    load.count(0, std::vector<int32_t>{expert});
    load.count(1, std::vector<int32_t>{3});
  }
  clock.advance(std::chrono::seconds(90));
  load.begin_step();
  load.count(0, std::vector<int32_t>{2});
  return coordinator::experts_json({"a <model>", "abc", 4, 1},
                                   load.snapshot(coordinator::ExpertLoad::With::kAll));
}

std::string refusal(const std::string& text) {
  try {
    (void)parse_experts_file(text, "f.json");
  } catch (const LoadError& error) {
    return error.what();
  }
  return "none";
}

TEST(ExpertsFile, reads_what_the_server_says) {
  const ExpertsFile file = parse_experts_file(document(), "f");
  EXPECT_EQ(file.model, "a <model>");
  EXPECT_EQ(file.checkpoint, "abc");
  EXPECT_EQ(file.experts, 4);
  EXPECT_EQ(file.seconds, 90);
  ASSERT_THAT(file.layers, SizeIs(2));
  EXPECT_THAT(file.layers[0].uses, ElementsAre(3, 2, 2, 0));
  EXPECT_EQ(file.layers[0].rows, 7u);
  EXPECT_EQ(file.layers[0].small_distinct, 7u);
  EXPECT_THAT(file.layers[0].follows, ElementsAre(1, 0, 0, 0));
  EXPECT_THAT(file.layers[1].follows, SizeIs(0));
  ASSERT_THAT(file.windows, SizeIs(2));
  EXPECT_THAT(file.windows[0].layers[0].uses, ElementsAre(3, 2, 1, 0));
  EXPECT_THAT(file.windows[1].layers[0].uses, ElementsAre(0, 0, 1, 0));
}

TEST(ExpertsFile, reads_a_large_model_of_which_little_is_known_yet) {
  ManualClock clock;
  coordinator::ExpertLoad load(model_config(58, 256, 8), clock);
  for (size_t i = 0; i <= coordinator::ExpertLoad::kWindowsMax; ++i) {
    load.begin_step();
    for (int layer = 0; layer < 58; ++layer) {
      load.count(layer, std::vector<int32_t>{0, 1, 2, 3, 4, 5, 6, 7});
    }
    clock.advance(coordinator::ExpertLoad::kWindow);
  }
  const std::string text = coordinator::experts_json(
      {"m", "abc", 256, 8}, load.snapshot(coordinator::ExpertLoad::With::kAll));
  EXPECT_EQ(parse_experts_file(text, "f").layers.size(), 58u);
}

TEST(ExpertsFile, hit_rate_is_of_those_that_were_used_most) {
  const ExpertsFile file = parse_experts_file(document(), "f");
  const auto at = [&](double share) { return hit_rate(file.layers, file.layers, share); };
  EXPECT_EQ(at(0), 0);
  EXPECT_THAT(at(0.125), DoubleNear(6.0 / 13, 1e-12));  // expert 3 of the second layer
  EXPECT_THAT(at(0.25), DoubleNear(9.0 / 13, 1e-12));
  EXPECT_EQ(at(0.5), 1);
  EXPECT_EQ(at(1), 1);
  // What the whole time would keep isn't what the last window wants.
  EXPECT_EQ(hit_rate(file.layers, file.windows[1].layers, 0.25), 0);
}

TEST(ExpertsFile, the_page_is_whole_in_itself) {
  const std::string page = experts_page(parse_experts_file(document(), "f"));
  EXPECT_THAT(page, HasSubstr("<title>Experts of a &lt;model&gt;</title>"));
  EXPECT_THAT(page, Not(HasSubstr("http")));
  EXPECT_THAT(page, Not(HasSubstr("<script")));
  for (const char* heading : {"Load", "Hit rate", "Skew", "Neighbouring layers"}) {
    EXPECT_THAT(page, HasSubstr(std::string("<h2>") + heading));
  }
  // Half of all pairs hold all uses.
  EXPECT_THAT(page, HasSubstr("<td>50 %</td><td>100.0 %</td>"));
  EXPECT_TRUE(page.ends_with("</body></html>\n"));
}

TEST(ExpertsFile, a_usage_file_of_a_node_will_do) {
  const ExpertsFile file = parse_experts_file(
      R"({"atoll_expert_usage":1,"checkpoint":"x","layers":[{"layer":3,"uses":[0.5,1.5]}]})", "f");
  EXPECT_THAT(file.layers[0].uses, ElementsAre(0.5, 1.5));
  EXPECT_THAT(experts_page(file), Not(HasSubstr("Neighbouring layers")));
}

TEST(ExpertsFile, says_what_is_wrong) {
  EXPECT_THAT(refusal("{"), HasSubstr("f.json: "));
  EXPECT_THAT(refusal("{}"), HasSubstr("no file of `atoll experts dump`"));
  EXPECT_THAT(refusal(R"({"atoll_expert_usage":1})"), HasSubstr("\"layers\" is no list"));
  EXPECT_THAT(refusal(R"({"atoll_expert_usage":1,"layers":[]})"), HasSubstr("no layers"));
  EXPECT_THAT(refusal(R"({"atoll_expert_usage":1,"layers":[{"layer":1,"uses":[1,-1]}]})"),
              HasSubstr("-1 in \"uses\", expected numbers from 0 on"));
  EXPECT_THAT(refusal(R"({"atoll_expert_usage":1,"layers":[{"layer":1,"uses":[1]},)"
                      R"({"layer":2,"uses":[1,2]}]})"),
              HasSubstr("layers of different numbers of experts"));
}

}  // namespace
}  // namespace atl::cli
