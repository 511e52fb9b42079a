// The numerics profile on the command line, and as the data plane names it.
#pragma once

#include <string>
#include <vector>

#include "config/cluster_config.h"
#include "kernels/numeric_types.h"
#include "model/numerics_profile.h"
#include "transport/data/wire.h"

namespace CLI {
class App;
}

namespace atl::cli {

// A cluster file's numerics, where the user said nothing else on the command line.
void take_numerics(const config::NumericsConfig& numerics, const CLI::App& command,
                   model::NumericsProfile* profile);

// A cluster file's numerics alone.
model::NumericsProfile numerics_of(const config::NumericsConfig& numerics);

// --wire, --kv, --format, --dense-format and --activations into *profile, borrowed for the life of
// the program.
void add_numerics_options(CLI::App& command, model::NumericsProfile* profile);
// The options that give this profile.
std::vector<std::string> numerics_arguments(const model::NumericsProfile& profile);

transport::WireRowType wire_row_type(kernels::RowType type);

}  // namespace atl::cli
