// Where values come from, and what each mistake in a file says.
#include "config/settings.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "config/keys.h"

namespace atl::config {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

Settings parse(const std::string& text, const Overrides& overrides = {}) {
  return Settings::parse(text, "dir/cluster.yaml", overrides);
}

std::string error_of(const std::string& text, const Overrides& overrides = {}) {
  try {
    (void)parse(text, overrides);
  } catch (const LoadError& error) {
    return error.what();
  }
  return "no error";
}

const std::string kTwoNodes =
    "model: /m\n"
    "node_defaults: {ram: 1GiB}\n"
    "nodes:\n"
    "  - {name: n1, control: 'h:1'}\n"
    "  - {name: n2, control: 'h:2', ram: 2GiB}\n";

TEST(Settings, come_from_flag_environment_file_and_default_in_this_order) {
  const std::string file = "model: /m\ncoordinator: {chunk: 1}\n";
  EXPECT_EQ(parse("model: /m\n").at("coordinator.chunk").text(), "512");
  EXPECT_EQ(parse("model: /m\n").at("coordinator.chunk").origin, Origin::kDefault);
  EXPECT_EQ(parse(file).at("coordinator.chunk").text(), "1");
  EXPECT_EQ(parse(file).at("coordinator.chunk").where, "cluster.yaml:2:22");
  Overrides overrides;
  overrides.environment = {{"ATOLL_COORDINATOR_CHUNK", "2"}};
  EXPECT_EQ(parse(file, overrides).at("coordinator.chunk").text(), "2");
  EXPECT_EQ(parse(file, overrides).at("coordinator.chunk").where, "ATOLL_COORDINATOR_CHUNK");
  overrides.flags = {"coordinator.chunk=3"};
  EXPECT_EQ(parse(file, overrides).at("coordinator.chunk").text(), "3");
  EXPECT_EQ(parse(file, overrides).at("coordinator.chunk").origin, Origin::kFlag);
}

TEST(Settings, of_a_node_come_from_node_defaults_where_it_says_nothing) {
  const Settings settings = parse(kTwoNodes);
  EXPECT_EQ(settings.at("nodes[0].ram").text(), "1GiB");
  EXPECT_EQ(settings.at("nodes[1].ram").text(), "2GiB");
  EXPECT_EQ(settings.at("nodes[0].threads").text(), "0");
}

TEST(Settings, of_one_node_are_set_by_the_environment_of_that_node_alone) {
  Overrides overrides;
  overrides.environment = {{"ATOLL_NODE_RAM", "7GiB"}};
  EXPECT_EQ(parse(kTwoNodes, overrides).at("nodes[1].ram").text(), "2GiB");
  overrides.node = "n2";
  EXPECT_EQ(parse(kTwoNodes, overrides).at("nodes[1].ram").text(), "7GiB");
  EXPECT_EQ(parse(kTwoNodes, overrides).at("nodes[0].ram").text(), "1GiB");
  overrides.flags = {"nodes.n1.ram=3GiB"};
  EXPECT_EQ(parse(kTwoNodes, overrides).at("nodes[0].ram").text(), "3GiB");
}

TEST(Settings, name_an_unknown_key_with_line_column_and_the_nearest_known_one) {
  EXPECT_EQ(error_of("model: /m\ncoordinator:\n  lisen: 1\n"),
            "cluster.yaml:3:3: unknown key 'lisen' in coordinator; did you mean 'listen'?");
  EXPECT_EQ(error_of("model: /m\nnodes:\n  - {name: n1, contrl: 'h:1'}\n"),
            "cluster.yaml:3:16: unknown key 'contrl' in a node; did you mean 'control'?");
  EXPECT_THAT(
      error_of("colour: red\n"),
      StartsWith("cluster.yaml:1:1: unknown key 'colour': expected one of cluster, model,"));
  Overrides overrides;
  overrides.flags = {"coordinator.chunks=1"};
  EXPECT_THAT(error_of("model: /m\n", overrides), HasSubstr("did you mean 'coordinator.chunk'?"));
  overrides.flags = {};
  overrides.environment = {{"ATOLL_COORDINATOR_CHUNKS", "1"}};
  EXPECT_THAT(error_of("model: /m\n", overrides),
              HasSubstr("did you mean ATOLL_COORDINATOR_CHUNK?"));
  overrides.environment = {{"ATOLL_REDUNDANC", "2"}};  // of no section
  EXPECT_THAT(error_of("model: /m\n", overrides), HasSubstr("did you mean ATOLL_REDUNDANCY?"));
  overrides.environment = {{"ATOLL_TOKENIZER_DATA", "somebody else's"}};
  EXPECT_EQ(error_of("model: /m\n", overrides), "no error");
}

TEST(Settings, take_one_value_of_a_flag) {
  Overrides overrides;
  overrides.flags = {"redundancy=1", "nodes.n1.ram=1GiB", "nodes.n2.ram=2GiB"};
  EXPECT_EQ(parse(kTwoNodes, overrides).at("nodes[1].ram").text(), "2GiB");
  overrides.flags.push_back("redundancy=2");
  EXPECT_EQ(error_of(kTwoNodes, overrides), "--set redundancy: given twice, expected one value");
}

struct Mistake {
  const char* file;
  const char* says;
};
const Mistake kMistakes[] = {
    {"model: /m\nmodel: /n\n", "2:1: key 'model' a second time; the first one is in line 1"},
    {"model: [\n", "cluster.yaml:"},
    {"model:\n", "model: has no value: leave the key out"},
    {"model: {a: b}\n", "model: expected one value or a list of values"},
    {"model: []\n", "model: an empty list"},
    {"- a\n", "expected keys and values"},
    {"model: /m\ncoordinator: 7\n", "coordinator: expected keys and values (name, listen,"},
    {"model: &a /m\n", "anchors (&) and aliases (*) are not taken"},
    {"a: &a [x]\nb: [*a, *a]\n", "anchors (&) and aliases (*) are not taken"},
    {"model: !!binary aGk=\n", "tags (!...) are not taken"},
    {"model: /m\n---\nmodel: /m\n", "a second document"},
    {"model: \"a\\nb\"\n", "a control character or line break"},
    {"? [a]\n: b\n", "a key has to be a text"},
    {"redundancy: 1.5\n", "redundancy: expected a whole number from 1 to 8, found '1.5'"},
    {"redundancy: 9\n", "redundancy: expected a whole number from 1 to 8, found '9'"},
    {"numerics: {format: fp4}\n",
     "numerics.format: expected one of auto, fp8, bf16, f32, int8, int4"},
    {"timeouts: {lost: 1000}\n", "timeouts.lost: expected a duration such as 100ms"},
    {"timeouts: {lost: 1}\n", "timeouts.lost: expected a duration"},
    {"timeouts: {heartbeat: 1ms}\n", "timeouts.heartbeat: expected 10ms to 1min, found '1ms'"},
    {"coordinator: {kv_cache: 8 Gi}\n", "expected a size with its unit such as 24GiB"},
    {"coordinator: {kv_cache: 0}\n", "expected a size from 1B"},
    {"coordinator: {device: gpu}\n", "expected auto, cpu or cuda:N, found 'gpu'"},
    {"coordinator: {machine: {mem_bw: 250GB}}\n", "expected a rate such as 250GB/s"},
    {"coordinator: {listen: 8080}\n", "expected HOST:PORT, found '8080'"},
    {"nodes: {name: n1}\n", "nodes: expected a list"},
    {"nodes: [n1]\n", "a node: expected keys and values"},
    {"nodes:\n  - control: 'h:1'\n", "2:5: a node without `name`"},
    {"nodes:\n  - {name: 'a b', control: 'h:1'}\n", "nodes[0].name: expected a name of up to 63"},
    {"nodes:\n  - {name: n1, control: 'h:0'}\n", "with a port from 1 to 65535"},
    {"nodes:\n  - {name: n1, control: 'h:70000'}\n", "with a port from 1 to 65535"},
    {"nodes:\n  - {name: n1, control: 'h:1x'}\n", "with a port from 1 to 65535"},
    {"nodes:\n  - {name: n1, control: '10.0.0.256:1'}\n", "an IPv4 address of four numbers"},
    {"nodes:\n  - {name: n1, control: '::1:7000'}\n", "an IPv6 host in brackets"},
    {"nodes:\n  - {name: n1, control: '[::g]:7000'}\n", "an IPv6 address in the brackets"},
    {"nodes:\n  - {name: n1, control: 'a b:1'}\n", "a host's name or address"},
};

TEST(Settings, tell_each_mistake_in_one_line_with_its_place) {
  for (const Mistake& mistake : kMistakes) {
    const std::string error = error_of(mistake.file);
    EXPECT_THAT(error, HasSubstr(mistake.says)) << mistake.file;
    EXPECT_THAT(error, StartsWith("cluster.yaml:"));
    EXPECT_EQ(error.find('\n'), std::string::npos);
  }
}

TEST(Settings, are_bounded_whoever_wrote_the_file) {
  std::string deep = "model: ";
  for (int i = 0; i < 100; ++i) deep += "[";
  for (int i = 0; i < 100; ++i) deep += "]";
  EXPECT_THAT(error_of(deep), HasSubstr("more than 8 lists and maps within each other"));
  std::string long_text = "model: " + std::string(5000, 'a') + "\n";
  EXPECT_THAT(error_of(long_text), HasSubstr("a text of 5000 bytes: expected at most 4096"));
  std::string many = "model: [";
  for (int i = 0; i < 25'000; ++i) many += "a,";
  EXPECT_THAT(error_of(many + "a]\n"), HasSubstr("more than 20000 values"));
  std::string nodes = "nodes:\n";
  for (int i = 0; i <= kNodesMax; ++i) nodes += "  - {name: a, control: 'h:1'}\n";
  EXPECT_THAT(error_of(nodes), HasSubstr("nodes: 257 of them, expected at most 256"));
}

TEST(Settings, of_a_list_take_one_or_several) {
  EXPECT_THAT(parse("model: /a\n").at("model").items, testing::ElementsAre("/a"));
  EXPECT_THAT(parse("model: [/a, /b]\n").at("model").items, testing::ElementsAre("/a", "/b"));
  Overrides overrides;
  overrides.flags = {"model=/c,/d"};
  EXPECT_THAT(parse("model: /a\n", overrides).at("model").items, testing::ElementsAre("/c", "/d"));
}

TEST(Durations, take_a_unit) {
  EXPECT_EQ(parse_duration_ms("100ms").value(), 100);
  EXPECT_EQ(parse_duration_ms("1.5s").value(), 1500);
  EXPECT_EQ(parse_duration_ms("2 min").value(), 120'000);
  EXPECT_EQ(parse_duration_ms("1h").value(), 3'600'000);
  for (const char* bad : {"", "100", "ms", "-1s", "1m", "1e3s", "infs", "nan ms"}) {
    EXPECT_FALSE(parse_duration_ms(bad)) << bad;
  }
}

TEST(Rates, are_bytes_a_second) {
  EXPECT_DOUBLE_EQ(parse_rate("250GB/s").value(), 250e9);
  EXPECT_DOUBLE_EQ(parse_rate("100Gbit/s").value(), 12.5e9);
  EXPECT_DOUBLE_EQ(parse_rate("1.5 MiB/s").value(), 1.5 * 1048576);
  for (const char* bad : {"", "250", "250GB", "Gbit/s", "1Gb/s"}) {
    EXPECT_FALSE(parse_rate(bad)) << bad;
  }
}

}  // namespace
}  // namespace atl::config
