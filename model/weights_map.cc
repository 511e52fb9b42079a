#include "model/weights_map.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cstring>
#include <map>
#include <optional>
#include <unordered_set>
#include <utility>

#include "base/log.h"
#include "base/result.h"
#include "base/units.h"
#include "kernels/numeric_types.h"
#include "kernels/ops.h"
#include "kernels/panel.h"
#include "model/gguf_source.h"
#include "storage/checkpoint/checkpoint.h"
#include "storage/gguf/gguf_files.h"
#include "storage/io/printable.h"

namespace atl::model {
namespace {

using kernels::WeightFormat;
using storage::Checkpoint;
using storage::DType;
using storage::ExpertSource;
using storage::MatrixSource;
using storage::TensorInfo;
using storage::TensorSource;

// DeepSeek's name, and that of others who write the same: both multiply.
constexpr std::string_view kScaleSuffixes[] = {"_scale_inv", "_scale"};
constexpr std::string_view kLayerPrefix = "model.layers.";

std::string where(const TensorSource& checkpoint, const TensorInfo& tensor) {
  const std::string& shard = checkpoint.shards()[tensor.shard].file_name;
  return fmt::format("{}: tensor {}", (checkpoint.directory() / shard).string(),
                     storage::printable(tensor.name));
}

[[noreturn]] void refuse(const TensorSource& checkpoint, const TensorInfo& tensor,
                         const std::string& what) {
  throw LoadError(fmt::format("{}: {}", where(checkpoint, tensor), what));
}

void check_shape(const TensorSource& checkpoint, const TensorInfo& tensor,
                 const std::vector<int64_t>& expected) {
  if (tensor.shape == expected) return;
  refuse(checkpoint, tensor,
         fmt::format("shape [{}], expected [{}]", fmt::join(tensor.shape, ", "),
                     fmt::join(expected, ", ")));
}

// Finds tensors by name and remembers which were used, so that at the end the others can be named.
class Mapper {
 public:
  Mapper(const ModelConfig& config, const TensorSource& checkpoint)
      : config_(config), checkpoint_(checkpoint) {}

  // A BF16 or F32 vector, or F16 where that is taken.
  PlainTensor vector(const std::string& name, int64_t size) {
    const TensorInfo& tensor = require(name);
    const bool f16 = tensor.dtype == DType::kF16 && takes_f16();
    if (tensor.dtype != DType::kBf16 && tensor.dtype != DType::kF32 && !f16) {
      refuse(checkpoint_, tensor,
             fmt::format("dtype {}, expected BF16 or F32", storage::printable(tensor.dtype_name)));
    }
    check_shape(checkpoint_, tensor, {size});
    return {&tensor};
  }

  // A BF16 or F32 matrix.
  MatrixSource plain_matrix(const std::string& name, int64_t rows, int64_t cols) {
    const MatrixSource matrix = any_matrix(name, rows, cols);
    if (matrix.format == WeightFormat::kFp8E4m3) {
      refuse(checkpoint_, *matrix.weight, "dtype F8_E4M3, expected BF16 or F32");
    }
    return matrix;
  }

  // A BF16, F32 or FP8 matrix, the last with its grid of scales.
  MatrixSource any_matrix(const std::string& name, int64_t rows, int64_t cols) {
    const TensorInfo& tensor = require(name);
    check_shape(checkpoint_, tensor, {rows, cols});
    MatrixSource matrix;
    matrix.rows = rows;
    matrix.cols = cols;
    matrix.weight = &tensor;
    switch (tensor.dtype) {
      case DType::kBf16:
        matrix.format = WeightFormat::kBf16;
        break;
      case DType::kF32:
        matrix.format = WeightFormat::kF32;
        break;
      case DType::kF8E4m3:
        matrix.format = WeightFormat::kFp8E4m3;
        break;
      case DType::kF16:
        if (takes_f16()) {
          matrix.format = WeightFormat::kF16;
          break;
        }
        [[fallthrough]];
      default:
        refuse(checkpoint_, tensor,
               fmt::format("dtype {}, expected F8_E4M3, BF16 or F32",
                           storage::printable(tensor.dtype_name)));
    }
    check_scale(name, matrix);
    return matrix;
  }

  FfnTensors ffn(const std::string& prefix, int64_t width) {
    FfnTensors ffn;
    ffn.gate_proj = any_matrix(prefix + "gate_proj.weight", width, config_.hidden_size);
    ffn.up_proj = any_matrix(prefix + "up_proj.weight", width, config_.hidden_size);
    ffn.down_proj = any_matrix(prefix + "down_proj.weight", config_.hidden_size, width);
    return ffn;
  }

  void ignore(const std::string& name) { used_.insert(checkpoint_.find(name)); }

  bool used(const TensorInfo& tensor) const { return used_.contains(&tensor); }

 private:
  const TensorInfo& require(const std::string& name) {
    const TensorInfo* tensor = checkpoint_.find(name);
    if (tensor == nullptr) {
      throw LoadError(fmt::format("{}: tensor {} is missing", checkpoint_.directory().string(),
                                  storage::printable(name)));
    }
    used_.insert(tensor);
    return *tensor;
  }

  // Tiles and packs of experts have no F16.
  bool takes_f16() const { return !config_.has_experts(); }

  const TensorInfo* find_scale(const std::string& weight) const {
    for (const std::string_view suffix : kScaleSuffixes) {
      const TensorInfo* scale = checkpoint_.find(weight + std::string(suffix));
      if (scale != nullptr) return scale;
    }
    return nullptr;
  }

  // FP8 has one F32 or BF16 scale per 128x128 block; other formats must have none, since it would
  // be ignored.
  void check_scale(const std::string& name, MatrixSource& matrix) {
    const bool fp8 = matrix.format == WeightFormat::kFp8E4m3;
    const TensorInfo* found = find_scale(name);
    if (!fp8) {
      if (const TensorInfo* scale = found; scale != nullptr) {
        refuse(checkpoint_, *scale,
               fmt::format("a scale for a weight of dtype {}", matrix.weight->dtype_name));
      }
      return;
    }
    if (!config_.fp8) {
      refuse(checkpoint_, *matrix.weight,
             "dtype F8_E4M3, but config.json has no quantization_config");
    }
    const TensorInfo& scale =
        require(found != nullptr ? found->name : name + std::string(kScaleSuffixes[0]));
    if (scale.dtype != DType::kF32 && scale.dtype != DType::kBf16) {
      refuse(checkpoint_, scale,
             fmt::format("dtype {}, expected F32 or BF16", storage::printable(scale.dtype_name)));
    }
    check_shape(
        checkpoint_, scale,
        {ceil_div(matrix.rows, kernels::kScaleBlock), ceil_div(matrix.cols, kernels::kScaleBlock)});
    matrix.scale = &scale;
  }

  const ModelConfig& config_;
  const TensorSource& checkpoint_;
  std::unordered_set<const TensorInfo*> used_;
};

std::string layer_prefix(int64_t layer) { return fmt::format("{}{}.", kLayerPrefix, layer); }

GqaTensors map_gqa(Mapper& mapper, const ModelConfig& config, const std::string& prefix) {
  const int64_t hidden = config.hidden_size;
  const int64_t q_rows = config.num_attention_heads * config.head_dim;
  const int64_t kv_rows = config.num_key_value_heads * config.head_dim;
  GqaTensors a;
  a.q_proj = mapper.any_matrix(prefix + "q_proj.weight", q_rows, hidden);
  a.k_proj = mapper.any_matrix(prefix + "k_proj.weight", kv_rows, hidden);
  a.v_proj = mapper.any_matrix(prefix + "v_proj.weight", kv_rows, hidden);
  a.o_proj = mapper.any_matrix(prefix + "o_proj.weight", hidden, q_rows);
  if (config.has_qkv_bias()) {
    a.q_bias = mapper.vector(prefix + "q_proj.bias", q_rows);
    a.k_bias = mapper.vector(prefix + "k_proj.bias", kv_rows);
    a.v_bias = mapper.vector(prefix + "v_proj.bias", kv_rows);
  }
  return a;
}

MlaTensors map_mla(Mapper& mapper, const ModelConfig& config, const std::string& prefix) {
  const int64_t hidden = config.hidden_size;
  const int64_t q_rows = config.num_attention_heads * config.qk_head_dim();
  const int64_t kv_rows =
      config.num_attention_heads * (config.qk_nope_head_dim + config.v_head_dim);
  MlaTensors a;
  if (config.q_lora_rank == 0) {
    a.q_proj = mapper.any_matrix(prefix + "q_proj.weight", q_rows, hidden);
  } else {
    a.q_a_proj = mapper.any_matrix(prefix + "q_a_proj.weight", config.q_lora_rank, hidden);
    a.q_a_layernorm = mapper.vector(prefix + "q_a_layernorm.weight", config.q_lora_rank);
    a.q_proj = mapper.any_matrix(prefix + "q_b_proj.weight", q_rows, config.q_lora_rank);
  }
  a.kv_a_proj_with_mqa = mapper.any_matrix(prefix + "kv_a_proj_with_mqa.weight",
                                           config.kv_lora_rank + config.qk_rope_head_dim, hidden);
  a.kv_a_layernorm = mapper.vector(prefix + "kv_a_layernorm.weight", config.kv_lora_rank);
  a.kv_b_proj = mapper.any_matrix(prefix + "kv_b_proj.weight", kv_rows, config.kv_lora_rank);
  a.o_proj = mapper.any_matrix(prefix + "o_proj.weight", hidden,
                               config.num_attention_heads * config.v_head_dim);
  return a;
}

LayerTensors map_layer(Mapper& mapper, const ModelConfig& config, int64_t index) {
  const std::string prefix = layer_prefix(index);
  LayerTensors layer;
  layer.input_layernorm = mapper.vector(prefix + "input_layernorm.weight", config.hidden_size);
  if (config.attention_kind() == AttentionKind::kGqa) {
    layer.attention = map_gqa(mapper, config, prefix + "self_attn.");
  } else {
    layer.attention = map_mla(mapper, config, prefix + "self_attn.");
  }
  layer.post_attention_layernorm =
      mapper.vector(prefix + "post_attention_layernorm.weight", config.hidden_size);
  if (!config.is_moe_layer(index)) {
    layer.ffn = mapper.ffn(prefix + "mlp.", config.intermediate_size);
    return layer;
  }
  layer.router =
      mapper.plain_matrix(prefix + "mlp.gate.weight", config.n_routed_experts, config.hidden_size);
  if (config.has_correction_bias()) {
    layer.e_score_correction_bias =
        mapper.vector(prefix + "mlp.gate.e_score_correction_bias", config.n_routed_experts);
  }
  if (config.n_shared_experts > 0) {
    layer.ffn = mapper.ffn(prefix + "mlp.shared_experts.",
                           config.n_shared_experts * config.moe_intermediate_size);
  }
  return layer;
}

MtpTensors map_mtp(Mapper& mapper, const ModelConfig& config) {
  const std::string prefix = layer_prefix(config.num_hidden_layers);
  MtpTensors mtp;
  mtp.enorm = mapper.vector(prefix + "enorm.weight", config.hidden_size);
  mtp.hnorm = mapper.vector(prefix + "hnorm.weight", config.hidden_size);
  mtp.eh_proj =
      mapper.plain_matrix(prefix + "eh_proj.weight", config.hidden_size, 2 * config.hidden_size);
  mtp.norm = mapper.vector(prefix + "shared_head.norm.weight", config.hidden_size);
  mtp.layer = map_layer(mapper, config, config.num_hidden_layers);
  return mtp;
}

// All experts in one format, which becomes the catalog's.
void check_format(const TensorSource& checkpoint, const ExpertSource& expert,
                  const MatrixSource& first) {
  for (const MatrixSource* matrix : {&expert.gate, &expert.up, &expert.down}) {
    if (matrix->format == first.format) continue;
    refuse(
        checkpoint, *matrix->weight,
        fmt::format("routed experts in two formats: {} here, {} in {}", to_string(matrix->format),
                    to_string(first.format), storage::printable(first.weight->name)));
  }
}

storage::ExpertCatalog catalog_of(const ModelConfig& config) {
  storage::ExpertCatalog catalog;
  catalog.hidden_size = config.hidden_size;
  catalog.moe_intermediate_size = config.moe_intermediate_size;
  catalog.n_routed_experts = config.n_routed_experts;
  catalog.num_experts_per_tok = config.num_experts_per_tok;
  catalog.num_layers = config.num_hidden_layers;
  for (int64_t layer = 0; layer < config.num_hidden_layers; ++layer) {
    if (config.is_moe_layer(layer)) catalog.moe_layers.push_back(static_cast<int32_t>(layer));
  }
  return catalog;
}

// An MTP layer has eh_proj; a layer beyond num_hidden_layers without it is an ordinary one that a
// wrong config.json would silently leave out.
bool is_mtp_layer(const TensorSource& checkpoint, int64_t layer) {
  const std::string mark = layer_prefix(layer) + "eh_proj.weight";
  const auto absent = checkpoint.absent();
  return checkpoint.find(mark) != nullptr || std::binary_search(absent.begin(), absent.end(), mark);
}

void add_mtp_layers(const ModelConfig& config, const TensorSource& checkpoint, MtpLayers mtp,
                    storage::ExpertCatalog& catalog) {
  if (mtp == MtpLayers::kLeaveOut || !checkpoint.absent().empty()) return;  // or not whole
  const int64_t first_layer = config.num_hidden_layers;
  for (int64_t layer = first_layer; is_mtp_layer(checkpoint, layer); ++layer) {
    if (mtp == MtpLayers::kFirst && layer > first_layer) return;
    catalog.num_layers = layer + 1;
    ++catalog.num_mtp_layers;
    const std::string first = layer_prefix(layer) + "mlp.experts.0.gate_proj.weight";
    if (checkpoint.find(first) == nullptr) continue;
    catalog.moe_layers.push_back(static_cast<int32_t>(layer));
  }
}

void map_sources(Mapper& mapper, const ModelConfig& config, const TensorSource& checkpoint,
                 storage::ExpertCatalog& catalog) {
  for (const int32_t layer : catalog.moe_layers) {
    std::vector<ExpertSource>& experts = catalog.experts.emplace_back();
    for (int64_t e = 0; e < config.n_routed_experts; ++e) {
      const FfnTensors ffn = mapper.ffn(fmt::format("{}mlp.experts.{}.", layer_prefix(layer), e),
                                        config.moe_intermediate_size);
      experts.push_back({ffn.gate_proj, ffn.up_proj, ffn.down_proj});
      check_format(checkpoint, experts.back(), catalog.experts[0][0].gate);
    }
  }
  if (!catalog.experts.empty()) catalog.format = catalog.experts[0][0].gate.format;
}

// The number N of "model.layers.N.rest": a whole number, so that layer 6 is not taken for 61.
std::optional<int64_t> layer_of(std::string_view name) {
  if (!name.starts_with(kLayerPrefix)) return std::nullopt;
  name.remove_prefix(kLayerPrefix.size());
  int64_t layer = 0;
  const auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), layer);
  if (error != std::errc() || end == name.data() + name.size() || *end != '.' || layer < 0) {
    return std::nullopt;
  }
  return layer;
}

bool is_mtp(const ModelConfig& config, std::string_view name) {
  const std::optional<int64_t> layer = layer_of(name);
  return layer && *layer >= config.num_hidden_layers;
}

// Rotation frequencies that old writers saved along; they follow from the config.
bool is_rotary_buffer(std::string_view name) { return name.ends_with(".rotary_emb.inv_freq"); }

// Scales of a quantized KV cache, which others may have and Atoll has not: k_scale, v_scale, ... of
// one value.
bool is_cache_scale(const TensorInfo& tensor) {
  static constexpr std::string_view kNames[] = {".k_scale",  ".v_scale",    ".q_scale",
                                                ".kv_scale", ".prob_scale", ".kv_cache_scale"};
  const bool named = std::any_of(std::begin(kNames), std::end(kNames), [&](std::string_view name) {
    return tensor.name.ends_with(name);
  });
  return named && tensor.elements() == 1 && tensor.name.find(".self_attn.") != std::string::npos;
}

void refuse_unknown(const Mapper& mapper, const ModelConfig& config,
                    const TensorSource& checkpoint) {
  uint64_t count = 0, cache_scales = 0;
  const TensorInfo* first = nullptr;
  for (const TensorInfo& tensor : checkpoint.tensors()) {
    if (mapper.used(tensor) || is_rotary_buffer(tensor.name)) continue;
    if (is_mtp(config, tensor.name) && is_mtp_layer(checkpoint, *layer_of(tensor.name))) continue;
    if (is_cache_scale(tensor)) {
      ++cache_scales;
      continue;
    }
    if (count++ == 0) first = &tensor;
  }
  if (cache_scales > 0) {
    log_info("{}: {} scales of a quantized KV cache are ignored: the cache is not quantized so",
             checkpoint.directory().string(), cache_scales);
  }
  if (count == 0) return;
  refuse(checkpoint, *first,
         fmt::format("not part of a {} model of {} layers as config.json describes it ({} such "
                     "tensors)",
                     config.model_type, config.num_hidden_layers, count));
}

Component component_of(const ModelConfig& config, std::string_view name) {
  if (is_rotary_buffer(name)) return Component::kOther;
  if (is_mtp(config, name)) return Component::kMtp;
  const auto has = [name](std::string_view part) { return name.find(part) != name.npos; };
  if (has("norm.")) return Component::kNorms;
  if (name.starts_with("model.embed_tokens.")) return Component::kEmbedding;
  if (name.starts_with("lm_head.")) return Component::kHead;
  if (has(".self_attn.")) return Component::kAttention;
  if (has(".mlp.shared_experts.")) return Component::kSharedExperts;
  if (has(".mlp.experts.")) return Component::kRoutedExperts;
  if (has(".mlp.gate.")) return Component::kRouter;
  if (has(".mlp.")) return Component::kDenseMlp;
  return Component::kOther;
}

}  // namespace

std::unique_ptr<const TensorSource> open_checkpoint(const std::filesystem::path& model_dir,
                                                    const ModelConfig& config) {
  if (storage::find_gguf(model_dir)) return GgufSource::open(model_dir);
  auto checkpoint = std::make_unique<Checkpoint>(
      Checkpoint::open(model_dir, [&](std::string_view name) { return is_mtp(config, name); }));
  if (!checkpoint->absent().empty()) {
    log_info(
        "{}: the multi-token-prediction layer is not whole ({} of its tensors are in files "
        "that are not there) and is left out",
        model_dir.string(), checkpoint->absent().size());
  }
  return checkpoint;
}

std::vector<const MatrixSource*> whole_matrices(const AttentionTensors& attention) {
  if (const auto* gqa = std::get_if<GqaTensors>(&attention)) {
    return {&gqa->q_proj, &gqa->k_proj, &gqa->v_proj, &gqa->o_proj};
  }
  std::vector<const MatrixSource*> matrices;
  const auto& mla = std::get<MlaTensors>(attention);
  for (const MatrixSource* matrix :
       {&mla.q_a_proj, &mla.q_proj, &mla.kv_a_proj_with_mqa, &mla.o_proj}) {
    if (matrix->weight != nullptr) matrices.push_back(matrix);
  }
  return matrices;
}

std::string why_no_mtp(const ModelConfig& config, const TensorSource& checkpoint) {
  if (!is_mtp_layer(checkpoint, config.num_hidden_layers)) {
    return "the model has no next-token layer";
  }
  if (checkpoint.absent().empty()) return "";
  return fmt::format("{} tensors of the next-token layer are in files that are not there",
                     checkpoint.absent().size());
}

ModelTensors map_tensors(const ModelConfig& config, const TensorSource& checkpoint,
                         RoutedExperts experts, MtpLayers mtp) {
  Mapper mapper(config, checkpoint);
  ModelTensors model;
  model.embed_tokens =
      mapper.plain_matrix("model.embed_tokens.weight", config.vocab_size, config.hidden_size);
  for (int64_t layer = 0; layer < config.num_hidden_layers; ++layer) {
    model.layers.push_back(map_layer(mapper, config, layer));
  }
  model.norm = mapper.vector("model.norm.weight", config.hidden_size);
  // Some files that tie the two carry the head as well; it is then the same by definition.
  if (config.tie_word_embeddings) {
    model.lm_head = model.embed_tokens;
    mapper.ignore("lm_head.weight");
  } else {
    model.lm_head = mapper.any_matrix("lm_head.weight", config.vocab_size, config.hidden_size);
  }
  if (mtp != MtpLayers::kLeaveOut) model.mtp = map_mtp(mapper, config);
  if (experts == RoutedExperts::kInCheckpoint) {
    // A coordinator refuses what its nodes would refuse.
    storage::ExpertCatalog catalog = catalog_of(config);
    add_mtp_layers(config, checkpoint, mtp, catalog);
    map_sources(mapper, config, checkpoint, catalog);
  }
  refuse_unknown(mapper, config, checkpoint);
  return model;
}

storage::ExpertCatalog map_experts(const ModelConfig& config, const TensorSource& checkpoint,
                                   MtpLayers mtp) {
  Mapper mapper(config, checkpoint);
  storage::ExpertCatalog catalog = catalog_of(config);
  add_mtp_layers(config, checkpoint, mtp, catalog);
  map_sources(mapper, config, checkpoint, catalog);
  return catalog;
}

storage::ExpertCatalog map_packed_experts(const ModelConfig& config, const storage::Pack& pack,
                                          MtpLayers mtp) {
  storage::ExpertCatalog catalog = catalog_of(config);
  if (mtp != MtpLayers::kLeaveOut) {
    catalog.moe_layers.push_back(static_cast<int32_t>(catalog.num_layers++));
    catalog.num_mtp_layers = 1;
  }
  catalog.format = pack.params().format;
  return catalog;
}

std::vector<float> read_plain(const TensorSource& checkpoint, const PlainTensor& plain,
                              int64_t expected) {
  const TensorInfo& tensor = *plain.tensor;
  if (tensor.elements() != expected) {
    refuse(checkpoint, tensor, fmt::format("{} values, expected {}", tensor.elements(), expected));
  }
  std::vector<std::byte> raw(tensor.bytes);
  checkpoint.read(tensor, 0, raw);
  const auto format = tensor.dtype == DType::kF32   ? WeightFormat::kF32
                      : tensor.dtype == DType::kF16 ? WeightFormat::kF16
                                                    : WeightFormat::kBf16;
  const int64_t bad = kernels::find_non_finite(format, raw.data(), expected);
  if (bad >= 0) {
    refuse(checkpoint, tensor,
           fmt::format("value {} is not finite: the file is damaged, fetch it again", bad));
  }
  std::vector<float> values(static_cast<size_t>(expected));
  kernels::load_weights_row(raw.data(), expected, format, values.data());
  return values;
}

std::string_view to_string(Component component) {
  switch (component) {
    case Component::kEmbedding:
      return "embedding";
    case Component::kHead:
      return "head";
    case Component::kAttention:
      return "attention";
    case Component::kNorms:
      return "norms";
    case Component::kDenseMlp:
      return "dense MLP";
    case Component::kSharedExperts:
      return "shared experts";
    case Component::kRouter:
      return "router";
    case Component::kRoutedExperts:
      return "routed experts";
    case Component::kMtp:
      return "MTP";
    case Component::kOther:
      return "other";
  }
  return "?";
}

std::vector<ComponentRow> component_table(const ModelConfig& config,
                                          const TensorSource& checkpoint) {
  std::map<std::pair<Component, std::string>, ComponentRow> rows;
  for (const TensorInfo& tensor : checkpoint.tensors()) {
    const TensorInfo* counted_with = &tensor;  // a scale with its weight
    const std::string_view name = tensor.name;
    bool is_scale = false;
    for (const std::string_view suffix : kScaleSuffixes) {
      if (!name.ends_with(suffix)) continue;
      is_scale = true;
      const TensorInfo* weight = checkpoint.find(name.substr(0, name.size() - suffix.size()));
      if (weight != nullptr) counted_with = weight;
    }
    const Component component = component_of(config, name);
    ComponentRow& row = rows[{component, counted_with->dtype_name}];
    row.component = component;
    row.dtype = counted_with->dtype_name;
    row.tensors += 1;
    row.parameters += is_scale ? 0 : static_cast<uint64_t>(tensor.elements());
    row.bytes += tensor.stored_bytes;
  }
  std::vector<ComponentRow> table;
  for (auto& [key, row] : rows) table.push_back(std::move(row));
  return table;
}

}  // namespace atl::model
