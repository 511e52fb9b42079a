#include "coordinator/engine/weights.h"

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>
#include <thread>

#include "base/fp_env.h"
#include "kernels/ops.h"

namespace atl::coordinator {
namespace {

using storage::MatrixSource;

// Rows of one task: big matrices (the head) are shared out between threads in pieces of about this
// size. A multiple of 16 rows, so that no two threads write the same panel.
constexpr int64_t kTaskBytes = 32 << 20;

struct PackTask {
  const MatrixSource* matrix;
  int64_t row_begin, row_end;
  std::vector<storage::PackTarget> targets;
};

uint64_t matrix_bytes(const MatrixSource& matrix) {
  if (matrix.weight == nullptr) return 0;
  return matrix.weight->bytes + (matrix.scale ? matrix.scale->bytes : 0);
}
uint64_t ffn_bytes(const model::FfnTensors& ffn) {
  return matrix_bytes(ffn.gate_proj) + matrix_bytes(ffn.up_proj) + matrix_bytes(ffn.down_proj);
}

// Memory for one packed matrix: codes, then scales, both 64-byte aligned.
size_t packed_bytes(const kernels::PanelShape& shape) {
  return round_up(static_cast<int64_t>(shape.total_code_bytes()), 64) +
         round_up(static_cast<int64_t>(shape.total_scale_bytes()), 64);
}

kernels::PanelShape whole_shape(const MatrixSource& matrix, const storage::HeldFormat& format) {
  return format.shape(matrix.format, matrix.rows, matrix.cols, {});
}

// Whether the head's panels serve as the embedding, too: they are the same numbers.
bool shares_embedding(const model::ModelTensors& tensors, const storage::HeldFormat& format) {
  const MatrixSource& head = tensors.lm_head;
  return head.weight == tensors.embed_tokens.weight && format.format_of(head.format) == head.format;
}

struct HalfShape {
  kernels::PanelSource source;
  kernels::PanelShape shape;
};
HalfShape half_of(const MatrixSource& eh_proj, bool second) {
  const int64_t hidden = eh_proj.cols / 2;
  const kernels::PanelSource source{0, second ? hidden : 0, false};
  return {source, storage::HeldFormat{}.shape(eh_proj.format, eh_proj.rows, hidden, source)};
}

// kv_b_proj: head h owns rows h * (nope + v) on, first nope rows make k, then v rows make v.
struct HeadShape {
  kernels::PanelSource source;
  kernels::PanelShape shape;
};
HeadShape k_of_head(const model::ModelConfig& config, const MatrixSource& kv_b,
                    const storage::HeldFormat& format, int64_t head) {
  const int64_t nope = config.qk_nope_head_dim;
  const kernels::PanelSource source{head * (nope + config.v_head_dim), 0, true};
  return {source, format.shape(kv_b.format, config.kv_lora_rank, nope, source)};
}
HeadShape v_of_head(const model::ModelConfig& config, const MatrixSource& kv_b,
                    const storage::HeldFormat& format, int64_t head) {
  const int64_t nope = config.qk_nope_head_dim;
  const kernels::PanelSource source{head * (nope + config.v_head_dim) + nope, 0, false};
  return {source, format.shape(kv_b.format, config.v_head_dim, config.kv_lora_rank, source)};
}
uint64_t cut_kv_b_bytes(const model::ModelConfig& config, const MatrixSource& kv_b,
                        const storage::HeldFormat& format) {
  uint64_t bytes = 0;
  for (int64_t head = 0; head < config.num_attention_heads; ++head) {
    bytes += packed_bytes(k_of_head(config, kv_b, format, head).shape) +
             packed_bytes(v_of_head(config, kv_b, format, head).shape);
  }
  return bytes;
}

// Runs tasks on num_threads threads, each with a window of its own; the first exception is thrown
// when all have stopped.
void run_tasks(const storage::TensorSource& checkpoint, const std::vector<PackTask>& tasks,
               int num_threads, size_t window_bytes, Progress& progress) {
  std::atomic<size_t> next{0};
  std::mutex mutex;
  std::exception_ptr failure;
  const auto work = [&] {
    try {
      HostBuffer window(window_bytes);
      for (size_t i; (i = next.fetch_add(1)) < tasks.size();) {
        const PackTask& task = tasks[i];
        storage::pack_matrix(checkpoint, *task.matrix, task.row_begin, task.row_end, task.targets,
                             window.span(), progress);
      }
    } catch (...) {
      next = tasks.size();
      std::lock_guard lock(mutex);
      if (!failure) failure = std::current_exception();
    }
  };
  std::vector<std::thread> threads;
  for (int i = 1; i < num_threads; ++i) threads.emplace_back(work);
  work();
  for (std::thread& thread : threads) thread.join();
  if (failure) std::rethrow_exception(failure);
}

}  // namespace

// Lays out memory for each matrix and collects what to read into it.
struct Weights::Builder {
  Weights& weights;
  storage::HeldFormat format;
  std::vector<PackTask> tasks;

  static storage::PackTarget target_at(const kernels::PanelShape& shape,
                                       const kernels::PanelSource& source, std::byte* memory) {
    const size_t codes = round_up(static_cast<int64_t>(shape.total_code_bytes()), 64);
    float* scales = shape.total_scale_bytes() ? reinterpret_cast<float*>(memory + codes) : nullptr;
    return {shape, source, memory, scales};
  }
  static Linear linear_of(const storage::PackTarget& target) {
    return Linear{{target.shape, target.codes, target.scales}};
  }

  Linear whole(const MatrixSource& matrix) { return whole(matrix, format); }
  Linear whole(const MatrixSource& matrix, const storage::HeldFormat& held) {
    if (matrix.weight == nullptr) return {};
    const kernels::PanelShape shape = whole_shape(matrix, held);
    HostBuffer& memory = weights.memory_.emplace_back(packed_bytes(shape));
    const storage::PackTarget target = target_at(shape, {}, memory.data());
    const int64_t row_bytes = matrix.cols * static_cast<int64_t>(code_bytes(matrix.format));
    const int64_t rows_per_task = std::max<int64_t>(16, kTaskBytes / row_bytes / 16 * 16);
    for (int64_t row = 0; row < matrix.rows; row += rows_per_task) {
      tasks.push_back({&matrix, row, std::min(row + rows_per_task, matrix.rows), {target}});
    }
    return linear_of(target);
  }

  // The two halves of the columns, as they are in the checkpoint.
  void cut_eh_proj(const MatrixSource& matrix, MtpWeights* mtp) {
    PackTask task{&matrix, 0, matrix.rows, {}};
    for (const bool second : {false, true}) {
      const HalfShape half = half_of(matrix, second);
      HostBuffer& memory = weights.memory_.emplace_back(packed_bytes(half.shape));
      task.targets.push_back(target_at(half.shape, half.source, memory.data()));
      (second ? mtp->of_hidden : mtp->of_embedding) = linear_of(task.targets.back());
    }
    tasks.push_back(std::move(task));
  }

  FfnWeights ffn(const model::FfnTensors& tensors) {
    return {whole(tensors.gate_proj), whole(tensors.up_proj), whole(tensors.down_proj)};
  }

  void cut_kv_b(const model::ModelConfig& config, const MatrixSource& kv_b, MlaWeights* attention) {
    std::byte* at = weights.memory_.emplace_back(cut_kv_b_bytes(config, kv_b, format)).data();
    PackTask task{&kv_b, 0, kv_b.rows, {}};
    const auto take = [&](const HeadShape& part, std::vector<Linear>* heads) {
      task.targets.push_back(target_at(part.shape, part.source, at));
      heads->push_back(linear_of(task.targets.back()));
      at += packed_bytes(part.shape);
    };
    for (int64_t head = 0; head < config.num_attention_heads; ++head) {
      take(k_of_head(config, kv_b, format, head), &attention->w_k);
      take(v_of_head(config, kv_b, format, head), &attention->w_v);
    }
    tasks.push_back(std::move(task));
  }

  template <typename Plain>
  MlaWeights attention(const model::ModelConfig& config, const model::MlaTensors& from,
                       const Plain& plain) {
    MlaWeights to;
    to.q_a_proj = whole(from.q_a_proj);
    to.q_a_layernorm = plain(from.q_a_layernorm, config.q_lora_rank);
    to.q_proj = whole(from.q_proj);
    to.kv_a_proj = whole(from.kv_a_proj_with_mqa);
    to.kv_a_layernorm = plain(from.kv_a_layernorm, config.kv_lora_rank);
    cut_kv_b(config, from.kv_b_proj, &to);
    to.o_proj = whole(from.o_proj);
    return to;
  }

  template <typename Plain>
  GqaWeights attention(const model::ModelConfig& /*config*/, const model::GqaTensors& from,
                       const Plain& plain) {
    return {whole(from.q_proj),
            whole(from.k_proj),
            whole(from.v_proj),
            whole(from.o_proj),
            plain(from.q_bias, from.q_proj.rows),
            plain(from.k_bias, from.k_proj.rows),
            plain(from.v_bias, from.v_proj.rows)};
  }
};

Weights Weights::load(const model::ModelConfig& config, const model::ModelTensors& tensors,
                      const storage::TensorSource& checkpoint, const storage::HeldFormat& format,
                      int num_threads, size_t window_bytes, Progress& progress) {
  Weights weights;
  Builder build{weights, format, {}};
  const int64_t hidden = config.hidden_size;
  const auto plain = [&](const model::PlainTensor& tensor, int64_t elements) {
    return tensor.tensor ? model::read_plain(checkpoint, tensor, elements) : std::vector<float>{};
  };

  const auto load_layer = [&](const model::LayerTensors& from) {
    LayerWeights layer;
    layer.input_layernorm = plain(from.input_layernorm, hidden);
    layer.post_attention_layernorm = plain(from.post_attention_layernorm, hidden);
    layer.attention = std::visit(
        [&](const auto& tensors) -> AttentionWeights {
          return build.attention(config, tensors, plain);
        },
        from.attention);
    layer.ffn = build.ffn(from.ffn);
    layer.router = build.whole(from.router, {});
    layer.e_score_correction_bias = plain(from.e_score_correction_bias, config.n_routed_experts);
    return layer;
  };
  for (const model::LayerTensors& from : tensors.layers) {
    weights.layers_.push_back(load_layer(from));
  }
  if (tensors.mtp) {
    MtpWeights& mtp = weights.mtp_.emplace();
    mtp.enorm = plain(tensors.mtp->enorm, hidden);
    mtp.hnorm = plain(tensors.mtp->hnorm, hidden);
    build.cut_eh_proj(tensors.mtp->eh_proj, &mtp);
    mtp.layer = load_layer(tensors.mtp->layer);
    mtp.norm = plain(tensors.mtp->norm, hidden);
  }
  weights.norm_ = plain(tensors.norm, hidden);
  weights.lm_head_ = build.whole(tensors.lm_head);

  weights.hidden_size_ = hidden;
  weights.embed_format_ = tensors.embed_tokens.format;
  if (!shares_embedding(tensors, format)) {
    weights.embed_tokens_ = HostBuffer(tensors.embed_tokens.weight->bytes);
  }
  for (size_t at = 0; at < weights.embed_tokens_.size(); at += window_bytes) {
    const size_t bytes = std::min(window_bytes, weights.embed_tokens_.size() - at);
    checkpoint.read(*tensors.embed_tokens.weight, at,
                    weights.embed_tokens_.span().subspan(at, bytes));
    progress.advance(bytes);
  }
  run_tasks(checkpoint, build.tasks, num_threads, window_bytes, progress);
  return weights;
}

uint64_t Weights::held_bytes(const model::ModelConfig& config, const model::ModelTensors& tensors,
                             const storage::HeldFormat& format) {
  const auto held = [](const MatrixSource& matrix, const storage::HeldFormat& as) -> uint64_t {
    return matrix.weight ? packed_bytes(whole_shape(matrix, as)) : 0;
  };
  uint64_t bytes = held(tensors.lm_head, format);
  if (!shares_embedding(tensors, format)) bytes += tensors.embed_tokens.weight->bytes;
  const auto add_layer = [&](const model::LayerTensors& layer) {
    for (const MatrixSource* matrix : model::whole_matrices(layer.attention)) {
      bytes += held(*matrix, format);
    }
    for (const MatrixSource* matrix :
         {&layer.ffn.gate_proj, &layer.ffn.up_proj, &layer.ffn.down_proj}) {
      bytes += held(*matrix, format);
    }
    if (const auto* mla = std::get_if<model::MlaTensors>(&layer.attention)) {
      bytes += cut_kv_b_bytes(config, mla->kv_b_proj, format);
    }
    bytes += held(layer.router, {});
  };
  for (const model::LayerTensors& layer : tensors.layers) add_layer(layer);
  if (!tensors.mtp) return bytes;
  add_layer(tensors.mtp->layer);
  for (const bool second : {false, true}) {
    bytes += packed_bytes(half_of(tensors.mtp->eh_proj, second).shape);
  }
  return bytes;
}

uint64_t Weights::read_bytes(const model::ModelTensors& tensors,
                             const storage::HeldFormat& format) {
  uint64_t bytes = matrix_bytes(tensors.lm_head);
  if (!shares_embedding(tensors, format)) bytes += tensors.embed_tokens.weight->bytes;
  const auto add_layer = [&](const model::LayerTensors& layer) {
    for (const MatrixSource* matrix : model::whole_matrices(layer.attention)) {
      bytes += matrix_bytes(*matrix);
    }
    if (const auto* mla = std::get_if<model::MlaTensors>(&layer.attention)) {
      bytes += matrix_bytes(mla->kv_b_proj);
    }
    bytes += ffn_bytes(layer.ffn) + matrix_bytes(layer.router);
  };
  for (const model::LayerTensors& layer : tensors.layers) add_layer(layer);
  if (tensors.mtp) {
    add_layer(tensors.mtp->layer);
    bytes += matrix_bytes(tensors.mtp->eh_proj);
  }
  return bytes;
}

void Weights::embed(int32_t token, float* out) const {
  if (embed_tokens_.size() == 0) return kernels::unpack_output(lm_head_.matrix, token, out);
  const size_t row_bytes = hidden_size_ * code_bytes(embed_format_);
  kernels::load_weights_row(embed_tokens_.data() + token * row_bytes, hidden_size_, embed_format_,
                            out);
}

uint64_t Weights::bytes() const {
  uint64_t bytes = embed_tokens_.size();
  for (const HostBuffer& buffer : memory_) bytes += buffer.size();
  return bytes;
}

}  // namespace atl::coordinator
