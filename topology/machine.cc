#include "topology/machine.h"

#include <fmt/format.h>
#include <hwloc.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <map>
#include <memory>

#include "base/log.h"
#include "base/thread_team.h"

namespace atl::topology {
namespace {

using Topology = std::unique_ptr<hwloc_topology, decltype(&hwloc_topology_destroy)>;
using Bitmap = std::unique_ptr<hwloc_bitmap_s, decltype(&hwloc_bitmap_free)>;

Bitmap make_bitmap() { return {hwloc_bitmap_alloc(), &hwloc_bitmap_free}; }

Topology make_topology(Devices devices) {
  hwloc_topology_t raw = nullptr;
  if (hwloc_topology_init(&raw) != 0) throw LoadError("hwloc can't be started");
  // hwloc leaves devices out unless they are asked for before loading.
  if (devices == Devices::kFind) {
    hwloc_topology_set_io_types_filter(raw, HWLOC_TYPE_FILTER_KEEP_IMPORTANT);
  }
  return {raw, &hwloc_topology_destroy};
}

// Objects of a type, or none where levels of that type are of several kinds.
std::vector<hwloc_obj_t> objects(hwloc_topology_t topology, hwloc_obj_type_t type) {
  std::vector<hwloc_obj_t> found;
  for (hwloc_obj_t obj = nullptr;
       (obj = hwloc_get_next_obj_by_type(topology, type, obj)) != nullptr;) {
    found.push_back(obj);
  }
  return found;
}

// Position of the first object whose processors include this one; 0 if none.
int index_containing(const std::vector<hwloc_obj_t>& list, unsigned cpu) {
  for (size_t i = 0; i < list.size(); ++i) {
    if (hwloc_bitmap_isset(list[i]->cpuset, cpu)) return static_cast<int>(i);
  }
  return 0;
}

std::vector<hwloc_obj_t> last_level_caches(hwloc_topology_t topology) {
  for (const auto type :
       {HWLOC_OBJ_L5CACHE, HWLOC_OBJ_L4CACHE, HWLOC_OBJ_L3CACHE, HWLOC_OBJ_L2CACHE}) {
    std::vector<hwloc_obj_t> caches = objects(topology, type);
    if (!caches.empty()) return caches;
  }
  return {};
}

void read_cores(hwloc_topology_t topology, hwloc_const_bitmap_t allowed, Machine* machine) {
  const std::vector<hwloc_obj_t> numa_nodes = objects(topology, HWLOC_OBJ_NUMANODE);
  const std::vector<hwloc_obj_t> packages = objects(topology, HWLOC_OBJ_PACKAGE);
  const std::vector<hwloc_obj_t> caches = last_level_caches(topology);
  for (const hwloc_obj_t node : numa_nodes) {
    machine->numa_nodes.push_back(
        {static_cast<int>(node->os_index), node->attr->numanode.local_memory, 0});
  }
  std::vector<hwloc_obj_t> cores = objects(topology, HWLOC_OBJ_CORE);
  if (cores.empty()) cores = objects(topology, HWLOC_OBJ_PU);  // a guest that hides its cores
  const Bitmap mine = make_bitmap();
  for (const hwloc_obj_t core : cores) {
    hwloc_bitmap_and(mine.get(), core->cpuset, allowed);
    const int cpu = hwloc_bitmap_first(mine.get());
    if (cpu < 0) continue;
    Core found;
    found.cpu = cpu;
    found.num_cpus = hwloc_bitmap_weight(mine.get());
    found.package = index_containing(packages, cpu);
    found.cache_group = index_containing(caches, cpu);
    if (!numa_nodes.empty()) {
      NumaNode& node = machine->numa_nodes[index_containing(numa_nodes, cpu)];
      found.numa_node = node.id;
      ++node.num_cores;
    }
    machine->cores.push_back(found);
  }
  std::stable_sort(machine->cores.begin(), machine->cores.end(),
                   [](const Core& a, const Core& b) { return a.numa_node < b.numa_node; });
  machine->num_packages = std::max<int>(1, static_cast<int>(packages.size()));
}

void read_caches(hwloc_topology_t topology, Machine* machine) {
  std::map<std::pair<int, uint64_t>, int> counts;
  for (int depth = 0; depth < hwloc_topology_get_depth(topology); ++depth) {
    if (!hwloc_obj_type_is_dcache(hwloc_get_depth_type(topology, depth))) continue;
    for (unsigned i = 0; i < hwloc_get_nbobjs_by_depth(topology, depth); ++i) {
      const auto& cache = hwloc_get_obj_by_depth(topology, depth, i)->attr->cache;
      ++counts[{static_cast<int>(cache.depth), cache.size}];
    }
  }
  for (const auto& [cache, count] : counts) {
    machine->caches.push_back({cache.first, cache.second, count});
  }
}

bool device_kind(const hwloc_obj_t obj, Device::Kind* kind) {
  switch (obj->attr->osdev.type) {
    case HWLOC_OBJ_OSDEV_BLOCK:
      *kind = Device::Kind::kDisk;
      return true;
    case HWLOC_OBJ_OSDEV_NETWORK:
      *kind = Device::Kind::kNetwork;
      return true;
    case HWLOC_OBJ_OSDEV_OPENFABRICS:
      *kind = Device::Kind::kRdma;
      return true;
    case HWLOC_OBJ_OSDEV_COPROC:
      *kind = Device::Kind::kGpu;
      return true;
    default:
      return false;
  }
}

void read_devices(hwloc_topology_t topology, Machine* machine) {
  for (const hwloc_obj_t obj : objects(topology, HWLOC_OBJ_OS_DEVICE)) {
    Device device;
    if (!device_kind(obj, &device.kind)) continue;
    device.name = obj->name ? obj->name : "";
    const hwloc_obj_t near = hwloc_get_non_io_ancestor_obj(topology, obj);
    if (near && near->nodeset && hwloc_bitmap_weight(near->nodeset) == 1) {
      device.numa_node = hwloc_bitmap_first(near->nodeset);
    }
    for (const char* key : {"Model", "GPUModel"}) {
      if (const char* model = hwloc_obj_get_info_by_name(obj, key)) device.model = model;
    }
    machine->devices.push_back(std::move(device));
  }
}

Machine read_machine(hwloc_topology_t topology, hwloc_const_bitmap_t allowed) {
  Machine machine;
  machine.is_this_system = hwloc_topology_is_thissystem(topology) != 0;
  read_cores(topology, allowed, &machine);
  read_caches(topology, &machine);
  read_devices(topology, &machine);
  machine.usable_cores = std::max<int>(1, static_cast<int>(machine.cores.size()));
  return machine;
}

Machine load_description(Topology topology, const std::string& what,
                         const std::vector<int>& allowed_cpus) {
  if (hwloc_topology_load(topology.get()) != 0) {
    throw LoadError(fmt::format("hwloc can't load the topology of {}", what));
  }
  const Bitmap allowed = make_bitmap();
  if (allowed_cpus.empty()) hwloc_bitmap_fill(allowed.get());
  for (const int cpu : allowed_cpus) hwloc_bitmap_set(allowed.get(), cpu);
  return read_machine(topology.get(), allowed.get());
}

// Without hwloc: the cores of the mask, all alike.
Machine plain_machine() {
  Machine machine;
  machine.usable_cores = usable_cores();
  machine.numa_nodes = {{0, 0, machine.usable_cores}};
  for (int cpu = 0; cpu < machine.usable_cores; ++cpu) machine.cores.push_back({.cpu = cpu});
  machine.is_this_system = false;  // the numbers are made up: nothing may be pinned to them
  return machine;
}

}  // namespace

std::string_view to_string(Device::Kind kind) {
  switch (kind) {
    case Device::Kind::kDisk:
      return "disk";
    case Device::Kind::kNetwork:
      return "network";
    case Device::Kind::kRdma:
      return "rdma";
    case Device::Kind::kGpu:
      return "gpu";
  }
  return "?";
}

const NumaNode* Machine::find_numa_node(int id) const {
  const auto found = std::find_if(numa_nodes.begin(), numa_nodes.end(),
                                  [id](const NumaNode& node) { return node.id == id; });
  return found == numa_nodes.end() ? nullptr : &*found;
}

Machine this_machine(Devices devices) {
  const Topology topology = make_topology(devices);
  const Bitmap allowed = make_bitmap();
  if (hwloc_topology_load(topology.get()) != 0 ||
      hwloc_get_cpubind(topology.get(), allowed.get(), HWLOC_CPUBIND_THREAD) != 0) {
    log_warn("hwloc can't tell this machine's cores: threads are not pinned");
    return plain_machine();
  }
  Machine machine = read_machine(topology.get(), allowed.get());
  if (machine.cores.empty()) return plain_machine();
  if (!machine.is_this_system) return machine;  // described by HWLOC_SYNTHETIC or the like
  // usable_cores() counts hardware threads; only a quota can make it fewer than the cores.
  machine.has_quota = usable_cores() < static_cast<int>(machine.cores.size());
  machine.usable_cores = std::min(machine.usable_cores, usable_cores());
  return machine;
}

Machine machine_from_synthetic(const std::string& description,
                               const std::vector<int>& allowed_cpus) {
  Topology topology = make_topology(Devices::kFind);
  if (hwloc_topology_set_synthetic(topology.get(), description.c_str()) != 0) {
    throw LoadError(fmt::format("hwloc doesn't take the description '{}'", description));
  }
  return load_description(std::move(topology), description, allowed_cpus);
}

Machine machine_from_xml(const std::string& path, const std::vector<int>& allowed_cpus) {
  Topology topology = make_topology(Devices::kFind);
  if (hwloc_topology_set_xml(topology.get(), path.c_str()) != 0) {
    throw LoadError(fmt::format("hwloc doesn't take the topology file {}", path));
  }
  return load_description(std::move(topology), path, allowed_cpus);
}

Status bind_to_numa_node(int id) {
  const Topology topology = make_topology(Devices::kLeaveOut);
  if (hwloc_topology_load(topology.get()) != 0) {
    return Error{ErrorCode::kUnavailable, "hwloc can't tell this machine's NUMA domains"};
  }
  // Of another machine (HWLOC_XMLFILE and the like) hwloc "binds" with success and no effect.
  if (!hwloc_topology_is_thissystem(topology.get())) {
    return Error{ErrorCode::kUnavailable, "hwloc describes another machine: nothing is bound"};
  }
  const hwloc_obj_t node = hwloc_get_numanode_obj_by_os_index(topology.get(), id);
  if (node == nullptr) {
    return Error{ErrorCode::kInvalid, fmt::format("there is no NUMA domain {}", id)};
  }
  const Bitmap cores = make_bitmap();
  hwloc_get_cpubind(topology.get(), cores.get(), HWLOC_CPUBIND_THREAD);
  hwloc_bitmap_and(cores.get(), cores.get(), node->cpuset);
  if (hwloc_bitmap_iszero(cores.get())) {
    return Error{ErrorCode::kInvalid,
                 fmt::format("NUMA domain {} has no core that this process may use", id)};
  }
  if (hwloc_set_cpubind(topology.get(), cores.get(), HWLOC_CPUBIND_THREAD) != 0) {
    return Error{ErrorCode::kUnavailable,
                 fmt::format("threads can't be kept on the cores of NUMA domain {}: {}", id,
                             std::strerror(errno))};
  }
  // Linux keeps the policy per thread and hands it on to threads that one starts.
  if (hwloc_set_membind(topology.get(), node->nodeset, HWLOC_MEMBIND_BIND,
                        HWLOC_MEMBIND_THREAD | HWLOC_MEMBIND_STRICT | HWLOC_MEMBIND_BYNODESET) !=
      0) {
    return Error{ErrorCode::kUnavailable,
                 fmt::format("memory can't be bound to NUMA domain {}: {}; pages go where a thread "
                             "touches them first",
                             id, std::strerror(errno))};
  }
  return {};
}

}  // namespace atl::topology
