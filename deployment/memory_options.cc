#include "deployment/memory_options.h"

namespace atl::deployment {

using storage::PackIo;

std::string_view to_string(PackIo io) {
  switch (io) {
    case PackIo::kAuto:
      return "auto";
    case PackIo::kRegistered:
      return "registered";
    case PackIo::kThreads:
      return "threads";
  }
  return "?";
}

std::optional<PackIo> parse_pack_io(std::string_view text) {
  for (const PackIo io : {PackIo::kAuto, PackIo::kRegistered, PackIo::kThreads}) {
    if (to_string(io) == text) return io;
  }
  return std::nullopt;
}

MemoryOptions MemoryOptions::of_node(std::string_view name) const {
  MemoryOptions options = *this;
  if (!usage_file.empty()) {
    options.usage_file += '.';
    options.usage_file += name;
  }
  return options;
}

std::vector<std::string> MemoryOptions::arguments() const {
  std::vector<std::string> arguments = {"--evict", evict == Evict::kLru ? "lru" : "lfu", "--io",
                                        std::string(to_string(io))};
  if (ram_budget) {
    arguments.insert(arguments.end(), {"--ram-budget", std::to_string(*ram_budget)});
  }
  if (!usage_file.empty()) {
    arguments.insert(arguments.end(), {"--usage-file", usage_file.string()});
  }
  if (!first_usage.empty()) arguments.insert(arguments.end(), {"--usage", first_usage.string()});
  for (const std::filesystem::path& stripe : stripes) {
    arguments.insert(arguments.end(), {"--stripe", stripe.string()});
  }
  return arguments;
}

}  // namespace atl::deployment
