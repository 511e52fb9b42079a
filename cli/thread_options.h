// The options that say how many threads a command has and where they run.
#pragma once

#include <string>
#include <vector>

#include "topology/thread_plan.h"

namespace CLI {
class App;
}

namespace atl::cli {

// --threads N|auto into *threads: 0 for auto, which is one for each core that can be used. Pointers
// are borrowed for the life of the program.
void add_threads_option(CLI::App& command, const std::string& whose, int* threads);
// --pin auto|on|off into *mode.
void add_pin_option(CLI::App& command, topology::PinMode* mode);

// The threads of one process that has this machine, or one NUMA domain of it, to itself as far as
// it knows. Logs the plan (debug). LoadError if there is no such domain.
topology::TeamPlan plan_threads(const topology::TeamRequest& request);

}  // namespace atl::cli
