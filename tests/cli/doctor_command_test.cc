// atoll doctor on this machine: faults that can be planted here are found.
#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "tests/support/command.h"
#include "tests/support/temp_dir.h"

namespace atl {
namespace {

using test::CommandResult;
using ::testing::HasSubstr;
using Json = nlohmann::json;

CommandResult doctor(std::vector<std::string> arguments) {
  arguments.insert(arguments.begin(), {ATOLL_BINARY, "doctor"});
  return test::run_command(arguments);
}

Json find(const Json& report, const std::string& name) {
  for (const Json& check : report["checks"]) {
    if (check["name"] == name) return check;
  }
  return nullptr;
}

TEST(DoctorCommand, looks_at_this_machine) {
  const CommandResult result = doctor({"--json"});
  const Json report = Json::parse(result.out);
  EXPECT_GE(report["checks"].size(), 20u);
  EXPECT_EQ(result.exit_code, report["ok"] == true ? 0 : 1);
  EXPECT_EQ(find(report, "memory limit")["verdict"], "ok");
  const CommandResult text = doctor({"--all"});
  EXPECT_THAT(text.out, HasSubstr(" checks: "));
}

TEST(DoctorCommand, finds_a_taken_port_missing_model_open_keys_and_few_files) {
  const test::TempDir dir;
  const int fd = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t length = sizeof(address);
  ASSERT_EQ(bind(fd, reinterpret_cast<sockaddr*>(&address), length), 0);
  ASSERT_EQ(listen(fd, 1), 0);
  getsockname(fd, reinterpret_cast<sockaddr*>(&address), &length);
  const std::string port = std::to_string(ntohs(address.sin_port));
  std::filesystem::create_directory(dir / "keys");
  std::filesystem::permissions(dir / "keys", std::filesystem::perms(0755));
  test::write_file(dir / "c.yaml",
                   "model: gone\nsecurity: {keys: keys}\nnodes: [{name: a, control: "
                   "'127.0.0.1:" +
                       port + "'}]\n");
  const CommandResult result = test::run_command(
      {"/bin/sh", "-c",
       "ulimit -n 128; exec " ATOLL_BINARY " doctor " + (dir / "c.yaml").string() + " --json"});
  close(fd);
  EXPECT_EQ(result.exit_code, 1) << result.err;
  const Json report = Json::parse(result.out);
  EXPECT_EQ(report["ok"], false);
  const Json taken = find(report, "port 127.0.0.1:" + port);
  EXPECT_EQ(taken["verdict"], "blocker");
  EXPECT_THAT(taken["what"].get<std::string>(), HasSubstr("already in use"));
  EXPECT_EQ(find(report, "model " + (dir / "gone").string())["verdict"], "blocker");
  EXPECT_EQ(find(report, "keys " + (dir / "keys").string())["verdict"], "warning");
  EXPECT_EQ(find(report, "open files")["verdict"], "blocker");
}

}  // namespace
}  // namespace atl
