#include "deployment/memory_check.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <bit>
#include <memory>

#include "base/units.h"
#include "coordinator/engine/cpu_compute.h"
#include "coordinator/engine/kv_cache.h"
#include "coordinator/engine/weights.h"
#include "deployment/model_parts.h"
#include "deployment/numerics.h"
#include "expert_node/serve.h"

namespace atl::deployment {
namespace {

using kernels::WeightFormat;
using topology::MemoryBound;

// Of a KV cache that is to be smaller, this is kept unless memory is shorter still.
constexpr uint64_t kSmallCacheBytes = kGiB;

// What the coordinator has in flight beside the step's own buffers: integer sums, an answer of each
// node, and the message that all of them read (its buffers are powers of two).
uint64_t exchange_bytes(const model::OpenedModel& model, const MemoryRequest& request) {
  if (!model.config.has_experts()) return 0;
  transport::WireLimits limits;
  limits.rows_max = static_cast<uint32_t>(request.rows_max);
  limits.hidden_size = static_cast<uint32_t>(model.config.hidden_size);
  limits.top_k = static_cast<uint32_t>(model.config.num_experts_per_tok);
  limits.row_type = wire_row_type(request.numerics.wire);
  const uint64_t sums =
      static_cast<uint64_t>(request.rows_max * model.config.hidden_size) * sizeof(int64_t);
  return sums * (1 + request.placement.tiles_of_node.size()) +
         2 * std::bit_ceil(limits.dispatch_payload_bytes_max());
}

// What the next-token layer is given: of a step, of the sequences, and as they go into the layer.
uint64_t hidden_bytes(const model::ModelConfig& config, int64_t rows_max) {
  return 3 * static_cast<uint64_t>(rows_max * config.hidden_size) * sizeof(float);
}

MemoryNeed need_of_node(const model::OpenedModel& model, const MemoryRequest& request,
                        const std::vector<int>& tiles) {
  expert_node::NodeOptions node;
  node.row_type = wire_row_type(request.numerics.wire);
  node.rows_max = static_cast<uint32_t>(request.rows_max);
  MemoryNeed need;
  need.buffers = expert_node::node_buffer_bytes(node, model.catalog, request.node_threads);
  need.experts =
      open_tiles(model, request.numerics, {request.memory, need.buffers, request.node_threads, {}})
          ->ram_bytes(tiles);
  return need;
}

// A bound and who would break it: a process, or all together.
struct Broken {
  const MemoryBound* bound = nullptr;
  std::string who;  // "": all
  MemoryNeed need;
};

std::optional<Broken> broken_bound(const DeploymentNeed& need,
                                   const std::vector<MemoryBound>& bounds) {
  std::optional<Broken> worst;
  const auto compare = [&](const MemoryBound& bound, const std::string& who,
                           const MemoryNeed& part) {
    if (part.total() <= bound.free_bytes) return;
    if (!worst || bound.free_bytes < worst->bound->free_bytes) worst = Broken{&bound, who, part};
  };
  for (const MemoryBound& bound : bounds) {
    if (bound.of == MemoryBound::Of::kMachine) {
      compare(bound, "", need.sum());
      continue;
    }
    compare(bound, need.nodes.empty() ? "" : "the coordinator's process", need.coordinator);
    for (size_t n = 0; n < need.nodes.size(); ++n) {
      compare(bound, fmt::format("the process of node n{}", n), need.nodes[n]);
    }
  }
  return worst;
}

// How much more each of these processes of `need` could take, where no bound is broken.
uint64_t slack(const DeploymentNeed& need, const std::vector<MemoryBound>& bounds,
               const std::vector<MemoryNeed>& processes) {
  uint64_t least = UINT64_MAX;
  for (const MemoryBound& bound : bounds) {
    if (bound.of == MemoryBound::Of::kMachine) {
      least = std::min(least, (bound.free_bytes - need.sum().total()) / processes.size());
    } else {
      for (const MemoryNeed& process : processes) {
        least = std::min(least, bound.free_bytes - process.total());
      }
    }
  }
  return least;
}

// "12.3GiB" or "350MiB", never more than `bytes`: what --ram-budget and --kv-cache take.
std::string size_argument(uint64_t bytes) {
  if (bytes < kGiB) return fmt::format("{}MiB", bytes / kMiB);
  const uint64_t tenths = bytes / (kGiB / 10);
  return fmt::format("{}.{}GiB", tenths / 10, tenths % 10);
}
uint64_t size_of_argument(uint64_t bytes) { return *parse_bytes(size_argument(bytes)); }

// One set of changes to what was asked for.
struct Change {
  bool int4 = false;        // routed experts
  bool dense_int4 = false;  // the rest
  bool budget = false;
  bool small_cache = false;

  int size() const { return int4 + dense_int4 + budget + small_cache; }
  bool includes(const Change& other) const {
    return int4 >= other.int4 && dense_int4 >= other.dense_int4 && budget >= other.budget &&
           small_cache >= other.small_cache;
  }
};

// From the least to the most intrusive.
std::vector<Change> all_changes() {
  std::vector<Change> changes;
  for (int bits = 1; bits < 16; ++bits) {
    changes.push_back({(bits & 1) != 0, (bits & 2) != 0, (bits & 4) != 0, (bits & 8) != 0});
  }
  std::stable_sort(changes.begin(), changes.end(),
                   [](const Change& a, const Change& b) { return a.size() < b.size(); });
  return changes;
}

// Tries changes against one model, request and set of bounds.
class WaysOut {
 public:
  WaysOut(const model::OpenedModel& model, const MemoryRequest& request, const CacheOption& cache,
          const std::vector<MemoryBound>& bounds)
      : model_(model), request_(request), cache_(cache), bounds_(bounds) {}

  // Each a set of options that makes it fit, none of which is more than another.
  std::vector<std::string> find() const {
    std::vector<Change> fitting;
    std::vector<std::string> texts;
    for (const Change& change : all_changes()) {
      const bool needless = std::any_of(fitting.begin(), fitting.end(), [&](const Change& smaller) {
        return change.includes(smaller);
      });
      if (needless || !is_possible(change)) continue;
      if (const auto text = try_change(change)) {
        fitting.push_back(change);
        texts.push_back(*text);
      }
    }
    return texts;
  }

 private:
  bool is_possible(const Change& change) const {
    const model::NumericsProfile& numerics = request_.numerics;
    const bool experts_are_int4 =
        numerics.format.value_or(model_.catalog.format) == WeightFormat::kInt4;
    const bool has_experts = !model_.catalog.moe_layers.empty();
    if (change.int4 && (!has_experts || model_.pack || experts_are_int4)) return false;
    if (change.dense_int4 && numerics.dense_format == WeightFormat::kInt4) return false;
    if (change.budget && !has_experts) return false;
    return !change.small_cache || !cache_.bytes_option.empty() || !cache_.advice.empty();
  }

  uint64_t block_bytes() const {
    return kv_cache_bytes(model_, request_.numerics, 1) -
           kv_cache_bytes(model_, request_.numerics, 0);
  }

  // The options, if it fits with them.
  std::optional<std::string> try_change(const Change& change) const {
    MemoryRequest request = request_;
    std::vector<std::string> options;
    if (change.int4) {
      request.numerics.format = WeightFormat::kInt4;
      options.push_back("--format int4");
    }
    if (change.dense_int4) {
      request.numerics.dense_format = WeightFormat::kInt4;
      options.push_back("--dense-format int4");
    }
    if (change.small_cache) request.cache_tokens = 0;
    if (change.budget) request.memory.ram_budget = least_budget(request);
    DeploymentNeed need = memory_need(model_, request);
    if (broken_bound(need, bounds_)) return std::nullopt;
    if (change.small_cache && !grow_cache(change, &request, &need, &options)) return std::nullopt;
    if (change.budget && !grow_budget(&request, need, &options)) return std::nullopt;
    std::string text = fmt::format("{}", fmt::join(options, " "));
    if (change.small_cache && cache_.bytes_option.empty()) {
      text += (text.empty() ? "" : " and ") + cache_.advice;
    }
    return text;
  }

  uint64_t least_budget(MemoryRequest request) const {
    request.memory.ram_budget.reset();
    const MemoryNeed node = need_of_node(model_, request, request.placement.tiles_of_node[0]);
    const auto tiles = open_tiles(model_, request.numerics,
                                  {request.memory, node.buffers, request.node_threads, {}});
    return node.buffers + tiles->ram_bytes_min();
  }

  // As large a cache as fits, but a small one if the experts' budget is to have the rest.
  bool grow_cache(const Change& change, MemoryRequest* request, DeploymentNeed* need,
                  std::vector<std::string>* options) const {
    if (cache_.bytes_option.empty()) return true;
    uint64_t bytes = slack(*need, bounds_, {need->coordinator});
    if (change.budget) bytes = std::min(bytes / 2, kSmallCacheBytes);
    bytes = size_of_argument(bytes);
    const uint64_t blocks = bytes / block_bytes();
    if (blocks < 2) return false;
    request->cache_tokens = static_cast<int64_t>(blocks - 1) * kernels::kAttentionBlock;
    if (request->cache_tokens >= request_.cache_tokens) return false;
    *need = memory_need(model_, *request);
    options->push_back(fmt::format("{} {}", cache_.bytes_option, size_argument(bytes)));
    return true;
  }

  bool grow_budget(MemoryRequest* request, const DeploymentNeed& need,
                   std::vector<std::string>* options) const {
    const std::vector<MemoryNeed> local = {need.coordinator};
    const uint64_t least = *request->memory.ram_budget;
    const uint64_t more = slack(need, bounds_, need.nodes.empty() ? local : need.nodes);
    const uint64_t budget = size_of_argument(least + more);
    if (budget < least) return false;
    options->push_back(fmt::format("--ram-budget {}{}", size_argument(budget),
                                   model_.pack ? "" : " with a pack (atoll pack)"));
    return true;
  }

  const model::OpenedModel& model_;
  const MemoryRequest& request_;
  const CacheOption& cache_;
  const std::vector<MemoryBound>& bounds_;
};

std::string parts_text(const MemoryNeed& need) {
  std::vector<std::string> parts;
  const auto add = [&](const char* name, uint64_t bytes) {
    if (bytes > 0) parts.push_back(fmt::format("{} {}", name, format_bytes(bytes)));
  };
  add("experts", need.experts);
  add("other weights", need.weights);
  add("KV cache", need.kv_cache);
  add("buffers and program", need.buffers);
  return fmt::format("{}", fmt::join(parts, ", "));
}

std::string bound_text(const MemoryBound& bound) {
  return fmt::format("{} are free ({} of {})", format_bytes(bound.free_bytes), bound.name,
                     format_bytes(bound.limit_bytes));
}

}  // namespace

MemoryNeed& MemoryNeed::operator+=(const MemoryNeed& other) {
  experts += other.experts;
  weights += other.weights;
  kv_cache += other.kv_cache;
  buffers += other.buffers;
  return *this;
}

MemoryNeed DeploymentNeed::sum() const {
  MemoryNeed sum = coordinator;
  for (const MemoryNeed& node : nodes) sum += node;
  return sum;
}

uint64_t kv_cache_bytes(const model::OpenedModel& model, const model::NumericsProfile& numerics,
                        int64_t cache_tokens) {
  const model::ModelConfig& config = model.config;
  const coordinator::CacheShape shape = coordinator::cache_shape(config, numerics.cache);
  return static_cast<uint64_t>(coordinator::KvCache::blocks_for(cache_tokens) + 1) *
         coordinator::KvCache::block_bytes(config.num_hidden_layers + (model.has_mtp ? 1 : 0),
                                           shape);
}

MemoryNeed node_memory_need(const model::OpenedModel& model, const MemoryRequest& request,
                            const std::vector<int>& tiles) {
  MemoryNeed need = need_of_node(model, request, tiles);
  need.buffers += kProgramBytes;
  return need;
}

MemoryNeed coordinator_memory_need(const model::OpenedModel& model,
                                   const model::ModelTensors& tensors,
                                   const MemoryRequest& request) {
  MemoryNeed need;
  need.weights = coordinator::Weights::held_bytes(model.config, tensors, request.numerics.dense());
  need.kv_cache = kv_cache_bytes(model, request.numerics, request.cache_tokens);
  need.buffers = coordinator::CpuCompute::buffer_bytes(model.config, request.rows_max) +
                 exchange_bytes(model, request) +
                 static_cast<uint64_t>(request.coordinator_threads) * kStagingWindowBytes +
                 kProgramBytes;
  if (model.has_mtp) need.buffers += hidden_bytes(model.config, request.rows_max);
  return need;
}

DeploymentNeed memory_need(const model::OpenedModel& model, const MemoryRequest& request) {
  DeploymentNeed need;
  need.coordinator = coordinator_memory_need(model, model.tensors(), request);
  for (const std::vector<int>& tiles : request.placement.kept_by_node()) {
    if (request.local_node) {
      need.coordinator += need_of_node(model, request, tiles);
    } else {
      need.nodes.push_back(node_memory_need(model, request, tiles));
    }
  }
  return need;
}

int room_of_node(const model::OpenedModel& model, const MemoryRequest& request,
                 const std::vector<int>& tiles) {
  expert_node::NodeOptions node;
  node.row_type = wire_row_type(request.numerics.wire);
  node.rows_max = static_cast<uint32_t>(request.rows_max);
  const uint64_t buffers =
      expert_node::node_buffer_bytes(node, model.catalog, request.node_threads);
  try {
    return open_tiles(model, request.numerics, {request.memory, buffers, request.node_threads, {}})
        ->room(tiles);
  } catch (const LoadError&) {
    return 0;
  }
}

std::optional<std::string> memory_shortage(const model::OpenedModel& model,
                                           const MemoryRequest& request, const CacheOption& cache,
                                           const std::vector<MemoryBound>& bounds) {
  const DeploymentNeed need = memory_need(model, request);
  const std::optional<Broken> broken = broken_bound(need, bounds);
  if (!broken) return std::nullopt;
  std::string text = fmt::format("not enough memory{}: {} are needed ({}",
                                 broken->who.empty() ? "" : " for " + broken->who,
                                 format_bytes(broken->need.total()), parts_text(broken->need));
  if (broken->who.empty() && !need.nodes.empty()) {
    text += fmt::format(", in {} processes", need.nodes.size() + 1);
  }
  text += fmt::format("), {}; ", bound_text(*broken->bound));
  const std::vector<std::string> ways = WaysOut(model, request, cache, bounds).find();
  text += ways.empty() ? "nothing smaller fits either"
                       : fmt::format("what fits: {}", fmt::join(ways, ", or "));
  return text;
}

void refuse_shortage_of_node(const MemoryNeed& need, const std::vector<MemoryBound>& bounds) {
  DeploymentNeed all;
  all.coordinator = need;
  const std::optional<Broken> broken = broken_bound(all, bounds);
  if (!broken) return;
  throw LoadError(fmt::format(
      "not enough memory: {} are needed ({}), {}; fewer tiles for this node (--tiles) or a "
      "--ram-budget of it need less, --force loads all the same",
      format_bytes(need.total()), parts_text(need), bound_text(*broken->bound)));
}

}  // namespace atl::deployment
