// Tiles in the file's text: comments and all else stay.
#include "config/write_tiles.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "base/result.h"
#include "config/cluster_config.h"

namespace atl::config {
namespace {

TEST(WriteTiles, puts_them_behind_names_and_in_place_of_old_ones) {
  const std::string text = R"(# A hall.
model: /m   # the model
nodes:
  - {name: a, control: "127.0.0.1:1"}   # flow
  - name: 'b'  # block
    control: 127.0.0.1:2
  - control: 127.0.0.1:3
    tiles: 12  # old
    name: c
  - {"name": "d", tiles: 1, control: "127.0.0.1:4"}
)";
  const std::string written = with_tiles(text, "c.yaml", {{"a", 3}, {"b", 4}, {"c", 5}, {"d", 60}});
  EXPECT_EQ(written, R"(# A hall.
model: /m   # the model
nodes:
  - {name: a, tiles: 3, control: "127.0.0.1:1"}   # flow
  - name: 'b'  # block
    tiles: 4
    control: 127.0.0.1:2
  - control: 127.0.0.1:3
    tiles: 5  # old
    name: c
  - {"name": "d", tiles: 60, control: "127.0.0.1:4"}
)");
  const ClusterConfig config = make_cluster_config(Settings::parse(written, "/c.yaml", {}));
  EXPECT_EQ(config.nodes[1].tiles, 4);
  EXPECT_EQ(config.nodes[3].tiles, 60);
  // Once more changes nothing.
  EXPECT_EQ(with_tiles(written, "c.yaml", {{"a", 3}, {"b", 4}, {"c", 5}, {"d", 60}}), written);
}

TEST(WriteTiles, a_last_line_without_end_and_a_node_that_is_not_there) {
  EXPECT_EQ(with_tiles("model: /m\nnodes:\n- name: a", "c.yaml", {{"a", 2}}),
            "model: /m\nnodes:\n- name: a\n  tiles: 2");
  EXPECT_THROW(with_tiles("model: /m\nnodes: [{name: a}]\n", "c.yaml", {{"b", 2}}), LoadError);
  EXPECT_THROW(with_tiles("model: /m\n", "c.yaml", {{"b", 2}}), LoadError);
}

}  // namespace
}  // namespace atl::config
