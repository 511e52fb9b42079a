// What the planner has to know of a model: sizes of its matrices, as they will be held, and memory
// of its processes, by the same computation that a start is checked with.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>

#include "model/open.h"
#include "topology/planner/planner.h"

namespace atl::cli {

struct PlanModelOptions {
  model::NumericsProfile numerics;  // as asked for
  int num_nodes = 1;                // processes for nodes
  int coordinator_threads = 1, node_threads = 1;
  int64_t rows_max = 512;
  uint64_t cache_tokens = 0;
  std::filesystem::path usage_file;  // "": all experts alike
};

// An opened model, of which headers alone are read. LoadError if it can't be held as asked for.
class PlanModel {
 public:
  // Borrows the model.
  PlanModel(const model::OpenedModel& model, PlanModelOptions options);

  const model::ModelConfig& config() const { return model_.config; }
  topology::ModelShape shape() const { return shape(options_.numerics); }
  // The same with routed experts, or all other matrices, or both in int4; what can't be, or is so
  // already, is left out.
  std::vector<topology::Alternative> alternatives() const;

 private:
  topology::ModelShape shape(const model::NumericsProfile& numerics) const;
  void add_matrices(const model::NumericsProfile& numerics, topology::ModelShape* shape) const;
  void add_experts(const model::NumericsProfile& numerics, topology::ModelShape* shape) const;
  void add_usage(topology::ModelShape* shape) const;
  void add_memory(const model::NumericsProfile& numerics, topology::ModelShape* shape) const;

  const model::OpenedModel& model_;
  const PlanModelOptions options_;
  const model::ModelTensors tensors_;
};

}  // namespace atl::cli
