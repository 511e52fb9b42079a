// The file that keeps a machine's figures: what is written is read, what is not ours isn't taken.
#include "cli/machine_probe.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <string>

#include "base/units.h"
#include "tests/support/temp_dir.h"

namespace atl::cli {
namespace {

MeasuredMachine some_machine() {
  MeasuredMachine measured;
  measured.machine_id = "abc";
  measured.kernel = "6.1";
  measured.date = "2026-11-30T00:00:00Z";
  measured.simd = "AVX3";
  measured.threads = 16;
  measured.rates = topology::described_machine(100e9, 16);
  for (auto& points : measured.rates.measured) points = {{1, 1e-11}, {256, 3e-10}};
  measured.domains = {{0, 60e9}, {1, 50e9}};
  measured.drive = DriveRate{"/nvme0", 2 * kMiB, 6e9};
  return measured;
}

TEST(MachineProbe, the_file_gives_back_what_was_measured) {
  const MeasuredMachine before = some_machine();
  const auto after = parse_measured(measured_json(before));
  ASSERT_TRUE(after.has_value());
  EXPECT_EQ(after->machine_id, "abc");
  EXPECT_EQ(after->simd, "AVX3");
  EXPECT_EQ(after->rates.cores, 16);
  EXPECT_EQ(after->rates.read_bytes_per_second, 100e9);
  EXPECT_EQ(after->rates.measured[2][1].seconds_per_weight, 3e-10);
  EXPECT_EQ(after->domains[1].read_bytes_per_second, 50e9);
  EXPECT_EQ(after->drive->bytes_per_second, 6e9);
}

TEST(MachineProbe, a_file_that_is_not_ours_is_measured_anew) {
  const std::string good = measured_json(some_machine());
  for (const std::string& text :
       {std::string("{"), std::string("[]"), std::string("{\"atoll_probe\": 2}"),
        std::string("{\"atoll_probe\": 1}"), good.substr(0, good.size() / 2)}) {
    EXPECT_FALSE(parse_measured(text).has_value()) << text;
  }
  std::string zero = good;
  zero.replace(zero.find("100000000000.0"), 14, "0");
  EXPECT_FALSE(parse_measured(zero).has_value());
}

TEST(MachineProbe, a_damaged_file_is_said_and_stays) {
  const test::TempDir dir;
  const std::string good = measured_json(some_machine());
  std::ofstream(dir / "probe.json") << good.substr(0, good.size() / 2);
  ProbeOptions options;
  options.cache_file = dir / "probe.json";
  EXPECT_THAT(test::message_of<LoadError>(dir.path(), [&] { (void)probe_machine(options); }),
              testing::HasSubstr("DIR/probe.json: "));
  EXPECT_EQ(std::filesystem::file_size(dir / "probe.json"), good.size() / 2);
}

TEST(MachineProbe, is_described_as_a_node) {
  MachineFacts facts;
  facts.measured = some_machine();
  facts.nics = {{"eth0", 12.5e9, 9000, 0, true}, {"eth1", 25e9, 9000, 0, false}};
  facts.bounds = {{topology::MemoryBound::Of::kMachine, "MemAvailable", 64 * kGiB, 60 * kGiB}};
  EXPECT_EQ(probe_yaml(facts, "n1"),
            "nodes:\n  - name: n1\n    ram: 60GiB\n    cores: 16\n    mem_bw: 100.0GB/s\n"
            "    drives: [{rate: 6.00GB/s}]\n    nic: 100Gbit/s\n");
}

}  // namespace
}  // namespace atl::cli
