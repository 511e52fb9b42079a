#include "cli/doctor_look.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <linux/io_uring.h>
#include <netdb.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <set>
#include <thread>

#include "base/units.h"
#include "cli/machine_probe.h"
#include "kernels/cpu/dispatch.h"
#include "kernels/cuda/device.h"
#include "storage/io/file_io.h"
#include "topology/machine.h"

namespace atl::cli {
namespace {

namespace fs = std::filesystem;
using topology::Snapshot;

std::string system_message(int error) { return std::strerror(error); }

// "" if a ring can be made.
std::string try_io_uring() {
  io_uring_params params{};
  const long fd = syscall(SYS_io_uring_setup, 4, &params);
  if (fd < 0) return system_message(errno);
  close(static_cast<int>(fd));
  return "";
}

// "" if this process may listen there.
std::string try_to_listen(const config::Address& address) {
  addrinfo hints{}, *found = nullptr;
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_PASSIVE;
  const std::string port = std::to_string(address.port);
  if (const int error = getaddrinfo(address.host.c_str(), port.c_str(), &hints, &found)) {
    return gai_strerror(error);
  }
  std::string message;
  const int fd = socket(found->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
  const int on = 1;
  setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
  if (fd < 0 || bind(fd, found->ai_addr, found->ai_addrlen) != 0 || listen(fd, 1) != 0) {
    message = system_message(errno);
  }
  if (fd >= 0) close(fd);
  freeaddrinfo(found);
  return message;
}

topology::DirectoryFacts look_at(const fs::path& directory) {
  topology::DirectoryFacts facts;
  facts.path = directory.string();
  std::error_code error;
  facts.is_there = fs::is_directory(directory, error);
  if (!facts.is_there) return facts;
  for (fs::directory_iterator entry(directory, error), end; !error && entry != end;
       entry.increment(error)) {
    if (!entry->is_regular_file(error) || entry->path().extension() == ".json") continue;
    const int fd = open(entry->path().c_str(), O_RDONLY | O_DIRECT | O_CLOEXEC);
    facts.takes_o_direct = fd >= 0 || errno != EINVAL;
    if (fd >= 0) close(fd);
    break;
  }
  struct statvfs space {};
  if (statvfs(directory.c_str(), &space) == 0) {
    facts.free_bytes = static_cast<uint64_t>(space.f_bavail) * space.f_frsize;
  }
  struct stat file {};
  if (stat(directory.c_str(), &file) == 0) {
    const std::string device =
        fmt::format("/sys/dev/block/{}:{}/", major(file.st_dev), minor(file.st_dev));
    for (const char* queue : {"queue/rotational", "../queue/rotational"}) {
      const std::string text = topology::read_system_file(device + queue);
      if (!text.empty()) facts.rotates = text[0] == '1';
    }
  }
  // A guest's drive says that it rotates, whatever it is.
  if (!topology::read_system_file("/sys/hypervisor/type").empty() ||
      topology::read_system_file("/proc/cpuinfo").find(" hypervisor") != std::string::npos) {
    facts.rotates = false;
  }
  return facts;
}

void add_secret(const fs::path& path, Snapshot* snapshot) {
  topology::SecretFacts secret;
  secret.path = path.string();
  struct stat file {};
  secret.is_there = stat(path.c_str(), &file) == 0;
  if (secret.is_there) secret.mode = file.st_mode & 0777;
  snapshot->secrets.push_back(secret);
}

// Who of the file is here: the coordinator, nodes on loopback, and the one that was named.
void add_cluster(const DoctorOptions& options, Snapshot* snapshot) {
  const config::ClusterConfig config =
      config::make_cluster_config(options.file.settings(), config::Purpose::kPlan);
  const auto add_port = [&](const std::string& who, const config::Address& address) {
    if (options.running || address.port == 0) return;
    snapshot->ports.push_back({who, address.text(), try_to_listen(address)});
  };
  std::set<fs::path> directories = {config.model};
  directories.insert(config.stripes.begin(), config.stripes.end());
  const bool is_coordinator = options.file.node.empty();
  if (is_coordinator) {
    add_port("coordinator", config.coordinator.listen);
    if (config.coordinator.admin) add_port("coordinator's admin", *config.coordinator.admin);
    if (config.coordinator.device.starts_with("cuda:")) {
      snapshot->gpu_wanted = config.coordinator.device;
      const auto device =
          kernels::cuda::open_device(std::stoi(config.coordinator.device.substr(5)));
      if (!device) snapshot->gpu_error = device.error().message;
    }
    const config::MachineConfig& machine = config.coordinator.machine;
    snapshot->described_read = machine.memory_bytes_per_second;
    snapshot->described_nic = machine.nic_bytes_per_second;
    snapshot->described_cores = machine.cores;
  } else if (config.node(options.file.node) == nullptr) {
    throw LoadError(fmt::format("--name {}: {} has no such node", options.file.node,
                                config.file.filename().string()));
  }
  for (const config::NodeConfig& node : config.nodes) {
    const bool near = node.control.port != 0 && node.control.is_loopback();
    snapshot->has_other_machines = snapshot->has_other_machines || !near;
    if (!near && node.name != options.file.node) continue;
    add_port("node " + node.name, node.control);
    directories.insert(node.model);
    directories.insert(node.stripes.begin(), node.stripes.end());
    const config::MachineConfig& machine = node.machine;
    const auto take = [](auto value, auto* to) {
      if (value > 0) *to = value;
    };
    take(machine.memory_bytes_per_second, &snapshot->described_read);
    take(machine.nic_bytes_per_second, &snapshot->described_nic);
    take(machine.cores, &snapshot->described_cores);
    if (!machine.drive_bytes_per_second.empty()) {
      take(machine.drive_bytes_per_second.front(), &snapshot->described_drive);
    }
  }
  for (const fs::path& directory : directories) snapshot->directories.push_back(look_at(directory));
  if (!config.security.keys.empty()) add_secret(config.security.keys, snapshot);
  std::error_code error;
  if (config.security.keys.empty() && fs::exists(config.security.secret_file, error)) {
    add_secret(config.security.secret_file, snapshot);
  }
}

Snapshot gather(const DoctorOptions& options) {
  Snapshot snapshot;
  topology::read_system(topology::read_system_file, topology::list_system_names, &snapshot);
  topology::read_system_limits(&snapshot);
  const topology::Machine machine = topology::this_machine();
  snapshot.cores = static_cast<int>(machine.cores.size());
  snapshot.usable_cores = machine.usable_cores;
  snapshot.has_cpu_quota = machine.has_quota;
  snapshot.numa_nodes = static_cast<int>(machine.numa_nodes.size());
  snapshot.cpus = std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  snapshot.simd = kernels::cpu_targets().front();
  snapshot.io_uring_error = try_io_uring();
  const fs::path cache = options.probe_cache.empty() ? default_probe_file() : options.probe_cache;
  std::error_code error;
  if (fs::is_regular_file(cache, error)) {
    if (const auto kept = parse_measured(storage::read_whole_file(cache, kMiB))) {
      snapshot.read_bytes_per_second = kept->rates.read_bytes_per_second;
      if (kept->drive) snapshot.drive_bytes_per_second = kept->drive->bytes_per_second;
    }
  }
  if (options.file.is_given()) add_cluster(options, &snapshot);
  return snapshot;
}

}  // namespace

std::vector<topology::Finding> examine_here(const DoctorOptions& options) {
  return topology::examine(gather(options));
}

}  // namespace atl::cli
