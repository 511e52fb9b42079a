// A cluster from one file, as processes: nodes that are started, killed, stopped, restarted and
// exchanged while eight clients stream, whose texts stay those of `atoll run`.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/e2e/process_cluster.h"

namespace atl::test {
namespace {

using http::HttpAnswer;
using http::HttpClient;
using http::HttpClientRequest;
using nlohmann::json;
using testing::HasSubstr;

TEST_F(ClusterOfProcesses, nodes_come_in_any_order_and_the_texts_are_those_of_run) {
  start_serve();
  ASSERT_TRUE(eventually([&] {
    return log("serve.log").find("waits for expert nodes: n1 (connect ") != std::string::npos;
  }));
  EXPECT_THAT(cluster({"status"}).err, HasSubstr("loading and waits for its nodes"));
  for (const char* name : {"n3", "n1", "n2"}) start_node(name);
  await_serve();
  EXPECT_TRUE(is_whole()) << status();
  const json answer = json::parse(ask(completion(0, false)).body);
  const CommandResult run = run_command({ATOLL_BINARY, "run", model_, "--prompt", "And God said,",
                                         "--max-tokens", "120", "--ignore-eos", "--json"});
  EXPECT_EQ(answer["choices"][0]["text"], json::parse(run.out)["text"]) << run.err;
  // Shared memory: they are on one machine. Nodes tell it every two seconds.
  EXPECT_TRUE(eventually([&] { return node("n1")["links"] == "posix"; })) << status();
}

TEST_F(ClusterOfProcesses, a_killed_node_ends_no_stream_and_takes_its_tiles_when_it_is_started) {
  start_all();
  const std::vector<std::string> expected = texts_alone();
  const int64_t epoch = status()["epoch"];
  expect_texts_while(expected, [&] {
    nodes_["n1"].send_signal(SIGKILL);
    // After the grace period the others share its tiles.
    EXPECT_TRUE(eventually([&] {
      return node("n1")["state"] == "lost" && node("n2")["tiles"] == 2 && node("n3")["tiles"] == 2;
    })) << status();
    start_node("n1");
    EXPECT_TRUE(eventually([&] { return is_whole(); })) << status();
  });
  EXPECT_GT(status()["epoch"], epoch);
  EXPECT_EQ(node("n1")["losses"], 1);
}

// Every tile in the RAM of two nodes: n1 owns two of the four, n2 and n3 one each.
class RedundantCluster : public ClusterOfProcesses {
 protected:
  RedundantCluster() {
    more_ = "redundancy: 2\n";
    write();
  }
  int standbys() const {
    const json all = status();
    int count = 0;
    for (const json& one : all["nodes"]) count += one["standby"].get<int>();
    return count;
  }
};

TEST_F(RedundantCluster, a_killed_nodes_tiles_are_asked_from_who_keeps_them_without_a_read) {
  start_all();
  EXPECT_EQ(standbys(), 4) << status();
  const std::vector<std::string> expected = texts_alone();
  expect_texts_while(expected, [&] {
    nodes_["n1"].send_signal(SIGKILL);
    EXPECT_TRUE(eventually([&] {
      return node("n1")["state"] == "lost" && node("n2")["tiles"] == 2 && node("n3")["tiles"] == 2;
    })) << status();
    // After the grace period all have a second copy again.
    EXPECT_TRUE(eventually([&] { return standbys() == 4 && node("n1")["standby"] == 0; }))
        << status();
    start_node("n1");
    EXPECT_TRUE(eventually([&] { return is_whole() && standbys() == 4; })) << status();
  });
  EXPECT_THAT(log("serve.log"), testing::Not(HasSubstr("reads them from disk")));
}

TEST_F(RedundantCluster, a_stopped_node_ends_no_stream_either) {
  start_all();
  const std::vector<std::string> expected = texts_alone();
  expect_texts_while(expected, [&] {
    nodes_["n1"].send_signal(SIGSTOP);
    EXPECT_TRUE(eventually([&] { return node("n1")["state"] == "lost"; })) << status();
    nodes_["n1"].send_signal(SIGCONT);
    EXPECT_TRUE(eventually([&] { return is_whole() && standbys() == 4; })) << status();
  });
  EXPECT_THAT(log("serve.log"), testing::Not(HasSubstr("reads them from disk")));
}

// It gets a fifth of the time, in pieces: without hedging every step waits for it.
TEST_F(RedundantCluster, a_slow_nodes_tiles_are_asked_from_others_until_it_is_fast_again) {
  balance_ = "on";
  more_ += "hedging: off\n";
  write();
  start_all();
  const std::vector<std::string> expected = texts_alone();
  expect_texts_while(expected, [&] {
    std::jthread slowing([&](const std::stop_token& stop) {
      while (!stop.stop_requested()) {
        nodes_["n1"].send_signal(SIGSTOP);
        std::this_thread::sleep_for(std::chrono::milliseconds(40));
        nodes_["n1"].send_signal(SIGCONT);
        std::this_thread::sleep_for(std::chrono::milliseconds(10));
      }
    });
    EXPECT_TRUE(eventually([&] { return node("n1")["tiles"] < 2; })) << status();
    EXPECT_EQ(standbys(), 4);
    slowing = {};  // it goes on as it did
    EXPECT_TRUE(eventually([&] { return is_whole(); })) << status();
  });
  EXPECT_EQ(node("n1")["losses"], 0);
}

TEST_F(ClusterOfProcesses, a_stopped_node_ends_no_stream_and_is_taken_in_when_it_goes_on) {
  start_all();
  const std::vector<std::string> expected = texts_alone();
  expect_texts_while(expected, [&] {
    nodes_["n2"].send_signal(SIGSTOP);
    EXPECT_TRUE(eventually([&] { return node("n2")["state"] == "lost"; })) << status();
    nodes_["n2"].send_signal(SIGCONT);
    EXPECT_TRUE(eventually([&] { return is_whole(); })) << status();
  });
}

TEST_F(ClusterOfProcesses, drain_resume_and_reload_under_load_lose_no_request) {
  start_all();
  const std::vector<std::string> expected = texts_alone();
  expect_texts_while(expected, [&] {
    EXPECT_EQ(cluster({"drain", "n1"}).exit_code, 0);
    EXPECT_TRUE(eventually([&] {
      return node("n1")["state"] == "draining" && node("n1")["tiles"] == 0;
    })) << status();
    EXPECT_EQ(cluster({"resume", "n1"}).exit_code, 0);
    EXPECT_TRUE(eventually([&] { return is_whole(); })) << status();
    // A node goes, another one comes.
    write({"n1", "n2"});
    CommandResult reload = cluster({"reload"});
    EXPECT_EQ(json::parse(reload.out)["removed"], json({"n3"})) << reload.err;
    EXPECT_TRUE(eventually([&] {
      return status()["nodes"].size() == 2 && node("n1")["tiles"] == 2 && node("n2")["tiles"] == 2;
    })) << status();
    addresses_["n4"] = local(free_port());
    write({"n1", "n2", "n4"});
    start_node("n4");
    reload = cluster({"reload"});
    EXPECT_EQ(json::parse(reload.out)["added"], json({"n4"})) << reload.err;
    EXPECT_TRUE(eventually([&] { return is_whole() && node("n4")["tiles"] == 1; })) << status();
  });
  EXPECT_THAT(cluster({"drain", "n9"}).err, HasSubstr("there is no node n9"));
}

TEST_F(ClusterOfProcesses, a_node_that_is_started_with_another_checkpoint_is_refused_with_both) {
  start_all();
  nodes_["n3"].stop();
  start_node("n3", model("tiny-bf16"));
  EXPECT_TRUE(eventually([&] { return node("n3")["state"] == "quarantined"; })) << status();
  EXPECT_THAT(node("n3")["why"].get<std::string>(),
              HasSubstr("checkpoint fingerprint: the coordinator has "));
  EXPECT_EQ(ask(completion(0, false)).status, 200);
  nodes_["n3"].stop();
  start_node("n3");
  EXPECT_TRUE(eventually([&] { return is_whole(); })) << status();
}

TEST_F(ClusterOfProcesses, a_new_coordinator_finds_the_tiles_in_the_nodes_memory) {
  start_all();
  const std::string expected = json::parse(ask(completion(0, false)).body)["choices"][0]["text"];
  const auto bytes_read = [&] {
    json read = json::array();
    EXPECT_TRUE(eventually([&] {
      read = json::array();
      const json stats = json::parse(ask({.path = "/stats"}).body);
      for (const json& one : stats["nodes"]) {
        if (one["bytes_read"] == 0) return false;  // not told yet
        read.push_back(one["bytes_read"]);
      }
      return read.size() == 3;
    }));
    return read;
  };
  const json before = bytes_read();
  serve_.send_signal(SIGKILL);
  (void)serve_.wait(kPatience);
  start_serve();
  await_serve();
  EXPECT_EQ(json::parse(ask(completion(0, false)).body)["choices"][0]["text"], expected);
  EXPECT_EQ(bytes_read(), before);
}

TEST_F(ClusterOfProcesses, without_any_node_requests_are_refused_at_once_until_one_is_back) {
  start_all();
  for (auto& [name, node] : nodes_) node.send_signal(SIGKILL);
  EXPECT_TRUE(eventually([&] { return ask({.path = "/ready"}).status == 503; }));
  EXPECT_TRUE(eventually([&] {
    return ask({.path = "/ready"}).body.find("no expert node is there: n1: ") != std::string::npos;
  })) << ask({.path = "/ready"}).body;
  const HttpAnswer refused = ask(completion(0, false));
  EXPECT_EQ(refused.status, 503) << refused.body;
  EXPECT_FALSE(refused.header("Retry-After").empty());
  EXPECT_THAT(refused.body, HasSubstr("n1"));
  start_node("n1");
  EXPECT_TRUE(eventually([&] { return ask({.path = "/ready"}).status == 200; }));
  EXPECT_EQ(ask(completion(0, false)).status, 200);
}

// Packs of some tiles each: nobody else has those of a node that is gone.
TEST_F(ClusterOfProcesses, what_only_a_lost_node_has_ends_requests_with_its_name_until_it_is_back) {
  for (const auto& [name, tiles] :
       std::map<std::string, std::string>{{"n1", "0-1"}, {"n2", "2-2"}, {"n3", "3-3"}}) {
    const CommandResult pack = run_command({ATOLL_BINARY, "pack", model_, "--tiles", tiles, "--out",
                                            (dir_.path() / ("pack-" + name)).string()});
    ASSERT_EQ(pack.exit_code, 0) << pack.err;
  }
  const auto start_packed = [&](const std::string& name) {
    start_node(name, (dir_.path() / ("pack-" + name)).string());
  };
  start_serve();
  for (const char* name : {"n1", "n2", "n3"}) start_packed(name);
  await_serve();
  const std::string expected = json::parse(ask(completion(0, false)).body)["choices"][0]["text"];
  nodes_["n1"].send_signal(SIGKILL);
  EXPECT_TRUE(eventually([&] { return ask({.path = "/ready"}).status == 503; }));
  const HttpAnswer refused = ask(completion(0, false));
  EXPECT_EQ(refused.status, 503) << refused.body;
  EXPECT_FALSE(refused.header("Retry-After").empty());
  EXPECT_THAT(refused.body, HasSubstr("no expert node is left to compute layer 1: "));
  EXPECT_THAT(refused.body, HasSubstr("the pack leaves out tile"));
  EXPECT_THAT(refused.body, HasSubstr("lost n1: "));
  start_packed("n1");
  EXPECT_TRUE(eventually([&] { return ask({.path = "/ready"}).status == 200; }));
  EXPECT_EQ(json::parse(ask(completion(0, false)).body)["choices"][0]["text"], expected);
}

// Certificates on both sides, and rows through TLS.
TEST_F(ClusterOfProcesses, encrypted_gives_the_same_texts) {
  const CommandResult keys = run_command(
      {ATOLL_BINARY, "keys", "--nodes", "n1,n2,n3", "--out", (dir_.path() / "keys").string()});
  ASSERT_EQ(keys.exit_code, 0) << keys.err;
  start_all();
  const std::vector<std::string> expected = texts_alone();
  serve_.stop();
  for (auto& [name, node] : nodes_) node.stop();
  more_ = "network: {trust: encrypted}\nsecurity: {keys: keys}\n";
  write();
  start_all();
  expect_texts_while(expected, [&] {
    nodes_["n1"].send_signal(SIGKILL);
    EXPECT_TRUE(eventually([&] { return node("n1")["state"] == "lost"; })) << status();
    start_node("n1");
    EXPECT_TRUE(eventually([&] { return is_whole(); })) << status();
  });
  EXPECT_TRUE(eventually([&] { return node("n2").value("links", "").starts_with("tls/"); }))
      << status();
}

// Two network namespaces with a wire between them, and no shared memory, are two hosts to everybody
// but the file system.
class ClusterOfHosts : public ClusterOfProcesses {
 protected:
  void SetUp() override {
    if (::geteuid() != 0) GTEST_SKIP() << "network namespaces need root";
    if (::access("/usr/sbin/ip", X_OK) != 0) GTEST_SKIP() << "no ip";
    const std::string id = std::to_string(::getpid());
    here_ = "atollc" + id;
    there_ = "atolln" + id;
    if (ip({"netns", "add", here_}) != 0 || ip({"netns", "add", there_}) != 0) {
      GTEST_SKIP() << "network namespaces cannot be made here";
    }
    is_made_ = true;
    ASSERT_EQ(ip({"link", "add", "wire0", "netns", here_, "type", "veth", "peer", "name", "wire1",
                  "netns", there_}),
              0);
    up(here_, "wire0", "10.77.0.1/24");
    up(there_, "wire1", "10.77.0.2/24");
    for (const std::string& netns : {here_, there_}) {
      ASSERT_TRUE(eventually([&] {
        return run_command({"/usr/sbin/ip", "-n", netns, "-br", "link", "show", "type", "veth"})
                   .out.find(" UP ") != std::string::npos;
      }));
    }
    netns_of_serve_ = here_;
    netns_of_node_ = there_;
    int port = 7001;
    for (auto& [name, address] : addresses_) address = "10.77.0.2:" + std::to_string(port++);
    const CommandResult keys = run_command(
        {ATOLL_BINARY, "keys", "--nodes", "n1,n2,n3", "--out", (dir_.path() / "keys").string()});
    ASSERT_EQ(keys.exit_code, 0) << keys.err;
    more_ = "security: {keys: keys}\n";
    write();
  }
  void TearDown() override {
    if (!is_made_) return;
    serve_.stop();
    for (auto& [name, node] : nodes_) node.stop();
    ip({"netns", "del", here_});
    ip({"netns", "del", there_});
  }
  static int ip(std::vector<std::string> arguments) {
    arguments.insert(arguments.begin(), "/usr/sbin/ip");
    return run_command(arguments).exit_code;
  }
  static void up(const std::string& netns, const std::string& device, const std::string& address) {
    ASSERT_EQ(ip({"-n", netns, "link", "set", "lo", "up"}), 0);
    ASSERT_EQ(ip({"-n", netns, "addr", "add", address, "dev", device}), 0);
    ASSERT_EQ(ip({"-n", netns, "link", "set", device, "up"}), 0);
  }
  CommandResult in_coordinators(std::vector<std::string> command) const {
    const std::vector<std::string> words = in_namespace(here_);
    command.insert(command.begin(), words.begin(), words.end());
    return run_command(command);
  }

  std::string here_, there_;
  bool is_made_ = false;
};

TEST_F(ClusterOfHosts, rows_take_the_wire_between_the_hosts) {
  for (const char* name : {"n1", "n2", "n3"}) start_node(name);
  const CommandResult run =
      in_coordinators({ATOLL_BINARY, "run", "--config", file_.string(), "--prompt", "And God said,",
                       "--max-tokens", "40", "--ignore-eos", "--stats"});
  ASSERT_EQ(run.exit_code, 0) << run.err << log("n1.log");
  const CommandResult alone = run_command({ATOLL_BINARY, "run", model_, "--prompt", "And God said,",
                                           "--max-tokens", "40", "--ignore-eos"});
  EXPECT_EQ(run.out, alone.out);
  EXPECT_THAT(run.err, HasSubstr("tcp/wire1")) << "the link that nodes say was selected";
  EXPECT_THAT(run.err, testing::Not(HasSubstr("posix")));
}

// The file names a device, and it is that one or none.
TEST_F(ClusterOfHosts, a_device_that_is_not_there_ends_the_start) {
  more_ += "network: {device: wire9}\n";
  write();
  for (const std::vector<std::string>& who :
       {std::vector<std::string>{"node", "--name", "n1"}, {"run", "--prompt", "x"}}) {
    std::vector<std::string> command = {ATOLL_BINARY};
    command.insert(command.end(), who.begin(), who.end());
    command.insert(command.end(), {"--config", file_.string()});
    const CommandResult result = in_coordinators(command);
    EXPECT_EQ(result.exit_code, 1);
    EXPECT_THAT(result.err, HasSubstr("network device wire9: there is none on this machine: "
                                      "expected one of lo, wire0"));
  }
}

// A link that is cut is a fault like others: nobody's text changes.
TEST_F(ClusterOfHosts, a_link_that_is_cut_for_two_seconds_ends_no_stream) {
  for (const char* name : {"n1", "n2", "n3"}) start_node(name);
  const CommandResult before =
      in_coordinators({ATOLL_BINARY, "run", "--config", file_.string(), "--prompt", "The whale",
                       "--max-tokens", "2000", "--ignore-eos"});
  ASSERT_EQ(before.exit_code, 0) << before.err;
  std::jthread cutter([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(700));
    ip({"-n", there_, "link", "set", "wire1", "down"});
    std::this_thread::sleep_for(std::chrono::seconds(2));
    ip({"-n", there_, "link", "set", "wire1", "up"});
  });
  const CommandResult cut =
      in_coordinators({ATOLL_BINARY, "run", "--config", file_.string(), "--prompt", "The whale",
                       "--max-tokens", "2000", "--ignore-eos", "--set", "timeouts.comeback=1min"});
  EXPECT_EQ(cut.exit_code, 0) << cut.err;
  EXPECT_THAT(cut.err, HasSubstr(" lost: ")) << "it ended before the link was cut";
  EXPECT_EQ(cut.out, before.out);
}

}  // namespace
}  // namespace atl::test
