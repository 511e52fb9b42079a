// Where the threads and the memory of the program's processes really are.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>
#include <string>

#include "base/child_process.h"
#include "tests/support/command.h"
#include "topology/machine.h"

namespace atl {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::Not;

const std::string kTiny = std::string(ATOLL_SOURCE_DIR) + "/tests/models/tiny-fp8";
constexpr std::chrono::seconds kPatience{30};

test::CommandResult run_tiny(std::vector<std::string> arguments,
                             std::vector<std::string> environment = {}) {
  std::vector<std::string> argv = {ATOLL_BINARY, "run",          kTiny, "--prompt",
                                   "x",          "--max-tokens", "8"};
  argv.insert(argv.end(), arguments.begin(), arguments.end());
  test::CommandOptions options;
  options.environment = std::move(environment);
  return test::run_command(argv, options);
}

// An expert node that says it is ready; ends with the object.
ChildProcess start_node(const std::vector<std::string>& arguments) {
  ChildOptions options;
  options.pipe_stdout = true;
  options.argv = {ATOLL_BINARY, "node", kTiny};
  options.argv.insert(options.argv.end(), arguments.begin(), arguments.end());
  ChildProcess node = ChildProcess::start(options);
  const auto line = node.read_line(kPatience);
  EXPECT_TRUE(line) << line.error().message;
  return node;
}

// "0-1" or "0": the processors of each thread of the process, each text once.
std::multiset<std::string> cpus_of_threads(pid_t pid) {
  std::multiset<std::string> cpus;
  const std::string tasks = "/proc/" + std::to_string(pid) + "/task";
  for (const auto& task : std::filesystem::directory_iterator(tasks)) {
    std::ifstream in(task.path() / "status");
    const std::string key = "Cpus_allowed_list:\t";
    for (std::string line; std::getline(in, line);) {
      if (line.starts_with(key)) cpus.insert(line.substr(key.size()));
    }
  }
  return cpus;
}

TEST(Threads, of_a_node_stay_each_on_a_processor_when_they_fill_the_cores) {
  const topology::Machine machine = topology::this_machine();
  if (machine.cores.size() < 2 || machine.has_quota) GTEST_SKIP() << "needs two cores of its own";
  const ChildProcess node = start_node({"--threads", "auto"});
  const auto cpus = cpus_of_threads(node.pid());
  // All but member 0, which pins itself when everything else is set up.
  for (size_t i = 1; i < machine.cores.size(); ++i) {
    EXPECT_EQ(cpus.count(std::to_string(machine.cores[i].cpu)), 1) << machine.cores[i].cpu;
  }
}

TEST(Threads, of_a_node_run_anywhere_when_pinning_is_off_or_others_may_want_the_cores) {
  const topology::Machine machine = topology::this_machine();
  if (machine.cores.size() < 2) GTEST_SKIP() << "needs two cores";
  const std::string threads = std::to_string(machine.cores.size() + 1);
  for (const std::vector<std::string>& arguments :
       {std::vector<std::string>{"--pin", "off"}, {"--threads", threads, "--pin", "on"}}) {
    const ChildProcess node = start_node(arguments);
    const auto cpus = cpus_of_threads(node.pid());
    EXPECT_EQ(cpus.count(*cpus.begin()), cpus.size()) << "all threads have the same mask";
  }
}

TEST(Threads, run_where_the_user_names_processors) {
  const int cpu = topology::this_machine().cores.back().cpu;
  const ChildProcess node = start_node({"--cpus", std::to_string(cpu) + "," + std::to_string(cpu)});
  EXPECT_GE(cpus_of_threads(node.pid()).count(std::to_string(cpu)), 1);
}

TEST(NumaNode, takes_its_memory_from_its_domain) {
  const int domain = topology::this_machine().cores.front().numa_node;
  const ChildProcess node = start_node({"--numa-node", std::to_string(domain)});
  std::ifstream in("/proc/" + std::to_string(node.pid()) + "/numa_maps");
  std::string maps((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
  if (maps.empty()) GTEST_SKIP() << "this kernel tells nothing of NUMA memory";
  EXPECT_THAT(maps, HasSubstr(" bind:" + std::to_string(domain) + " "));
}

TEST(NumaNode, that_does_not_exist_is_refused_in_one_line) {
  const auto result = test::run_command({ATOLL_BINARY, "node", kTiny, "--numa-node", "999"});
  EXPECT_EQ(result.exit_code, 1);
  EXPECT_THAT(result.err, HasSubstr("NUMA domain 999 does not exist; give one of 0"));
  EXPECT_EQ(std::count(result.err.begin(), result.err.end(), '\n'), 1);
}

// hwloc takes another machine from the environment: planned as told, bound to nothing.
TEST(NumaNode, child_nodes_go_round_the_domains) {
  const auto result = run_tiny({"--nodes", "3", "--threads", "1", "--log-level", "debug"},
                               {"HWLOC_SYNTHETIC=numa:2 core:2 pu:1"});
  EXPECT_EQ(result.exit_code, 0);
  EXPECT_THAT(result.err, AllOf(HasSubstr("node n0: 1 thread in NUMA domain 0, not pinned"),
                                HasSubstr("node n1: 2 threads in NUMA domain 1, not pinned"),
                                HasSubstr("node n2: 1 thread in NUMA domain 0, not pinned"),
                                HasSubstr("hwloc describes another machine: nothing is bound")));
}

TEST(Pin, changes_no_token_and_the_report_says_what_was_done) {
  const auto report = [](const std::string& pin) {
    const auto result = run_tiny({"--pin", pin, "--json", "--threads", "1"});
    EXPECT_EQ(result.exit_code, 0) << result.err;
    return nlohmann::json::parse(result.out);
  };
  const nlohmann::json on = report("on"), off = report("off");
  EXPECT_EQ(on["tokens"], off["tokens"]);
  EXPECT_EQ(on["threads"], 1);
  EXPECT_EQ(on["pinned_to"].size(), 1);
  EXPECT_EQ(off["pinned_to"].size(), 0);
  EXPECT_GT(on["memory_bytes"], 0);
  EXPECT_LE(on["huge_page_bytes"], on["memory_bytes"]);
}

TEST(Pin, statistics_tell_threads_and_huge_pages) {
  const auto result = run_tiny({"--pin", "off", "--threads", "2", "--stats"});
  EXPECT_THAT(result.err, AllOf(HasSubstr("2 threads, not pinned: as asked\nmemory "),
                                HasSubstr("% of it on huge pages")));
}

TEST(Pin, takes_only_its_three_words) {
  const auto result = run_tiny({"--pin", "maybe"});
  EXPECT_EQ(result.exit_code, 2);
  EXPECT_THAT(result.err, AllOf(HasSubstr("--pin"), HasSubstr("maybe")));
}

// What the program says of the machine of tests/topology/two_sockets.xml.
test::CommandResult topology_of_two_sockets(std::vector<std::string> arguments) {
  std::vector<std::string> argv = {ATOLL_BINARY, "topology"};
  argv.insert(argv.end(), arguments.begin(), arguments.end());
  test::CommandOptions options;
  options.environment = {"HWLOC_XMLFILE=" + std::string(ATOLL_SOURCE_DIR) +
                         "/tests/topology/two_sockets.xml"};
  return test::run_command(argv, options);
}

TEST(TopologyCommand, lists_domains_devices_and_the_plan) {
  const auto result = topology_of_two_sockets({"--threads", "2", "--numa-node", "1"});
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_THAT(result.out, testing::StartsWith("2 packages, 4 cores, 4 can be used\n"
                                              "L2: 4 of 1.00 MiB\n"
                                              "L3: 2 of 32.0 MiB\n"
                                              "SIMD: "));
  EXPECT_THAT(result.out, HasSubstr("\nMemAvailable  ")) << "of the machine that runs this";
  EXPECT_EQ(result.out.substr(result.out.find("NUMA domain  cores")),
            "NUMA domain  cores   memory  processors\n"
            "-----------  -----  -------  ----------\n"
            "          0      2  384 GiB  0,1\n"
            "          1      2  192 GiB  2,3\n"
            "\n"
            "device   kind     NUMA domain  model\n"
            "-------  -------  -----------  ---------------\n"
            "nvme0n1  disk               0  Fast Disk 3.2TB\n"
            "ib0      network            0\n"
            "mlx5_0   rdma               0\n"
            "nvme1n1  disk               1  Fast Disk 3.2TB\n"
            "cuda0    gpu                1  H100\n"
            "\n"
            "plan: 2 threads in NUMA domain 1, not pinned: the machine's cores are not known\n");
}

TEST(TopologyCommand, json_has_the_same) {
  const auto result = topology_of_two_sockets({"--json"});
  ASSERT_EQ(result.exit_code, 0) << result.err;
  const nlohmann::json machine = nlohmann::json::parse(result.out);
  EXPECT_EQ(machine["cores"].size(), 4);
  EXPECT_EQ(machine["cores"][3]["numa_node"], 1);
  EXPECT_EQ(machine["cores"][3]["hardware_threads"], 2);
  EXPECT_EQ(machine["numa_nodes"][1]["memory_bytes"], 206158430208u);
  EXPECT_EQ(machine["devices"][4]["kind"], "gpu");
  EXPECT_EQ(machine["plan"]["threads"], 4);
  EXPECT_GE(machine["simd_targets"].size(), 1u);
  const nlohmann::json& memory = machine["memory_bounds"][0];
  EXPECT_EQ(memory["name"], "MemAvailable");
  EXPECT_EQ(memory["of"], "machine");
  EXPECT_GT(memory["free_bytes"], 0);
  EXPECT_LE(memory["free_bytes"], memory["limit_bytes"]);
}

}  // namespace
}  // namespace atl
