// The numerics profile on the command line.
#pragma once

#include "config/cluster_config.h"
#include "model/numerics_profile.h"

namespace CLI {
class App;
}

namespace atl::cli {

// A cluster file's numerics, where the user said nothing else on the command line.
void take_numerics(const config::NumericsConfig& numerics, const CLI::App& command,
                   model::NumericsProfile* profile);

// --wire, --kv, --format, --dense-format and --activations into *profile, borrowed for the life of
// the program.
void add_numerics_options(CLI::App& command, model::NumericsProfile* profile);

}  // namespace atl::cli
