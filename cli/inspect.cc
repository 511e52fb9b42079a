// atoll inspect: what a checkpoint is and what serving it needs.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <array>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <numeric>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/one_line.h"
#include "base/units.h"
#include "cli/byte_size_option.h"
#include "cli/commands.h"
#include "cli/deployment_options.h"
#include "cli/help_formatter.h"
#include "cli/model_text.h"
#include "cli/numerics.h"
#include "cli/output.h"
#include "cli/table.h"
#include "coordinator/engine/kv_cache.h"
#include "deployment/device_memory.h"
#include "deployment/memory_check.h"
#include "kernels/attention.h"
#include "kernels/tile.h"
#include "model/config.h"
#include "model/gguf_source.h"
#include "model/weights_map.h"
#include "storage/checkpoint/checkpoint.h"
#include "storage/pack/pack.h"
#include "storage/tiles/tile_store.h"
#include "text/tokenizer.h"
#include "topology/machine.h"
#include "topology/memory_bounds.h"
#include "topology/placement.h"

namespace atl::cli {
namespace {

using Json = nlohmann::ordered_json;

constexpr std::array kNodeCounts = {1, 2, 4, 8};  // unless --nodes says another
constexpr int64_t kDefaultContext = 8192;         // or what the model has

struct InspectOptions {
  std::string model_dir;
  bool json = false;
  bool tensors = false;
  model::NumericsProfile numerics;
  std::optional<int> nodes;
  std::optional<uint64_t> ram_budget;
  std::optional<uint64_t> device_memory;
  std::optional<int64_t> context;
  int64_t sequences = 1;
};

// What one of `nodes` equal nodes needs; the first one, whose share is never the smaller.
struct NodeNeed {
  int nodes = 0;
  int tiles = 0;
  uint64_t resident_bytes = 0;
  uint64_t read_bytes = 0;  // of the unpacked checkpoint, at load
};

struct TileFacts {
  kernels::WeightFormat format = kernels::WeightFormat::kF32;
  int count = 0;  // per expert
  int64_t width = 0, last_width = 0;
  uint64_t bytes_max = 0;
  uint64_t expert_bytes = 0;  // all tiles of one expert
  uint64_t all_bytes = 0;     // all tiles of all experts
  uint64_t panel_bytes = 0;   // of these, weights and scales; the rest is padding
  std::vector<NodeNeed> nodes;
};

struct PackFacts {
  storage::PackParams params;
  uint64_t bytes = 0;  // of all its files
  int tiles_of_model = 0;
};

// What the coordinator takes of a GPU with so much memory.
struct DeviceFacts {
  uint64_t bytes = 0;
  std::optional<coordinator::CudaMemoryNeed> need;  // none: there is no kernel for these formats
  int64_t cache_tokens = 0;                         // that there is room for
  std::optional<std::string> shortage;
};

// What serving takes on this machine, as the options say, and what it has.
struct MemoryFacts {
  int nodes = 0;  // processes; 0: the experts are in the coordinator's
  int64_t context = 0, sequences = 0;
  deployment::DeploymentNeed need;
  std::vector<topology::MemoryBound> bounds;
  std::optional<std::string> shortage;
  // The least number of equal nodes, each with what is free here for itself, that hold all experts;
  // 0: more than there are tiles.
  int machines = 0;
  std::optional<DeviceFacts> device;  // with --device-memory
};

// All that inspect knows; the text and the JSON are two ways to say it.
struct Facts {
  model::ModelConfig config;
  int64_t moe_layers = 0;
  size_t shards = 0;
  uint64_t shard_bytes = 0;
  size_t tensors = 0;
  std::string fingerprint;
  std::optional<int32_t> tokenizer_tokens;  // none: no tokenizer
  std::vector<model::ComponentRow> components;
  std::optional<TileFacts> tiles;  // none: no routed experts
  std::optional<PackFacts> pack;   // none: an unpacked checkpoint
  MemoryFacts memory;
};

std::string_view name_of(kernels::ScoringFunc scoring) {
  return scoring == kernels::ScoringFunc::kSigmoid ? "sigmoid" : "softmax";
}

std::string_view name_of(kernels::TopkMethod method) {
  switch (method) {
    case kernels::TopkMethod::kGreedy:
      return "greedy";
    case kernels::TopkMethod::kGroupLimitedGreedy:
      return "group_limited_greedy";
    case kernels::TopkMethod::kNoauxTc:
      return "noaux_tc";
  }
  return "?";
}

uint64_t kv_bytes_per_token(const model::ModelConfig& config, kernels::RowType type) {
  return static_cast<uint64_t>(coordinator::cache_shape(config, type).values() *
                               config.num_hidden_layers) *
         kernels::element_bytes(type);
}

// Components that every token needs, as they are in the files.
uint64_t coordinator_bytes(const Facts& facts) {
  uint64_t bytes = 0;
  for (const model::ComponentRow& row : facts.components) {
    const bool elsewhere = row.component == model::Component::kRoutedExperts ||
                           row.component == model::Component::kMtp ||
                           row.component == model::Component::kOther;
    if (!elsewhere) bytes += row.bytes;
  }
  return bytes;
}

NodeNeed need_of_node(const storage::TileStore& store, int num_nodes) {
  const topology::Placement placement = topology::equal_placement(store.num_tiles(), num_nodes);
  const std::vector<int>& tiles = placement.tiles_of_node.front();
  return {.nodes = num_nodes,
          .tiles = static_cast<int>(tiles.size()),
          .resident_bytes = store.resident_bytes(tiles),
          .read_bytes = store.read_bytes(tiles)};
}

TileFacts tile_facts(const model::OpenedModel& loaded, const model::NumericsProfile& numerics,
                     std::optional<int> nodes) {
  const storage::ExpertCatalog& catalog = loaded.catalog;
  const std::unique_ptr<storage::TileStore> tiles = deployment::open_tiles(loaded, numerics, {});
  const storage::TileStore& store = *tiles;
  TileFacts facts;
  facts.format = numerics.experts().format_of(catalog.format);
  facts.count = store.num_tiles();
  facts.width = store.layout(0).width;
  facts.last_width = store.layout(facts.count - 1).width;
  uint64_t panel_bytes = 0;  // of one expert
  for (int tile = 0; tile < facts.count; ++tile) {
    const kernels::TileLayout& layout = store.layout(tile);
    facts.bytes_max = std::max<uint64_t>(facts.bytes_max, layout.bytes);
    facts.expert_bytes += layout.bytes;
    panel_bytes += 2 * (layout.gate_up.total_code_bytes() + layout.gate_up.total_scale_bytes()) +
                   layout.down.total_code_bytes() + layout.down.total_scale_bytes();
  }
  std::vector<int> all_tiles(static_cast<size_t>(facts.count));
  std::iota(all_tiles.begin(), all_tiles.end(), 0);
  facts.all_bytes = store.resident_bytes(all_tiles);
  facts.panel_bytes = facts.all_bytes / facts.expert_bytes * panel_bytes;
  if (nodes) {
    facts.nodes.push_back(need_of_node(store, std::max(1, *nodes)));
  } else {
    for (const int num_nodes : kNodeCounts) {
      if (num_nodes <= facts.count) facts.nodes.push_back(need_of_node(store, num_nodes));
    }
  }
  return facts;
}

MemoryFacts memory_facts(const model::OpenedModel& loaded, const InspectOptions& options) {
  const bool has_experts = loaded.config.has_experts();
  const int num_tiles = has_experts ? kernels::num_tiles(loaded.config.moe_intermediate_size) : 0;
  const int cores = topology::this_machine().usable_cores;
  MemoryFacts facts;
  facts.nodes = options.nodes.value_or(0);
  facts.sequences = options.sequences;
  facts.context =
      options.context.value_or(std::min(kDefaultContext, loaded.config.max_position_embeddings));
  deployment::MemoryRequest request;
  request.numerics = loaded.settle(options.numerics);
  if (has_experts) {
    request.placement = topology::equal_placement(num_tiles, std::max(1, facts.nodes));
  }
  request.local_node = facts.nodes == 0;
  request.coordinator_threads = cores;
  request.node_threads = std::max(1, cores / std::max(1, facts.nodes));
  request.cache_tokens = facts.sequences * round_up(facts.context, kernels::kAttentionBlock);
  request.memory.ram_budget = options.ram_budget;
  facts.need = deployment::memory_need(loaded, request);
  facts.bounds = topology::memory_bounds();
  facts.shortage = deployment::memory_shortage(
      loaded, request, {"", "a shorter --context or fewer --sequences"}, facts.bounds);
  if (options.device_memory) {
    const model::ModelTensors tensors = loaded.tensors();
    DeviceFacts device;
    device.bytes = *options.device_memory;
    if (const auto need = deployment::device_memory_need(loaded, tensors, request)) {
      device.need = *need;
    }
    device.cache_tokens = deployment::device_cache_tokens(loaded, tensors, request, device.bytes);
    device.shortage = deployment::device_shortage(
        loaded, request, {"", "a shorter --context or fewer --sequences"}, device.bytes);
    facts.device = device;
  }
  const auto bound = tightest(facts.bounds, topology::MemoryBound::Of::kMachine);
  request.local_node = false;
  for (int n = 1; bound && n <= num_tiles && facts.machines == 0; ++n) {
    request.placement = topology::equal_placement(num_tiles, n);
    const uint64_t largest = deployment::memory_need(loaded, request).nodes.front().total();
    if (largest <= bound->free_bytes) facts.machines = n;
  }
  return facts;
}

Facts gather(const model::OpenedModel& loaded, const InspectOptions& options) {
  const model::ModelConfig& config = loaded.config;
  const storage::TensorSource& checkpoint = loaded.checkpoint;
  loaded.tensors();  // throws if a tensor is missing, strange or misshapen
  Facts facts;
  facts.config = config;
  for (int64_t layer = 0; layer < config.num_hidden_layers; ++layer) {
    facts.moe_layers += config.is_moe_layer(layer);
  }
  facts.shards = checkpoint.shards().size();
  for (const storage::Shard& shard : checkpoint.shards()) facts.shard_bytes += shard.file_bytes;
  facts.tensors = checkpoint.tensors().size();
  facts.fingerprint =
      loaded.pack ? loaded.pack->params().source_fingerprint : checkpoint.fingerprint();
  const auto dir = checkpoint.directory();
  const auto* gguf = dynamic_cast<const model::GgufSource*>(&checkpoint);
  const bool has_tokenizer = gguf != nullptr ? gguf->has_tokenizer()
                                             : std::filesystem::exists(dir / "tokenizer.json") ||
                                                   std::filesystem::exists(dir / "tiktoken.model");
  if (has_tokenizer) {
    facts.tokenizer_tokens = load_tokenizer(gguf != nullptr ? gguf->file() : dir).vocab_size();
  }
  facts.components = model::component_table(config, checkpoint);
  if (facts.moe_layers > 0) {
    facts.tiles = tile_facts(loaded, loaded.settle(options.numerics), options.nodes);
  }
  facts.memory = memory_facts(loaded, options);
  if (loaded.pack) {
    facts.pack = {.params = loaded.pack->params(),
                  .bytes = loaded.pack->total_bytes(),
                  .tiles_of_model = static_cast<int>(loaded.pack->geometry().layouts().size())};
  }
  return facts;
}

// One line "name  value" of the text.
void add_fact(std::string* text, std::string_view name, std::string_view value) {
  *text += fmt::format("  {:<16}{}\n", name, value);
}

std::string_view rope_type_name(model::RopeType type) {
  switch (type) {
    case model::RopeType::kDefault:
      return "default";
    case model::RopeType::kLinear:
      return "linear";
    case model::RopeType::kLlama3:
      return "llama3";
    case model::RopeType::kYarn:
      return "yarn";
  }
  return "?";
}

std::string rope_text(const model::ModelConfig& config) {
  const model::RopeScaling& yarn = config.rope_scaling;
  switch (yarn.type) {
    case model::RopeType::kDefault:
      return fmt::format("theta {}, not scaled", config.rope_theta);
    case model::RopeType::kLinear:
      return fmt::format("theta {}, linear factor {}", config.rope_theta, yarn.factor);
    case model::RopeType::kLlama3:
      return fmt::format("theta {}, llama3 factor {} over {} positions ({} to {} turns)",
                         config.rope_theta, yarn.factor,
                         format_count(yarn.original_max_position_embeddings), yarn.low_freq_factor,
                         yarn.high_freq_factor);
    case model::RopeType::kYarn:
      break;
  }
  if (yarn.factor == 1) return fmt::format("theta {}, no YaRN", config.rope_theta);
  return fmt::format(
      "theta {}, YaRN factor {} over {} positions (beta {} to {}, mscale {}, mscale_all_dim {})",
      config.rope_theta, yarn.factor, format_count(yarn.original_max_position_embeddings),
      yarn.beta_fast, yarn.beta_slow, yarn.mscale, yarn.mscale_all_dim);
}

std::string attention_text(const model::ModelConfig& c) {
  if (c.attention_kind() == model::AttentionKind::kGqa) {
    return fmt::format("{} heads of {}, {} of keys and values{}", c.num_attention_heads, c.head_dim,
                       c.num_key_value_heads, c.has_qkv_bias() ? "; q, k and v with bias" : "");
  }
  return fmt::format("{} heads of {} + {} (rope), values of {}; q_lora_rank {}, kv_lora_rank {}",
                     c.num_attention_heads, c.qk_nope_head_dim, c.qk_rope_head_dim, c.v_head_dim,
                     c.q_lora_rank == 0 ? "none" : std::to_string(c.q_lora_rank), c.kv_lora_rank);
}

std::string model_text(const Facts& facts) {
  const model::ModelConfig& c = facts.config;
  std::string text = "model\n";
  add_fact(&text, "architecture", c.model_type);
  add_fact(&text, "layers",
           fmt::format("{}: {} dense, {} with routed experts", c.num_hidden_layers,
                       c.num_hidden_layers - facts.moe_layers, facts.moe_layers));
  add_fact(&text, "hidden size", std::to_string(c.hidden_size));
  add_fact(&text, "attention", attention_text(c));
  if (facts.moe_layers > 0) {
    add_fact(&text, "experts",
             fmt::format("{} routed of {}, {} per token; {} shared", c.n_routed_experts,
                         c.moe_intermediate_size, c.num_experts_per_tok, c.n_shared_experts));
    add_fact(&text, "router",
             fmt::format("{} {}, best {} of {} groups, weights {} x {}", name_of(c.scoring_func),
                         name_of(c.topk_method), c.topk_group, c.n_group,
                         c.norm_topk_prob ? "normalised" : "as they are", c.routed_scaling_factor));
  }
  add_fact(&text, "context", fmt::format("{} positions", format_count(c.max_position_embeddings)));
  add_fact(&text, "rope", rope_text(c));
  add_fact(&text, "vocabulary",
           fmt::format("{} logits, {}", format_count(c.vocab_size),
                       facts.tokenizer_tokens ? fmt::format("tokenizer with {} tokens",
                                                            format_count(*facts.tokenizer_tokens))
                                              : "no tokenizer"));
  if (c.tie_word_embeddings) add_fact(&text, "head", "the embedding's weights (tied)");
  add_fact(&text, "MTP",
           c.num_nextn_predict_layers == 0
               ? "none"
               : fmt::format("{} layer, recognised and not used", c.num_nextn_predict_layers));
  return text;
}

// "1-60, 61" for layers that need not be neighbours.
std::string ranges_text(const std::vector<int32_t>& numbers) {
  std::string text;
  for (size_t i = 0; i < numbers.size();) {
    size_t end = i + 1;
    while (end < numbers.size() && numbers[end] == numbers[end - 1] + 1) ++end;
    if (!text.empty()) text += ", ";
    text += end == i + 1 ? std::to_string(numbers[i])
                         : fmt::format("{}-{}", numbers[i], numbers[end - 1]);
    i = end;
  }
  return text;
}

std::string pack_text(const Facts& facts) {
  if (!facts.pack) return "";
  const storage::PackParams& params = facts.pack->params;
  std::string text = "\nexpert pack\n";
  add_fact(&text, "bytes", format_bytes(facts.pack->bytes));
  add_fact(&text, "format",
           fmt::format("{} (the checkpoint has {}){}", kernels::to_string(params.format),
                       params.source_format,
                       kernels::is_packed_only(params.format)
                           ? fmt::format(", rows {}", kernels::to_string(params.activations))
                           : ""));
  add_fact(&text, "layers", ranges_text(params.layers));
  add_fact(&text, "tiles",
           fmt::format("{}-{} of {}", params.tile_begin, params.tile_end - 1,
                       facts.pack->tiles_of_model));
  return text;
}

std::string checkpoint_text(const Facts& facts) {
  std::string text = facts.pack ? "\ncheckpoint, without routed experts\n" : "\ncheckpoint\n";
  add_fact(&text, "files", fmt::format("{}, {}", facts.shards, format_bytes(facts.shard_bytes)));
  add_fact(&text, "tensors", format_count(facts.tensors));
  add_fact(&text, "fingerprint", facts.fingerprint);

  Table table({{"component"},
               {"dtype"},
               {"tensors", Align::kRight},
               {"parameters", Align::kRight},
               {"bytes", Align::kRight},
               {""}});
  model::ComponentRow sum;
  const auto cells = [](std::string component, const model::ComponentRow& row) {
    return std::vector<std::string>{std::move(component),      row.dtype,
                                    format_count(row.tensors), format_count(row.parameters),
                                    format_count(row.bytes),   format_bytes(row.bytes)};
  };
  for (const model::ComponentRow& row : facts.components) {
    table.add_row(cells(std::string(model::to_string(row.component)), row));
    sum.tensors += row.tensors;
    sum.parameters += row.parameters;
    sum.bytes += row.bytes;
  }
  table.add_rule();
  table.add_row(cells("all", sum));
  return text + "\n" + table.to_string("  ");
}

std::string needs_text(const Facts& facts) {
  std::string text = "\nserving\n";
  add_fact(&text, facts.tiles ? "other weights" : "weights",
           fmt::format("{} as stored, {} as held", format_bytes(coordinator_bytes(facts)),
                       format_bytes(facts.memory.need.coordinator.weights)));
  add_fact(&text, "KV cache",
           fmt::format("{} per token with --kv bf16, {} with --kv f32",
                       format_bytes(kv_bytes_per_token(facts.config, kernels::RowType::kBf16)),
                       format_bytes(kv_bytes_per_token(facts.config, kernels::RowType::kF32))));
  if (!facts.tiles) return text;
  const TileFacts& tiles = *facts.tiles;
  const std::string width = tiles.width == tiles.last_width
                                ? std::to_string(tiles.width)
                                : fmt::format("{}, the last {}", tiles.width, tiles.last_width);
  add_fact(&text, "tiles",
           fmt::format("{} per expert, width {}, format {}", tiles.count, width,
                       kernels::to_string(tiles.format)));
  add_fact(&text, "bytes",
           fmt::format("{} a tile, {} an expert, {} all experts", format_bytes(tiles.bytes_max),
                       format_bytes(tiles.expert_bytes), format_bytes(tiles.all_bytes)));
  add_fact(&text, "of these",
           fmt::format("panels of weights and scales {}, padding {}: each tile begins on a page of",
                       format_bytes(tiles.panel_bytes),
                       format_bytes(tiles.all_bytes - tiles.panel_bytes)));
  add_fact(&text, "", "4 KiB, so that a drive reads it to where it stays");
  Table table({{"equal nodes", Align::kRight},
               {"tiles each", Align::kRight},
               {"RAM each", Align::kRight},
               {"read at load", Align::kRight}});
  for (const NodeNeed& need : tiles.nodes) {
    table.add_row({std::to_string(need.nodes), std::to_string(need.tiles),
                   format_bytes(need.resident_bytes), format_bytes(need.read_bytes)});
  }
  return text + "\n" + table.to_string("  ");
}

// Process by process, what it all comes to, and whether this machine has it.
std::string memory_text(const Facts& facts) {
  const MemoryFacts& memory = facts.memory;
  Table table({{"process"},
               {"experts", Align::kRight},
               {"other weights", Align::kRight},
               {"KV cache", Align::kRight},
               {"buffers", Align::kRight},
               {"in all", Align::kRight}});
  const auto add = [&](const std::string& name, const deployment::MemoryNeed& need) {
    table.add_row({name, format_bytes(need.experts), format_bytes(need.weights),
                   format_bytes(need.kv_cache), format_bytes(need.buffers),
                   format_bytes(need.total())});
  };
  add("coordinator", memory.need.coordinator);
  const std::vector<deployment::MemoryNeed>& nodes = memory.need.nodes;
  for (size_t n = 0, end = 0; n < nodes.size(); n = end) {
    for (end = n + 1; end < nodes.size() && nodes[end] == nodes[n];) ++end;
    add(end == n + 1 ? fmt::format("n{}", n) : fmt::format("n{} to n{}, each", n, end - 1),
        nodes[n]);
  }
  table.add_rule();
  add("all", memory.need.sum());
  const std::string where =
      nodes.empty() ? "all in one process"
                    : fmt::format("{} node{}", memory.nodes, memory.nodes == 1 ? "" : "s");
  std::string text = fmt::format("\nmemory on this machine, {}, {} sequence{} of {} tokens\n\n",
                                 where, memory.sequences, memory.sequences == 1 ? "" : "s",
                                 format_count(static_cast<uint64_t>(memory.context)));
  text += table.to_string("  ") + "\n";
  if (!memory.shortage) {
    const auto bound = tightest(memory.bounds, topology::MemoryBound::Of::kMachine);
    add_fact(&text, "verdict",
             bound ? fmt::format("fits: {} are free ({} of {})", format_bytes(bound->free_bytes),
                                 bound->name, format_bytes(bound->limit_bytes))
                   : "this machine does not tell what is free");
    return text;
  }
  add_fact(&text, "verdict", *memory.shortage);
  if (!facts.tiles) return text;
  add_fact(&text, "experts alone",
           memory.machines > 0 ? fmt::format("fit on {} machine{} with as much free memory",
                                             memory.machines, memory.machines == 1 ? "" : "s")
                               : "do not fit on any number of machines with as much free memory");
  return text;
}

// Of the GPU that the user describes.
std::string device_text(const MemoryFacts& memory) {
  if (!memory.device) return "";
  const DeviceFacts& device = *memory.device;
  std::string text = fmt::format("\non a GPU with {}\n\n", format_bytes(device.bytes));
  if (device.need) {
    add_fact(&text, "weights", format_bytes(device.need->weights));
    add_fact(&text, "KV cache", format_bytes(device.need->kv_cache));
    add_fact(&text, "buffers", format_bytes(device.need->buffers));
    add_fact(&text, "in all", format_bytes(device.need->total()));
  }
  add_fact(&text, "verdict",
           device.shortage ? *device.shortage
                           : fmt::format("fits: the KV cache may hold {} tokens",
                                         format_count(static_cast<uint64_t>(device.cache_tokens))));
  return text;
}

std::string tensors_text(const storage::TensorSource& checkpoint) {
  Table table({{"tensor"}, {"dtype"}, {"shape"}, {"bytes", Align::kRight}, {"file"}});
  for (const storage::TensorInfo& tensor : checkpoint.tensors()) {
    table.add_row({one_line(tensor.name), tensor.dtype_name,
                   fmt::format("[{}]", fmt::join(tensor.shape, ", ")), format_count(tensor.bytes),
                   one_line(checkpoint.shards()[tensor.shard].file_name)});
  }
  return "\ntensors\n\n" + table.to_string("  ");
}

Json model_json(const Facts& facts) {
  const model::ModelConfig& c = facts.config;
  const model::RopeScaling& yarn = c.rope_scaling;
  Json json = {{"architecture", c.model_type},
               {"num_hidden_layers", c.num_hidden_layers},
               {"moe_layers", facts.moe_layers},
               {"hidden_size", c.hidden_size},
               {"intermediate_size", c.intermediate_size},
               {"moe_intermediate_size", c.moe_intermediate_size},
               {"num_attention_heads", c.num_attention_heads},
               {"q_lora_rank", c.q_lora_rank},
               {"kv_lora_rank", c.kv_lora_rank},
               {"qk_nope_head_dim", c.qk_nope_head_dim},
               {"qk_rope_head_dim", c.qk_rope_head_dim},
               {"v_head_dim", c.v_head_dim},
               {"n_routed_experts", c.n_routed_experts},
               {"n_shared_experts", c.n_shared_experts},
               {"num_experts_per_tok", c.num_experts_per_tok},
               {"n_group", c.n_group},
               {"topk_group", c.topk_group},
               {"topk_method", name_of(c.topk_method)},
               {"scoring_func", name_of(c.scoring_func)},
               {"norm_topk_prob", c.norm_topk_prob},
               {"routed_scaling_factor", c.routed_scaling_factor},
               {"vocab_size", c.vocab_size},
               {"max_position_embeddings", c.max_position_embeddings},
               {"rope_theta", c.rope_theta},
               {"num_nextn_predict_layers", c.num_nextn_predict_layers}};
  if (c.attention_kind() == model::AttentionKind::kGqa) {
    json["num_key_value_heads"] = c.num_key_value_heads;
    json["head_dim"] = c.head_dim;
    json["qkv_bias"] = c.has_qkv_bias();
    json["tie_word_embeddings"] = c.tie_word_embeddings;
  }
  json["rope_scaling"] = {{"type", rope_type_name(yarn.type)}, {"factor", yarn.factor}};
  json["yarn"] =
      yarn.factor == 1 || yarn.type != model::RopeType::kYarn
          ? Json(nullptr)
          : Json{{"factor", yarn.factor},
                 {"original_max_position_embeddings", yarn.original_max_position_embeddings},
                 {"beta_fast", yarn.beta_fast},
                 {"beta_slow", yarn.beta_slow},
                 {"mscale", yarn.mscale},
                 {"mscale_all_dim", yarn.mscale_all_dim}};
  json["tokenizer_tokens"] = facts.tokenizer_tokens ? Json(*facts.tokenizer_tokens) : Json(nullptr);
  return json;
}

Json tiles_json(const TileFacts& tiles) {
  Json nodes = Json::array();
  for (const NodeNeed& need : tiles.nodes) {
    nodes.push_back({{"nodes", need.nodes},
                     {"tiles", need.tiles},
                     {"resident_bytes", need.resident_bytes},
                     {"read_bytes", need.read_bytes}});
  }
  return {{"format", kernels::to_string(tiles.format)},
          {"per_expert", tiles.count},
          {"width", tiles.width},
          {"last_width", tiles.last_width},
          {"bytes_max", tiles.bytes_max},
          {"expert_bytes", tiles.expert_bytes},
          {"all_bytes", tiles.all_bytes},
          {"panel_bytes", tiles.panel_bytes},
          {"equal_nodes", nodes}};
}

Json need_json(const deployment::MemoryNeed& need) {
  return {{"experts", need.experts},
          {"weights", need.weights},
          {"kv_cache", need.kv_cache},
          {"buffers", need.buffers},
          {"total", need.total()}};
}

Json device_json(const std::optional<DeviceFacts>& device) {
  if (!device) return nullptr;
  Json json = {{"bytes", device->bytes}};
  if (const auto& need = device->need) {
    json["weights"] = need->weights;
    json["kv_cache"] = need->kv_cache;
    json["buffers"] = need->buffers;
    json["total"] = need->total();
  }
  json["cache_tokens_max"] = device->cache_tokens;
  json["fits"] = !device->shortage;
  json["shortage"] = device->shortage ? Json(*device->shortage) : Json(nullptr);
  return json;
}

Json memory_json(const MemoryFacts& memory) {
  Json nodes = Json::array(), bounds = Json::array();
  for (const deployment::MemoryNeed& node : memory.need.nodes) nodes.push_back(need_json(node));
  for (const topology::MemoryBound& bound : memory.bounds) {
    const bool shared = bound.of == topology::MemoryBound::Of::kMachine;
    bounds.push_back({{"name", bound.name},
                      {"of", shared ? "machine" : "process"},
                      {"limit_bytes", bound.limit_bytes},
                      {"free_bytes", bound.free_bytes}});
  }
  return {{"context", memory.context},
          {"sequences", memory.sequences},
          {"coordinator", need_json(memory.need.coordinator)},
          {"nodes", nodes},
          {"total", memory.need.sum().total()},
          {"bounds", bounds},
          {"fits", !memory.shortage},
          {"shortage", memory.shortage ? Json(*memory.shortage) : Json(nullptr)},
          {"device", device_json(memory.device)},
          {"machines_for_experts", memory.machines > 0 ? Json(memory.machines) : Json(nullptr)}};
}

Json to_json(const Facts& facts) {
  Json components = Json::array();
  for (const model::ComponentRow& row : facts.components) {
    components.push_back({{"component", model::to_string(row.component)},
                          {"dtype", row.dtype},
                          {"tensors", row.tensors},
                          {"parameters", row.parameters},
                          {"bytes", row.bytes}});
  }
  Json json;
  json["model"] = model_json(facts);
  json["checkpoint"] = {{"shards", facts.shards},
                        {"bytes", facts.shard_bytes},
                        {"tensors", facts.tensors},
                        {"fingerprint", facts.fingerprint},
                        {"components", components}};
  if (facts.pack) {
    const storage::PackParams& params = facts.pack->params;
    json["pack"] = {{"bytes", facts.pack->bytes},
                    {"format", kernels::to_string(params.format)},
                    {"activations", kernels::to_string(params.activations)},
                    {"source_format", params.source_format},
                    {"layers", params.layers},
                    {"first_tile", params.tile_begin},
                    {"last_tile", params.tile_end - 1}};
  }
  json["coordinator_bytes"] = coordinator_bytes(facts);
  json["kv_cache_bytes_per_token"] = {
      {"bf16", kv_bytes_per_token(facts.config, kernels::RowType::kBf16)},
      {"f32", kv_bytes_per_token(facts.config, kernels::RowType::kF32)}};
  json["tiles"] = facts.tiles ? tiles_json(*facts.tiles) : Json(nullptr);
  json["memory"] = memory_json(facts.memory);
  return json;
}

Json tensors_json(const storage::TensorSource& checkpoint) {
  Json tensors = Json::array();
  for (const storage::TensorInfo& tensor : checkpoint.tensors()) {
    tensors.push_back({{"name", tensor.name},
                       {"dtype", tensor.dtype_name},
                       {"shape", tensor.shape},
                       {"bytes", tensor.bytes},
                       {"file", checkpoint.shards()[tensor.shard].file_name}});
  }
  return tensors;
}

int inspect(const InspectOptions& options) {
  const std::unique_ptr<model::OpenedModel> loaded = model::open(options.model_dir);
  const storage::TensorSource& checkpoint = loaded->checkpoint;
  if (loaded->config.has_experts()) {
    deployment::require_nodes(options.nodes.value_or(0),
                              kernels::num_tiles(loaded->config.moe_intermediate_size));
  } else {
    deployment::DeploymentOptions asked;
    asked.nodes = options.nodes.value_or(0);
    asked.numerics = options.numerics;
    asked.memory.ram_budget = options.ram_budget;
    deployment::require_no_expert_options(asked, loaded->config);
  }
  if (options.context && *options.context > loaded->config.max_position_embeddings) {
    throw LoadError(fmt::format("--context {}: the model has {} positions", *options.context,
                                loaded->config.max_position_embeddings));
  }
  const Facts facts = gather(*loaded, options);
  if (options.json) {
    Json json = to_json(facts);
    if (options.tensors) json["tensors"] = tensors_json(checkpoint);
    write_stdout(json.dump(2) + "\n");
    return 0;
  }
  write_stdout(model_text(facts) + pack_text(facts) + checkpoint_text(facts) + needs_text(facts) +
               memory_text(facts) + device_text(facts.memory));
  if (options.tensors) write_stdout(tensors_text(checkpoint));
  return 0;
}

}  // namespace

void add_inspect_command(CLI::App& app, int* exit_code) {
  auto options = std::make_shared<InspectOptions>();
  CLI::App* command = app.add_subcommand(
      "inspect", "Check a checkpoint or pack and tell what it is and what serving it needs");
  command
      ->add_option("MODEL_DIR", options->model_dir,
                   "Directory with config.json and safetensors files, as published, GGUF file, or "
                   "expert pack")
      ->required()
      ->type_name("");
  command->add_flag("--json", options->json,
                    "One JSON object in place of text; sizes in bytes; off unless given");
  command->add_flag("--tensors", options->tensors,
                    "List every tensor with its dtype, shape, bytes and file; off unless given");
  add_numerics_options(*command, &options->numerics);
  command
      ->add_option("--nodes", options->nodes,
                   "Expert nodes to count with; unless given, tables of several and the memory of "
                   "one process")
      ->check(CLI::Range(0, deployment::kNodesMax))
      ->type_name("N");
  command
      ->add_option("--context", options->context,
                   "Tokens of one sequence in the KV cache; 8192 or the model's unless given")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 30))
      ->type_name("TOKENS");
  command->add_option("--sequences", options->sequences, "Sequences of that length at once")
      ->check(CLI::Range(1, 4096))
      ->type_name("N")
      ->capture_default_str();
  add_byte_size_option(*command, "--ram-budget",
                       "RAM of each node for experts, as of run and serve; unless given, all",
                       [options](uint64_t bytes) { options->ram_budget = bytes; });
  add_byte_size_option(*command, "--device-memory",
                       "Memory of a GPU that the coordinator would compute on, such as 24GiB",
                       [options](uint64_t bytes) { options->device_memory = bytes; });
  group_options(*command, "Does it fit?",
                {"--nodes", "--context", "--sequences", "--ram-budget", "--device-memory"});
  group_options(*command, "Report", {"--json", "--tensors"});
  command->footer(
      "Example:\n  atoll inspect tests/models/tiny-fp8 --tensors\n"
      "  atoll inspect MODEL_DIR --format int4 --nodes 4 --context 32768 --sequences 8\n"
      "  atoll inspect MODEL_DIR --dense-format int4 --activations f32 --device-memory 24GiB");
  command->callback([options, exit_code] { *exit_code = inspect(*options); });
}

}  // namespace atl::cli
