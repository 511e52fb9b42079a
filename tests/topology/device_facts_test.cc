// What sysfs says of network devices and drives, from made-up files.
#include "topology/device_facts.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>

namespace atl::topology {
namespace {

using ::testing::ElementsAre;

struct MadeUpSystem {
  std::map<std::string, std::string> files;
  std::map<std::string, std::vector<std::string>> folders;

  std::string read(const std::string& path) const {
    const auto found = files.find(path);
    return found == files.end() ? "" : found->second;
  }
  std::vector<std::string> list(const std::string& path) const {
    const auto found = folders.find(path);
    return found == folders.end() ? std::vector<std::string>() : found->second;
  }
};

TEST(DeviceFacts, networks_have_speed_mtu_and_domain) {
  MadeUpSystem system;
  system.folders["/sys/class/net"] = {"bonding_masters", "eth0", "lo", "veth1"};
  system.files = {
      {"/sys/class/net/eth0/speed", "100000\n"}, {"/sys/class/net/eth0/mtu", "9000\n"},
      {"/sys/class/net/eth0/operstate", "up\n"}, {"/sys/class/net/eth0/device/numa_node", "1\n"},
      {"/sys/class/net/lo/mtu", "65536\n"},      {"/sys/class/net/veth1/speed", "-1\n"},
      {"/sys/class/net/veth1/mtu", "1500\n"},    {"/sys/class/net/veth1/operstate", "down\n"}};
  const auto read = [&](const std::string& path) { return system.read(path); };
  const auto list = [&](const std::string& path) { return system.list(path); };
  EXPECT_THAT(nic_facts(read, list), ElementsAre(NicFacts{"eth0", 12.5e9, 9000, 1, true},
                                                 NicFacts{"veth1", 0, 1500, -1, false}));
}

TEST(DeviceFacts, drives_are_whole_ones_with_something_on_them) {
  MadeUpSystem system;
  system.folders["/sys/block"] = {"loop0", "nvme0n1", "sda", "sr0", "zram0"};
  system.files = {{"/sys/block/loop0/size", "100\n"},
                  {"/sys/block/nvme0n1/size", "2000\n"},
                  {"/sys/block/nvme0n1/device/model", "Fast One   \n"},
                  {"/sys/block/nvme0n1/device/numa_node", "0\n"},
                  {"/sys/block/nvme0n1/queue/rotational", "0\n"},
                  {"/sys/block/sda/size", "0\n"}};
  const auto read = [&](const std::string& path) { return system.read(path); };
  const auto list = [&](const std::string& path) { return system.list(path); };
  EXPECT_THAT(drive_facts(read, list),
              ElementsAre(DriveFacts{"nvme0n1", "Fast One", 2000 * 512, 0, false}));
}

TEST(DeviceFacts, of_this_system_can_be_had) {
  EXPECT_NO_THROW((void)nic_facts(read_system_file, list_system_names));
  EXPECT_NO_THROW((void)drive_facts(read_system_file, list_system_names));
  EXPECT_EQ(read_system_file("/no/such/file"), "");
}

}  // namespace
}  // namespace atl::topology
