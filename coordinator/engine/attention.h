// The kinds of attention: how a layer's rows become entries of the cache, and how rows attend to
// them. What a kind's parts are stands here, how they are computed is the Compute's matter.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>

#include "coordinator/engine/compute.h"
#include "coordinator/engine/stages.h"
#include "coordinator/engine/weights.h"
#include "model/config.h"

namespace atl::coordinator {

// Used by the engine's thread only.
class Attention {
 public:
  virtual ~Attention() = default;

  // The entries of all rows of kH, each at its row's position of the layer's cache.
  virtual void write_cache(int64_t layer, const AttentionWeights& weights) = 0;
  // kOut = what the first num_rows rows of kH attend to, each over its sequence up to itself.
  virtual void attend(int64_t layer, const AttentionWeights& weights, int64_t num_rows) = 0;
};

// The kind that the model has. All references are borrowed and must outlive it; its stages are told
// to the timer. `between` is called now and then between its parts, for what has arrived meanwhile.
std::unique_ptr<Attention> make_attention(const model::ModelConfig& config, Compute& compute,
                                          StageTimer& timer, std::function<void()> between);

}  // namespace atl::coordinator
