// How an expert node keeps its tiles, on the command line.
#pragma once

#include "deployment/memory_options.h"

namespace CLI {
class App;
}

namespace atl::cli {

// --io into *io, borrowed for the life of the program.
void add_io_option(CLI::App& command, storage::PackIo* io);
// --ram-budget, --evict, --usage-file, --stripe and --io into *options, borrowed for the life of
// the program.
void add_memory_options(CLI::App& command, deployment::MemoryOptions* options);

}  // namespace atl::cli
