// Checkpoints with random weights, laid out like published ones: for tests and benchmarks.
#pragma once

#include <cstdint>
#include <filesystem>
#include <vector>

#include "base/progress.h"
#include "kernels/numeric_types.h"
#include "model/config.h"
#include "storage/checkpoint/safetensors_writer.h"

namespace atl::model {

struct SyntheticSpec {
  ModelConfig config;  // num_nextn_predict_layers MTP layers are written, too
  // Of attention, dense MLP, shared and routed experts. Embedding, head, norms and router are BF16,
  // the router's bias F32; with kF32 everything is F32.
  kernels::WeightFormat format = kernels::WeightFormat::kFp8E4m3;
  uint64_t seed = 1;
  uint64_t shard_bytes = uint64_t{4} << 30;
  int num_threads = 1;                  // changes the time only, never a byte
  std::filesystem::path tokenizer_dir;  // its tokenizer files are copied; empty: none
};

// config.json, generation_config.json, shards and index. Weights have mean 0 and standard deviation
// 1/sqrt(k) (embedding: 1) from a table of normal quantiles, norms lie in 0.5 .. 1.5, biases in
// +-0.1, FP8 scales vary by block within a factor of 3; every value follows from seed, tensor name
// and place. Peak memory: 1 MiB per thread. LoadError if something can't be written.
void write_synthetic_checkpoint(const std::filesystem::path& model_dir, const SyntheticSpec& spec,
                                Progress& progress);
void write_synthetic_checkpoint(const std::filesystem::path& model_dir, const SyntheticSpec& spec);

// config.json that load_config() reads back to the same values (and generation_config.json, if
// there are eos ids). spec.config.fp8 is not used: the format decides.
void write_config(const std::filesystem::path& model_dir, const SyntheticSpec& spec);

// The tensors of such a checkpoint in file order. Source: docs/model.md 2.2 and 2.3.
std::vector<storage::TensorSpec> synthetic_tensors(const SyntheticSpec& spec);

}  // namespace atl::model
