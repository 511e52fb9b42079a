#include "tests/support/synthetic_model.h"

#include <fstream>
#include <stdexcept>

#include "storage/checkpoint/checkpoint.h"
#include "tests/support/golden.h"

namespace atl::test {

void write_small_model(const std::filesystem::path& dir, int64_t hidden_size,
                       int64_t moe_intermediate_size) {
  model::SyntheticSpec spec;
  spec.config = model::load_config(tests_dir() / "models/tiny-fp8");
  spec.config.hidden_size = hidden_size;
  spec.config.moe_intermediate_size = moe_intermediate_size;
  spec.config.num_hidden_layers = 2;
  spec.config.num_nextn_predict_layers = 0;
  spec.config.n_routed_experts = 8;
  spec.config.n_group = 2;
  spec.config.topk_group = 1;
  spec.config.num_experts_per_tok = 3;
  spec.config.vocab_size = 500;
  model::write_synthetic_checkpoint(dir, spec);
}

void patch_tensor(const std::filesystem::path& dir, const std::string& tensor, uint64_t offset,
                  uint64_t count, float value) {
  const storage::Checkpoint checkpoint = storage::Checkpoint::open(dir);
  const storage::TensorInfo* info = checkpoint.find(tensor);
  if (info == nullptr || offset + count * sizeof(float) > info->bytes) {
    throw std::runtime_error("cannot patch " + tensor);
  }
  std::fstream file(dir / checkpoint.shards()[info->shard].file_name,
                    std::ios::in | std::ios::out | std::ios::binary);
  file.seekp(static_cast<std::streamoff>(info->offset + offset));
  for (uint64_t i = 0; i < count; ++i) {
    file.write(reinterpret_cast<const char*>(&value), sizeof(value));
  }
  if (!file.flush()) throw std::runtime_error("cannot write " + tensor);
}

}  // namespace atl::test
