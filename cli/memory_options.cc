#include "cli/memory_options.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <map>

#include "cli/byte_size_option.h"
#include "cli/help_formatter.h"

namespace atl::cli {
namespace {

using storage::PackIo;

const std::map<std::string, PackIo> kPackIos = {
    {"auto", PackIo::kAuto}, {"registered", PackIo::kRegistered}, {"threads", PackIo::kThreads}};

std::string name_of(PackIo io) {
  return std::find_if(kPackIos.begin(), kPackIos.end(),
                      [&](const auto& named) { return named.second == io; })
      ->first;
}

}  // namespace

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
                                        name_of(io)};
  if (ram_budget) {
    arguments.insert(arguments.end(), {"--ram-budget", std::to_string(*ram_budget)});
  }
  if (!usage_file.empty()) {
    arguments.insert(arguments.end(), {"--usage-file", usage_file.string()});
  }
  for (const std::filesystem::path& stripe : stripes) {
    arguments.insert(arguments.end(), {"--stripe", stripe.string()});
  }
  return arguments;
}

void add_io_option(CLI::App& command, PackIo* io) {
  command
      .add_option_function<std::string>(
          "--io", [io](const std::string& text) { *io = kPackIos.at(text); },
          "How packs are read: auto (io_uring where the system has it, else threads), registered "
          "(io_uring, and all slots are pinned for it at the start) or threads; auto unless given")
      ->check(CLI::IsMember({"auto", "registered", "threads"}))
      ->type_name("auto|registered|threads");
}

void add_memory_options(CLI::App& command, MemoryOptions* options) {
  add_byte_size_option(
      command, "--ram-budget",
      "RAM that each expert node may take in all, such as 8GiB, 500MiB or plain bytes; tiles "
      "beyond it are read when asked for. Unless given, all tiles stay in RAM",
      [options](uint64_t bytes) { options->ram_budget = bytes; });
  command
      .add_option_function<std::string>(
          "--evict",
          [options](const std::string& text) {
            options->evict = text == "lru" ? Evict::kLru : Evict::kLfu;
          },
          "What leaves RAM first: the expert that was wanted longest ago (lru) or least often "
          "(lfu); lfu unless given")
      ->check(CLI::IsMember({"lru", "lfu"}))
      ->type_name("lru|lfu");
  command
      .add_option("--usage-file", options->usage_file,
                  "Where a node saves how often it wanted each expert, to begin with those next "
                  "time; child nodes have a file each, PATH.n0, PATH.n1, ...")
      ->type_name("PATH");
  command
      .add_option("--stripe", options->stripes,
                  "A further pack directory of the same source, on another drive; may be given "
                  "several times")
      ->type_name("DIR")
      ->allow_extra_args(false);
  add_io_option(command, &options->io);
  group_options(command, "Memory", {"--ram-budget", "--evict", "--usage-file", "--stripe", "--io"});
}

}  // namespace atl::cli
