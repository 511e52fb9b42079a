// What this machine is and what it does, measured once and kept in a file: `atoll probe`, and what
// `atoll plan` counts with where a machine isn't described.
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "topology/device_facts.h"
#include "topology/machine.h"
#include "topology/memory_bounds.h"
#include "topology/planner/rates.h"

namespace atl::cli {

struct ProbeOptions {
  std::filesystem::path cache_file;  // "": default_probe_file()
  std::filesystem::path drive_dir;   // whose drive is measured; "": none
  bool remeasure = false;
};

// Of one NUMA domain, by its own cores, out of its own memory.
struct DomainRate {
  int numa_node = 0;
  double read_bytes_per_second = 0;
};

struct DriveRate {
  std::filesystem::path directory;
  uint64_t extent_bytes = 0;
  double bytes_per_second = 0;
};

// What takes seconds to find out.
struct MeasuredMachine {
  std::string machine_id, kernel, date, simd;  // what it is true of, and when it was found
  int threads = 0;
  topology::MachineRates rates;
  std::vector<DomainRate> domains;
  std::optional<DriveRate> drive;
};

struct MachineFacts {
  topology::Machine machine;
  std::vector<topology::NicFacts> nics;
  std::vector<topology::DriveFacts> drives;
  std::vector<topology::MemoryBound> bounds;
  MeasuredMachine measured;
  bool from_cache = false;
  std::filesystem::path cache_file;
};

// $XDG_CACHE_HOME/atoll/probe.json, or ~/.cache/atoll/probe.json, or /var/tmp/atoll-UID-probe.json.
std::filesystem::path default_probe_file();

// Looks at the machine, and measures unless the file has the figures of this machine, kernel, SIMD
// target and number of threads. A file that can't be written is a warning. LoadError if there is no
// memory to measure with, or if the file is damaged or none of ours (it stays as it is).
MachineFacts probe_machine(const ProbeOptions& options);

// Looks, and takes the figures that are kept; nothing is measured. LoadError: there are none of
// this machine as it is now.
MachineFacts kept_probe();

// One object, as `atoll probe --json` prints it; and a machine as a cluster file describes it.
std::string probe_json(const MachineFacts& facts);
std::string probe_text(const MachineFacts& facts);
std::string probe_yaml(const MachineFacts& facts, const std::string& name);

// The file's text, and back; nullopt if it is none of ours.
std::string measured_json(const MeasuredMachine& measured);
std::optional<MeasuredMachine> parse_measured(const std::string& text);

}  // namespace atl::cli
