// How an expert node keeps its tiles: how much RAM it may take, what leaves first when that is
// full, and where missing tiles are read. What the options do: docs/memory.md.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "storage/tiles/expert_reader.h"

namespace atl::deployment {

enum class Evict : uint8_t { kLru, kLfu };

struct MemoryOptions {
  std::optional<uint64_t> ram_budget;  // bytes of one node; none: all its tiles stay in RAM
  Evict evict = Evict::kLfu;
  std::filesystem::path usage_file;            // of this node; "": none
  std::filesystem::path first_usage;           // read while there is no usage_file; "": none
  std::vector<std::filesystem::path> stripes;  // further packs of the same source
  storage::PackIo io = storage::PackIo::kAuto;

  // Those of one node of several, `name` in logs: its usage file has the name behind its own.
  MemoryOptions of_node(std::string_view name) const;
  // As options of a command line.
  std::vector<std::string> arguments() const;
};

// "auto", "registered" or "threads", and back; nullopt for other texts.
std::string_view to_string(storage::PackIo io);
std::optional<storage::PackIo> parse_pack_io(std::string_view text);

}  // namespace atl::deployment
