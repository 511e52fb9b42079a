// Two coordinators that share the nodes of one file, as processes.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/e2e/process_cluster.h"

namespace atl::test {
namespace {

using testing::AllOf;
using testing::HasSubstr;

// c1 is the fixture's coordinator; c2 beside it.
class TwoCoordinators : public ClusterOfProcesses {
 protected:
  TwoCoordinators() {
    more_ = "coordinators:\n  - {name: c1}\n  - {name: c2, listen: \"" + second_ + "\", admin: \"" +
            second_admin_ + "\"}\n";
    write({"n1", "n2"});
    flags_ = {"--coordinator", "c1"};
  }

  void start_coordinator(const std::string& name, const std::string& address,
                         ChildProcess* process) {
    *process = start({"serve", "--config", file_.string(), "--coordinator", name}, name + ".log");
    const auto line = process->read_line(kPatience);
    ASSERT_TRUE(line && *line == "listening on http://" + address)
        << (line ? *line : line.error().message) << log(name + ".log");
  }

  const std::string second_ = local(free_port()), second_admin_ = local(free_port());
  ChildProcess other_;
};

TEST_F(TwoCoordinators, one_dies_and_the_other_s_streams_do_not_notice) {
  for (const char* name : {"n1", "n2"}) start_node(name);
  start_coordinator("c2", second_, &other_);
  start_coordinator("c1", listen_, &serve_);
  const std::vector<std::string> expected = texts_alone();
  expect_texts_while(expected, [&] {
    // Texts of the other one are the same.
    HttpClient second(*http::parse_http_url("http://" + second_));
    const auto answer = second.ask(completion(0, false));
    ASSERT_TRUE(answer);
    EXPECT_EQ(json::parse(answer->body)["choices"][0]["text"], expected[0]);
    other_.send_signal(SIGKILL);
    EXPECT_TRUE(other_.wait(kPatience));
    start_coordinator("c2", second_, &other_);
  });
  for (const json& one : status()["nodes"]) {
    EXPECT_EQ(one["state"], "ready");
    EXPECT_EQ(one["losses"], 0);
  }
}

TEST_F(TwoCoordinators, who_is_meant_has_to_be_said) {
  const auto says = [&](std::vector<std::string> arguments) {
    arguments.insert(arguments.begin(), ATOLL_BINARY);
    arguments.insert(arguments.end(), {"--config", file_.string()});
    const CommandResult result = run_command(arguments);
    EXPECT_EQ(result.exit_code, 1) << result.out;
    return result.err;
  };
  const auto asks_which = AllOf(HasSubstr("cluster.yaml has 2 coordinators"),
                                HasSubstr("expected --coordinator with one of c1, c2"));
  EXPECT_THAT(says({"serve"}), asks_which);
  EXPECT_THAT(says({"cluster", "status"}), asks_which);
  EXPECT_THAT(says({"serve", "--coordinator", "c3"}),
              HasSubstr("no coordinator 'c3': expected one of c1, c2"));
}

// A conversation through a pipe.
CommandResult chat(const std::filesystem::path& file) {
  return run_command({"/bin/sh", "-c", "echo Once | exec \"$0\" \"$@\"", ATOLL_BINARY, "chat",
                      "--config", file.string(), "--coordinator", "c1", "--max-tokens", "4",
                      "--temperature", "0"});
}

TEST_F(TwoCoordinators, chat_talks_to_the_one_that_runs_or_starts_it) {
  for (const char* name : {"n1", "n2"}) start_node(name);
  const CommandResult alone = chat(file_);
  EXPECT_EQ(alone.exit_code, 0) << alone.err;
  EXPECT_THAT(alone.err, HasSubstr("nobody answers at " + listen_ + ": a coordinator is started"));
  start_coordinator("c1", listen_, &serve_);
  const CommandResult beside = chat(file_);
  EXPECT_EQ(beside.exit_code, 0) << beside.err;
  EXPECT_THAT(beside.err, HasSubstr("c1 answers at " + listen_));
  EXPECT_EQ(beside.out, alone.out);
  EXPECT_FALSE(alone.out.empty());
}

}  // namespace
}  // namespace atl::test
