#include "topology/device_facts.h"

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <fstream>
#include <sstream>

namespace atl::topology {
namespace {

std::string trimmed(std::string text) {
  while (!text.empty() && (text.back() == '\n' || text.back() == ' ')) text.pop_back();
  text.erase(0, std::min(text.find_first_not_of(' '), text.size()));
  return text;
}

int64_t number(const std::string& text, int64_t fallback) {
  int64_t value = 0;
  const auto [end, status] = std::from_chars(text.data(), text.data() + text.size(), value);
  return status == std::errc() && end != text.data() ? value : fallback;
}

}  // namespace

std::vector<NicFacts> nic_facts(const ReadFile& read, const ListNames& list) {
  std::vector<NicFacts> nics;
  for (const std::string& name : list("/sys/class/net")) {
    const std::string folder = "/sys/class/net/" + name + "/";
    if (read(folder + "mtu").empty() || name == "lo") continue;
    NicFacts nic;
    nic.name = name;
    // Mbit/s; -1 where nobody knows.
    const auto mbit = static_cast<double>(number(trimmed(read(folder + "speed")), -1));
    nic.bytes_per_second = mbit > 0 ? mbit * 1e6 / 8 : 0;
    nic.mtu = static_cast<int>(number(trimmed(read(folder + "mtu")), 0));
    nic.numa_node = static_cast<int>(number(trimmed(read(folder + "device/numa_node")), -1));
    nic.is_up = trimmed(read(folder + "operstate")) == "up";
    nics.push_back(nic);
  }
  return nics;
}

std::vector<DriveFacts> drive_facts(const ReadFile& read, const ListNames& list) {
  std::vector<DriveFacts> drives;
  for (const std::string& name : list("/sys/block")) {
    const auto begins = [&](const char* prefix) { return name.starts_with(prefix); };
    if (begins("loop") || begins("ram") || begins("zram") || begins("sr") || begins("fd")) continue;
    const std::string folder = "/sys/block/" + name + "/";
    DriveFacts drive;
    drive.name = name;
    drive.model = trimmed(read(folder + "device/model"));
    // In sectors of 512 bytes, whatever the drive's are.
    drive.bytes =
        static_cast<uint64_t>(std::max<int64_t>(0, number(trimmed(read(folder + "size")), 0))) *
        512;
    if (drive.bytes == 0) continue;
    drive.numa_node = static_cast<int>(number(trimmed(read(folder + "device/numa_node")), -1));
    drive.rotates = trimmed(read(folder + "queue/rotational")) == "1";
    drives.push_back(drive);
  }
  return drives;
}

std::string read_system_file(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  std::ostringstream text;
  text << in.rdbuf();  // some files of sysfs can be opened and not read
  return text.str();
}

std::vector<std::string> list_system_names(const std::string& path) {
  std::vector<std::string> names;
  std::error_code error;
  for (std::filesystem::directory_iterator entry(path, error), end; !error && entry != end;
       entry.increment(error)) {
    names.push_back(entry->path().filename().string());
  }
  std::sort(names.begin(), names.end());
  return names;
}

}  // namespace atl::topology
