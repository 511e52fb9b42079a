// Documents and examples say what the table says.
#include "config/describe.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>

#include "config/cluster_config.h"
#include "config/keys.h"

namespace atl::config {
namespace {

using ::testing::HasSubstr;
using Json = nlohmann::json;

const std::filesystem::path kRoot = ATOLL_SOURCE_DIR;

std::string read(const std::filesystem::path& path) {
  std::ifstream in(path);
  std::ostringstream text;
  text << in.rdbuf();
  return text.str();
}

TEST(Describe, the_document_has_the_table_of_keys) {
  const std::string document = read(kRoot / "docs/cluster.md");
  EXPECT_NE(document.find(markdown_table()), std::string::npos)
      << "put the output of `atoll config schema --markdown` into docs/cluster.md";
}

TEST(Describe, every_example_is_a_cluster_file) {
  int examples = 0;
  for (const auto& entry : std::filesystem::directory_iterator(kRoot / "deploy/examples")) {
    if (entry.path().extension() != ".yaml") continue;
    ++examples;
    ClusterConfig config;
    ASSERT_NO_THROW(config = load_cluster_config(entry.path(), {})) << entry.path();
    EXPECT_THAT(not_built(config), testing::IsEmpty()) << entry.path();
  }
  EXPECT_GE(examples, 4);
}

TEST(Describe, the_schema_names_every_key_and_closes_every_section) {
  const Json schema = Json::parse(json_schema());
  for (const Key& key : keys()) {
    const Json* at = &schema;
    std::istringstream parts(key.path);
    for (std::string part; std::getline(parts, part, '.');) {
      EXPECT_EQ((*at)["additionalProperties"], false) << key.path;
      const bool is_list = part.ends_with("[]");
      at = &at->at("properties").at(is_list ? part.substr(0, part.size() - 2) : part);
      if (is_list) at = &at->at("items");
    }
    EXPECT_EQ(at->at("description"), key.about);
  }
  EXPECT_EQ(schema["properties"]["nodes"]["items"]["required"], Json({"name"}));
}

TEST(Describe, show_tells_value_and_origin) {
  Overrides overrides;
  overrides.flags = {"redundancy=1"};
  const Settings settings =
      Settings::parse("model: [/a, /b]\nnodes: [{name: n, control: 'h:1'}]\n", "c.yaml", overrides);
  const std::string text = show_text(settings, true);
  EXPECT_THAT(text, testing::ContainsRegex("model: \\[/a, /b\\] +# c.yaml:1:8\n"));
  EXPECT_THAT(text, testing::ContainsRegex("redundancy: 1 +# --set\n"));
  EXPECT_THAT(text, testing::ContainsRegex("numerics.wire: bf16 +# default\n"));
  const Json json = Json::parse(show_json(settings, true));
  EXPECT_EQ(json["model"]["value"], Json({"/a", "/b"}));
  EXPECT_EQ(json["redundancy"]["origin"], "flag");
  EXPECT_EQ(json["nodes[0].name"],
            Json({{"value", "n"}, {"origin", "file"}, {"where", "c.yaml:2:16"}}));
  EXPECT_EQ(Json::parse(show_json(settings, false))["nodes[0].name"], "n");
}

}  // namespace
}  // namespace atl::config
