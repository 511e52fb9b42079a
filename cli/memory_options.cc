#include "cli/memory_options.h"

#include <CLI/CLI.hpp>

#include "cli/byte_size_option.h"
#include "cli/help_formatter.h"

namespace atl::cli {
using storage::PackIo;

void add_io_option(CLI::App& command, PackIo* io) {
  command
      .add_option_function<std::string>(
          "--io", [io](const std::string& text) { *io = *deployment::parse_pack_io(text); },
          "How packs are read: auto (io_uring where the system has it, else threads), registered "
          "(io_uring, and all slots are pinned for it at the start) or threads; auto unless given")
      ->check(CLI::IsMember({"auto", "registered", "threads"}))
      ->type_name("auto|registered|threads");
}

void add_memory_options(CLI::App& command, deployment::MemoryOptions* options) {
  add_byte_size_option(
      command, "--ram-budget",
      "RAM that each expert node may take in all, such as 8GiB, 500MiB or plain bytes; tiles "
      "beyond it are read when asked for. Unless given, all tiles stay in RAM",
      [options](uint64_t bytes) { options->ram_budget = bytes; });
  command
      .add_option_function<std::string>(
          "--evict",
          [options](const std::string& text) {
            options->evict = text == "lru" ? deployment::Evict::kLru : deployment::Evict::kLfu;
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
      .add_option("--usage", options->first_usage,
                  "What a node begins with while it has no --usage-file: how often each expert was "
                  "used, of `atoll experts dump`; not written")
      ->type_name("FILE");
  command
      .add_option("--stripe", options->stripes,
                  "A further pack directory of the same source, on another drive; may be given "
                  "several times")
      ->type_name("DIR")
      ->allow_extra_args(false);
  add_io_option(command, &options->io);
  group_options(command, "Memory",
                {"--ram-budget", "--evict", "--usage-file", "--usage", "--stripe", "--io"});
}

}  // namespace atl::cli
