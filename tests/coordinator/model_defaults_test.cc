// load_model_defaults() of coordinator/api/api.h.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "base/result.h"
#include "coordinator/api/api.h"
#include "tests/support/temp_dir.h"

namespace atl::coordinator {
namespace {

using ::testing::HasSubstr;

ModelDefaults defaults_of(const std::string& generation_config) {
  const test::TempDir dir;
  test::write_file(dir / "generation_config.json", generation_config);
  return load_model_defaults(dir.path());
}

std::string error_of(const std::string& generation_config) {
  try {
    defaults_of(generation_config);
  } catch (const LoadError& error) {
    return error.what();
  }
  return "";
}

TEST(ModelDefaults, are_those_of_generation_config) {
  const ModelDefaults defaults = defaults_of(R"({"temperature": 0.6, "top_p": 0.95, "x": []})");
  EXPECT_EQ(defaults.temperature, 0.6f);
  EXPECT_EQ(defaults.top_p, 0.95f);
}

TEST(ModelDefaults, may_be_missing) {
  const test::TempDir empty;
  EXPECT_FALSE(load_model_defaults(empty.path()).temperature);
  EXPECT_FALSE(defaults_of("{}").top_p);
  EXPECT_FALSE(defaults_of(R"({"temperature": null})").temperature);
  EXPECT_FALSE(defaults_of(R"({"top_p": 0})").top_p);
}

TEST(ModelDefaults, say_what_is_wrong) {
  EXPECT_THAT(error_of("[]"), HasSubstr("generation_config.json: not a JSON object"));
  EXPECT_THAT(error_of("{"), HasSubstr("not a JSON object"));
  EXPECT_THAT(error_of(R"({"temperature": "hot"})"),
              HasSubstr("temperature: expected a number from 0 to 100, found \"hot\""));
  EXPECT_THAT(error_of(R"({"top_p": 1.5})"), HasSubstr("found 1.5"));
}

}  // namespace
}  // namespace atl::coordinator
