// The numerics profile as the cluster file, child processes and the data plane name it.
#pragma once

#include <string>
#include <vector>

#include "config/cluster_config.h"
#include "kernels/numeric_types.h"
#include "model/numerics_profile.h"
#include "transport/data/wire.h"

namespace atl::deployment {

model::NumericsProfile numerics_of(const config::NumericsConfig& numerics);
// The options of a command line that give this profile.
std::vector<std::string> numerics_arguments(const model::NumericsProfile& profile);

transport::WireRowType wire_row_type(kernels::RowType type);

}  // namespace atl::deployment
