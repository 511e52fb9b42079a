// GET /experts: how often each expert was chosen, as `atoll experts` keeps it. The document is also
// an expert usage file (storage/tiles/usage_file.h), with more in it: docs/profiling.md.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "coordinator/engine/expert_load.h"
#include "http/http_server.h"

namespace atl::coordinator {

struct ExpertsAbout {
  std::string model_name;
  std::string checkpoint_fingerprint;
  int64_t n_routed_experts = 0, num_experts_per_tok = 0;
};

// One line. Of 58 layers of 256 experts 1.5 MB: ten windows, four followers of each expert.
std::string experts_json(const ExpertsAbout& about, const ExpertLoadSnapshot& load);

// Adds the path. Server's thread, as HttpServer::route(); all is borrowed and outlives the server.
// The document is made by a helper thread, so that nobody's tokens wait for it.
void add_experts_route(http::HttpServer& server, ExpertsAbout about, const ExpertLoad& load);

}  // namespace atl::coordinator
