// What a file says as plain values, and which values don't go together.
#include "config/cluster_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

namespace atl::config {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

ClusterConfig load(const std::string& text) {
  return make_cluster_config(Settings::parse(text, "/etc/atoll/cluster.yaml", {}));
}

std::string error_of(const std::string& text) {
  try {
    (void)load(text);
  } catch (const LoadError& error) {
    return error.what();
  }
  return "no error";
}

std::string nodes(const std::string& entries) { return "model: /m\nnodes: [" + entries + "]\n"; }

TEST(ClusterConfig, is_what_the_file_says) {
  const ClusterConfig config = load(R"(
cluster: lab
model: models/v3
numerics: {format: int4, wire: f32}
coordinator: {listen: "0.0.0.0:80", admin: "127.0.0.1:7900", device: cpu, kv_cache: 8GiB, chunk: 64}
security: {secret_file: secret}
timeouts: {heartbeat: 50ms, suspect: 200ms, lost: 2s, grace: 1min}
nodes:
  - {name: n1, control: "127.0.0.1:7001", ram: 24GiB, threads: 3, numa_node: 1,
     machine: {drives: [7GB/s, 3GB/s], nic: 100Gbit/s}}
  - {name: n2, control: "[::1]:7002", model: [/nvme0/p, q]}
)");
  EXPECT_EQ(config.cluster, "lab");
  EXPECT_EQ(config.model, "/etc/atoll/models/v3");
  EXPECT_EQ(config.numerics.format, "int4");
  EXPECT_EQ(config.numerics.wire, "f32");
  EXPECT_EQ(config.coordinator.listen, (Address{"0.0.0.0", 80}));
  EXPECT_EQ(config.coordinator.admin, (Address{"127.0.0.1", 7900}));
  EXPECT_EQ(config.coordinator.kv_cache_bytes, uint64_t{8} << 30);
  EXPECT_EQ(config.coordinator.rows_max, 64);
  EXPECT_EQ(config.security.secret_file, "/etc/atoll/secret");
  EXPECT_EQ(config.timeouts.grace, std::chrono::minutes(1));
  ASSERT_EQ(config.nodes.size(), 2u);
  EXPECT_EQ(config.nodes[0].ram_bytes, uint64_t{24} << 30);
  EXPECT_EQ(config.nodes[0].threads, 3);
  EXPECT_EQ(config.nodes[0].numa_node, 1);
  EXPECT_EQ(config.nodes[0].model, "/etc/atoll/models/v3");
  EXPECT_THAT(config.nodes[0].machine.drive_bytes_per_second, ElementsAre(7e9, 3e9));
  EXPECT_DOUBLE_EQ(config.nodes[0].machine.nic_bytes_per_second, 12.5e9);
  EXPECT_EQ(config.nodes[1].control, (Address{"::1", 7002}));
  EXPECT_EQ(config.nodes[1].control.text(), "[::1]:7002");
  EXPECT_EQ(config.nodes[1].model, "/nvme0/p");
  EXPECT_THAT(config.nodes[1].stripes, ElementsAre("/etc/atoll/q"));
  EXPECT_EQ(config.node("n2"), &config.nodes[1]);
  EXPECT_EQ(config.node("n3"), nullptr);
  EXPECT_THAT(not_built(config), IsEmpty());
}

TEST(ClusterConfig, keeps_its_secret_beside_the_file_unless_told) {
  EXPECT_EQ(load("model: /m\n").security.secret_file, "/etc/atoll/cluster.yaml.secret");
}

TEST(ClusterConfig, reads_every_key_of_the_table) {
  const Settings settings =
      Settings::parse(nodes("{name: a, control: '127.0.0.1:1'}"), "c.yaml", {});
  (void)make_cluster_config(settings);
  EXPECT_THAT(settings.unread(), IsEmpty());
}

const char* const kTwoCoordinators = R"(
model: /m
coordinator: {chunk: 64, threads: 3, listen: "127.0.0.1:80"}
coordinators:
  - {name: c1, admin: "127.0.0.1:7900"}
  - {name: c2, listen: "127.0.0.1:81", threads: 5}
nodes: [{name: n1, control: "127.0.0.1:7001"}]
)";

ClusterConfig load_for(const std::string& coordinator, const Overrides& overrides = {}) {
  return make_cluster_config(Settings::parse(kTwoCoordinators, "c.yaml", overrides),
                             Purpose::kServe, coordinator);
}

TEST(ClusterConfig, each_of_several_coordinators_has_its_own_and_what_is_for_all) {
  const CoordinatorConfig first = load_for("c1").coordinator, second = load_for("c2").coordinator;
  EXPECT_EQ(first.name, "c1");
  EXPECT_EQ(first.listen.text(), "127.0.0.1:80");
  EXPECT_EQ(first.admin->text(), "127.0.0.1:7900");
  EXPECT_EQ(first.threads, 3);
  EXPECT_EQ(second.name, "c2");
  EXPECT_EQ(second.listen.text(), "127.0.0.1:81");
  EXPECT_FALSE(second.admin);
  EXPECT_EQ(second.threads, 5);
  EXPECT_EQ(second.rows_max, 64);
  EXPECT_THAT(load_for("").coordinator_names, ElementsAre("c1", "c2"));
  EXPECT_EQ(load_for("").coordinator.name, "c1");
  EXPECT_THAT(load("model: /m\ncoordinator: {name: x}").coordinator_names, ElementsAre("x"));
}

TEST(ClusterConfig, a_flag_is_about_the_coordinator_that_reads_it) {
  Overrides overrides;
  overrides.environment = {{"ATOLL_COORDINATOR_THREADS", "7"}};
  overrides.flags = {"coordinator.listen=127.0.0.1:99"};
  const CoordinatorConfig coordinator = load_for("c2", overrides).coordinator;
  EXPECT_EQ(coordinator.threads, 7);
  EXPECT_EQ(coordinator.listen.text(), "127.0.0.1:99");
}

TEST(ClusterConfig, several_coordinators_are_told_apart) {
  const auto with = [](const std::string& coordinators) {
    return error_of("model: /m\ncoordinators: " + coordinators +
                    "\nnodes: [{name: n1, control: '127.0.0.1:7001'}]\n");
  };
  EXPECT_EQ(with("[{name: a, listen: '127.0.0.1:1'}, {name: b, listen: '10.0.0.1:1'}]"),
            "no error");
  EXPECT_THAT(with("[{name: a}, {name: a}]"),
              HasSubstr("coordinators[1].name: 'a' is another one's name, too"));
  EXPECT_THAT(with("[{name: a, listen: '127.0.0.1:1', admin: '127.0.0.1:1'}]"),
              HasSubstr("coordinators[0].admin: the same address as coordinators[0].listen"));
  EXPECT_THAT(with("[{name: n1}]"), HasSubstr("'n1' is a coordinator's name, too"));
  EXPECT_THAT(with("[{name: a, listen: '127.0.0.1:7001'}]"),
              HasSubstr("'127.0.0.1:7001' is coordinators[0].listen, too"));
  EXPECT_THAT(with("[{listen: '127.0.0.1:1'}]"), HasSubstr("a coordinator without `name`"));
  EXPECT_THAT(with("[{name: a, chunk: 4}]"), HasSubstr("unknown key 'chunk' in a coordinator"));
  EXPECT_THAT(with("{name: a}"), HasSubstr("coordinators: expected a list: `- name: c1`"));
  try {
    (void)load_for("c3");
    ADD_FAILURE();
  } catch (const LoadError& error) {
    EXPECT_STREQ(error.what(), "c.yaml: no coordinator 'c3': expected one of c1, c2");
  }
}

TEST(ClusterConfig, refuses_what_does_not_go_together) {
  EXPECT_THAT(error_of("cluster: a\n"), HasSubstr("cluster.yaml: no `model`"));
  EXPECT_THAT(
      error_of(nodes("{name: a, control: '127.0.0.1:1'}, {name: a, control: '127.0.0.1:2'}")),
      HasSubstr("nodes[1].name: 'a' is the name of nodes[0], too"));
  EXPECT_THAT(
      error_of(nodes("{name: a, control: '127.0.0.1:1'}, {name: b, control: '127.0.0.1:1'}")),
      HasSubstr("nodes[1].control: '127.0.0.1:1' is the address of node a, too"));
  EXPECT_THAT(error_of(nodes("{name: a, control: '127.0.0.1:8080'}")),
              HasSubstr("'127.0.0.1:8080' is coordinator.listen, too"));
  EXPECT_THAT(error_of(nodes("{name: a, control: '127.0.0.1:1', tiles: 2}, "
                             "{name: b, control: '127.0.0.1:2'}")),
              HasSubstr("b has no `tiles` and another node has: expected all or none"));
  EXPECT_THAT(error_of(nodes("{name: a, control: '127.0.0.1:1', share: 0}")),
              HasSubstr("nodes[0].share: 0, as every node's: nobody would keep a tile"));
  EXPECT_THAT(error_of(nodes("{name: a, control: '127.0.0.1:1', tiles: 0}")),
              HasSubstr("nodes[0].tiles: 0, as every node's"));
  EXPECT_THAT(error_of(nodes("{name: coordinator, control: '127.0.0.1:1'}")),
              HasSubstr("nodes[0].name: 'coordinator' is a coordinator's name, too"));
  EXPECT_THAT(error_of("model: /m\nnetwork: {trust: encrypted}\n"),
              HasSubstr("network.trust: encrypted needs security.keys"));
  EXPECT_THAT(error_of("model: /m\ntimeouts: {suspect: 150ms}\n"),
              HasSubstr("timeouts.suspect: 150 ms: expected at least two heartbeats, 200 ms"));
  EXPECT_THAT(error_of("model: /m\ntimeouts: {lost: 300ms}\n"),
              HasSubstr("timeouts.lost: 300 ms: expected more than timeouts.suspect, 300 ms"));
  EXPECT_THAT(error_of("model: /m\ncoordinator: {admin: '10.0.0.1:7900'}\n"),
              HasSubstr("coordinator.admin: '10.0.0.1:7900' can be reached from other machines"));
}

TEST(ClusterConfig, lets_nodes_listen_beyond_loopback_only_with_keys) {
  EXPECT_THAT(error_of(nodes("{name: a, control: '10.0.0.1:7000'}")),
              HasSubstr("'10.0.0.1:7000' can be reached from other machines and needs "
                        "security.keys"));
  EXPECT_EQ(error_of("security: {keys: /k}\n" + nodes("{name: a, control: '10.0.0.1:7000'}")),
            "no error");
  for (const char* host : {"127.0.0.1", "127.9.9.9", "localhost", "[::1]"}) {
    EXPECT_EQ(error_of(nodes(std::string("{name: a, control: '") + host + ":7000'}")), "no error");
  }
}

TEST(ClusterConfig, machines_are_described_without_being_there) {
  const std::string text = R"(
model: /m
coordinator: {mem_bw: 80GB/s, device: {name: rtx4090, memory: 24GiB, mem_bw: 1008GB/s}}
plan: {aim: throughput, sequences: 16}
node_defaults: {cores: 32, drives: [{rate: 6GB/s}, 3GB/s], machine: {ram: 768GiB}}
nodes: [{name: a, ram: 700GiB, mem_bw: 250GB/s, nic: 100Gbit/s}, {name: b}]
)";
  const ClusterConfig config =
      make_cluster_config(Settings::parse(text, "/c.yaml", {}), Purpose::kPlan);
  EXPECT_EQ(config.coordinator.described_device.name, "rtx4090");
  EXPECT_EQ(config.coordinator.described_device.memory_bytes, uint64_t{24} << 30);
  EXPECT_EQ(config.coordinator.described_device.memory_bytes_per_second, 1008e9);
  EXPECT_EQ(config.coordinator.device, "auto");
  EXPECT_EQ(config.coordinator.machine.memory_bytes_per_second, 80e9);
  EXPECT_TRUE(config.plan.for_throughput);
  EXPECT_EQ(config.plan.sequences, 16);
  ASSERT_EQ(config.nodes.size(), 2u);
  EXPECT_EQ(config.nodes[0].ram_bytes, uint64_t{700} << 30);
  EXPECT_EQ(config.nodes[0].machine.ram_bytes, uint64_t{768} << 30);
  EXPECT_EQ(config.nodes[0].machine.memory_bytes_per_second, 250e9);
  EXPECT_EQ(config.nodes[0].machine.nic_bytes_per_second, 12.5e9);
  EXPECT_THAT(config.nodes[1].machine.drive_bytes_per_second, ElementsAre(6e9, 3e9));
  EXPECT_EQ(config.nodes[1].machine.cores, 32);
  EXPECT_EQ(config.nodes[1].control.port, 0);
  // To serve, a node has to be somewhere.
  EXPECT_THAT(error_of(text), HasSubstr("cluster.yaml:6:9: a node without `control`"));
  EXPECT_THAT(error_of("model: /m\nnode_defaults: {drives: [{speed: 6GB/s}]}\n"),
              HasSubstr("unknown key 'speed'"));
}

TEST(ClusterConfig, names_what_is_asked_for_and_not_built) {
  const std::string one_node = nodes("{name: a, control: '127.0.0.1:7000'}");
  EXPECT_THAT(not_built(load("redundancy: 2\n" + one_node)),
              ElementsAre(HasSubstr("redundancy: 2: expected at most 1, the number of nodes")));
  EXPECT_THROW(require_built(load("redundancy: 2\n" + one_node)), LoadError);
  EXPECT_NO_THROW(require_built(load("redundancy: 1\n" + one_node)));
  EXPECT_NO_THROW(require_built(load("model: /m\nredundancy: 2\n")));  // of --nodes, if any
}

std::vector<int> tiles(const std::string& entries, int num_tiles) {
  return tiles_of_nodes(load(nodes(entries)), num_tiles);
}

TEST(TilesOfNodes, follow_the_shares) {
  const std::string a = "{name: a, control: '127.0.0.1:1'", b = "{name: b, control: '127.0.0.1:2'",
                    c = "{name: c, control: '127.0.0.1:3'";
  EXPECT_THAT(tiles(a + "}, " + b + "}, " + c + "}", 16), ElementsAre(6, 5, 5));
  EXPECT_THAT(tiles(a + "}, " + b + ", share: 3}", 16), ElementsAre(4, 12));
  EXPECT_THAT(tiles(a + ", share: 0}, " + b + "}", 16), ElementsAre(0, 16));
  EXPECT_THAT(tiles(a + "}, " + b + ", share: 1000}", 4), ElementsAre(1, 3));
  EXPECT_THAT(tiles(a + "}, " + b + "}, " + c + "}", 2), ElementsAre(1, 1, 0));
  EXPECT_THAT(tiles(a + ", tiles: 5}, " + b + ", tiles: 11}", 16), ElementsAre(5, 11));
  EXPECT_THROW(tiles(a + ", tiles: 5}, " + b + ", tiles: 10}", 16), LoadError);
  EXPECT_THROW(tiles(a + ", share: 0}", 16), LoadError);
}

TEST(Ports, are_one_or_a_range) {
  EXPECT_EQ(parse_ports("7100").value(), (PortRange{7100, 7100}));
  EXPECT_EQ(parse_ports("7100-7199").value(), (PortRange{7100, 7199}));
  EXPECT_EQ(parse_ports("1-65535").value(), (PortRange{1, 65535}));
  for (const char* bad :
       {"0", "7100-", "-7100", "7199-7100", "7100-70000", "7100 - 7199", "a", "7100-7199x"}) {
    EXPECT_FALSE(parse_ports(bad)) << bad;
  }
}

}  // namespace
}  // namespace atl::config
