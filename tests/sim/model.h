// The model of all worlds: a small random one, as checkpoint for the coordinator and pack for the
// nodes. Made once in a process.
#pragma once

#include <memory>
#include <optional>

#include "base/thread_team.h"
#include "coordinator/engine/weights.h"
#include "model/open.h"
#include "tests/sim/disk.h"
#include "tests/support/temp_dir.h"
#include "transport/control/control.h"
#include "transport/data/wire.h"

namespace atl::sim {

inline constexpr uint32_t kRowsMax = 24;  // of a step

class Model {
 public:
  Model(int64_t hidden_size, int64_t moe_intermediate_size, int64_t num_layers = 3);

  const model::ModelConfig& config() const { return checkpoint_->config; }
  const coordinator::Weights& weights() const { return *weights_; }
  const storage::ExpertCatalog& catalog() const { return checkpoint_->catalog; }
  const storage::Pack& pack() const { return *packed_->pack; }
  const PackImage& image() const { return image_; }
  int num_tiles() const;
  uint64_t tile_bytes() const;  // of the largest one
  transport::ModelIdentity identity() const;
  transport::WireLimits limits() const;
  // One member: whoever calls it. Shared by all machines.
  ThreadTeam& team() const { return *team_; }

 private:
  test::TempDir dir_;
  std::unique_ptr<model::OpenedModel> checkpoint_, packed_;
  std::optional<coordinator::Weights> weights_;
  PackImage image_;
  std::unique_ptr<ThreadTeam> team_;
};

}  // namespace atl::sim
