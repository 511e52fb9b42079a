#include "model/gguf_source.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cstring>
#include <set>
#include <span>
#include <unordered_map>
#include <utility>

#include "base/check.h"
#include "base/log.h"
#include "base/result.h"
#include "kernels/numeric_types.h"
#include "model/gguf_metadata.h"
#include "model/gguf_tokenizer.h"
#include "storage/gguf/gguf_files.h"
#include "storage/gguf/gguf_types.h"
#include "storage/io/file_io.h"
#include "storage/io/printable.h"

namespace atl::model {
namespace {

using storage::DType;
using storage::GgmlType;
using storage::GgufTensor;
using storage::Shard;
using storage::TensorInfo;

// Blocks are read and de-quantized in steps of about this many bytes.
constexpr uint64_t kStepBytes = 256 << 10;
// Tensors that a model's stacks of experts may be cut into; Kimi K2 has 70,000.
constexpr int64_t kTensorsMax = 1 << 19;
constexpr int64_t kRopeFactorsMax = 1 << 12;

struct Name {
  std::string_view gguf, published;
};
constexpr Name kGlobalNames[] = {{"token_embd.weight", "model.embed_tokens.weight"},
                                 {"output_norm.weight", "model.norm.weight"},
                                 {"output.weight", "lm_head.weight"}};
// Behind "blk.N." and "model.layers.N.".
constexpr Name kLayerNames[] = {
    {"attn_norm.weight", "input_layernorm.weight"},
    {"ffn_norm.weight", "post_attention_layernorm.weight"},
    {"attn_q.weight", "self_attn.q_proj.weight"},
    {"attn_k.weight", "self_attn.k_proj.weight"},
    {"attn_v.weight", "self_attn.v_proj.weight"},
    {"attn_q.bias", "self_attn.q_proj.bias"},
    {"attn_k.bias", "self_attn.k_proj.bias"},
    {"attn_v.bias", "self_attn.v_proj.bias"},
    {"attn_output.weight", "self_attn.o_proj.weight"},
    {"attn_q_a.weight", "self_attn.q_a_proj.weight"},
    {"attn_q_a_norm.weight", "self_attn.q_a_layernorm.weight"},
    {"attn_q_b.weight", "self_attn.q_b_proj.weight"},
    {"attn_kv_a_mqa.weight", "self_attn.kv_a_proj_with_mqa.weight"},
    {"attn_kv_a_norm.weight", "self_attn.kv_a_layernorm.weight"},
    {"attn_kv_b.weight", "self_attn.kv_b_proj.weight"},
    {"ffn_gate.weight", "mlp.gate_proj.weight"},
    {"ffn_up.weight", "mlp.up_proj.weight"},
    {"ffn_down.weight", "mlp.down_proj.weight"},
    {"ffn_gate_inp.weight", "mlp.gate.weight"},
    {"exp_probs_b.bias", "mlp.gate.e_score_correction_bias"},
    {"exp_probs_b", "mlp.gate.e_score_correction_bias"},
    {"ffn_gate_shexp.weight", "mlp.shared_experts.gate_proj.weight"},
    {"ffn_up_shexp.weight", "mlp.shared_experts.up_proj.weight"},
    {"ffn_down_shexp.weight", "mlp.shared_experts.down_proj.weight"},
    {"nextn.eh_proj.weight", "eh_proj.weight"},
    {"nextn.enorm.weight", "enorm.weight"},
    {"nextn.hnorm.weight", "hnorm.weight"},
    {"nextn.embed_tokens.weight", "embed_tokens.weight"},
    {"nextn.shared_head_norm.weight", "shared_head.norm.weight"},
    {"nextn.shared_head_head.weight", "shared_head.head.weight"},
};
// Stacks of all experts of a layer, and what one of them is called.
constexpr Name kExpertNames[] = {{"ffn_gate_exps.weight", "gate_proj"},
                                 {"ffn_up_exps.weight", "up_proj"},
                                 {"ffn_down_exps.weight", "down_proj"}};

template <size_t N>
std::optional<std::string_view> published_name(const Name (&names)[N], std::string_view gguf) {
  for (const Name& name : names) {
    if (name.gguf == gguf) return name.published;
  }
  return std::nullopt;
}

// "blk.12.attn_q.weight": 12 and what follows.
struct LayerName {
  int64_t layer = 0;
  std::string_view rest;
};
std::optional<LayerName> layer_name(std::string_view name) {
  constexpr std::string_view kPrefix = "blk.";
  if (!name.starts_with(kPrefix)) return std::nullopt;
  name.remove_prefix(kPrefix.size());
  LayerName result;
  const auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), result.layer);
  const auto digits = static_cast<size_t>(end - name.data());
  if (error != std::errc() || digits == name.size() || name[digits] != '.' || result.layer < 0) {
    return std::nullopt;
  }
  result.rest = name.substr(digits + 1);
  return result;
}

// Where the numbers of a tensor lie in the files.
struct Part {
  uint32_t shard = 0;
  const GgufTensor* tensor = nullptr;
  uint64_t first = 0;  // element of the file's tensor

  GgmlType type() const { return static_cast<GgmlType>(tensor->type); }
};

enum class Layout : uint8_t {
  kRows,       // as they are
  kHalfSplit,  // rows of a head: pair i at 2 i, 2 i + 1, to be at i, i + head_dim / 2
  kKvB,        // rows of a head: columns of k_b's, then rows of v_b's
};

struct Mapped {
  TensorInfo info;
  Layout layout = Layout::kRows;
  Part part;              // kKvB: k_b [heads, rank, nope]
  Part v_b;               // kKvB: [heads, v, rank]
  int64_t head_rows = 0;  // kHalfSplit, kKvB
  int64_t nope = 0;       // kKvB
};

bool is_quantized(GgmlType type) {
  return type != GgmlType::kF32 && type != GgmlType::kF16 && type != GgmlType::kBf16;
}

std::optional<DType> plain_dtype(GgmlType type) {
  switch (type) {
    case GgmlType::kF32:
      return DType::kF32;
    case GgmlType::kBf16:
      return DType::kBf16;
    case GgmlType::kF16:
      return DType::kF16;
    default:
      return std::nullopt;
  }
}

// Linear layers but the router's and the experts': what a run holds in --dense-format.
bool is_dense_linear(std::string_view name) {
  if (name.find(".mlp.experts.") != name.npos) return false;
  return name.ends_with("_proj.weight") || name.ends_with("_proj_with_mqa.weight") ||
         name == "lm_head.weight";
}

// Makes the table of published tensors out of the files'.
class Mapping {
 public:
  Mapping(const std::vector<storage::GgufFile>& files, const GgufMetadata& metadata,
          QuantizedDense dense)
      : files_(files),
        metadata_(metadata),
        architecture_(gguf_architecture(metadata)),
        has_experts_(architecture_ == "deepseek2"),
        dense_(dense) {
    for (size_t i = 0; i < files.size(); ++i) {
      for (const GgufTensor& tensor : files[i].header.tensors) {
        check_readable(tensor, i);
        place_of_.emplace(tensor.name, tensors_.size());
        tensors_.push_back({static_cast<uint32_t>(i), &tensor, 0});
      }
    }
    find_expert_dtype();
  }

  std::vector<Mapped> run() {
    for (const Part& part : tensors_) add(part);
    std::sort(mapped_.begin(), mapped_.end(),
              [](const Mapped& a, const Mapped& b) { return a.info.name < b.info.name; });
    const auto twice = std::adjacent_find(
        mapped_.begin(), mapped_.end(),
        [](const Mapped& a, const Mapped& b) { return a.info.name == b.info.name; });
    if (twice != mapped_.end()) refuse(twice->part, "it is there under two names");
    return std::move(mapped_);
  }

  const Part* find(std::string_view name) const {
    const auto found = place_of_.find(name);
    return found == place_of_.end() ? nullptr : &tensors_[found->second];
  }
  // nullptr: no rope scaling by factors.
  const Part* rope_factors() const {
    const Part* factors = find("rope_freqs.weight");
    if (factors != nullptr && factors->tensor->elements() > kRopeFactorsMax) {
      refuse(*factors, fmt::format("{} factors, expected at most {}", factors->tensor->elements(),
                                   kRopeFactorsMax));
    }
    return factors;
  }
  GgufSummary summary() const { return summary_; }

 private:
  [[noreturn]] void refuse(const Part& part, std::string_view what) const {
    throw LoadError(fmt::format("{}: tensor {}: {}", files_[part.shard].file.path().string(),
                                storage::printable(part.tensor->name), what));
  }

  void check_readable(const GgufTensor& tensor, size_t file) const {
    const storage::GgmlTypeInfo* type = storage::find_ggml_type(tensor.type);
    if (type->readable) return;
    refuse({static_cast<uint32_t>(file), &tensor, 0},
           fmt::format("type {} isn't supported; supported are {}", type->name,
                       storage::readable_ggml_types()));
  }

  // All experts have one format here: their own if the file has one of ours for all, else F32.
  void find_expert_dtype() {
    std::set<std::string_view> types, dense_types;
    uint64_t bytes = 0, weights = 0;
    std::set<DType> plain;
    for (const Part& part : tensors_) {
      const auto layer = layer_name(part.tensor->name);
      const bool expert = layer && published_name(kExpertNames, layer->rest);
      const bool quantized = is_quantized(part.type());
      if (quantized && !expert) dense_types.insert(storage::info_of(part.type()).name);
      if (!expert) continue;
      types.insert(storage::info_of(part.type()).name);
      plain.insert(plain_dtype(part.type()).value_or(DType::kF32));
      bytes += part.tensor->bytes;
      weights += static_cast<uint64_t>(part.tensor->elements());
      summary_.quantized_experts |= quantized;
    }
    summary_.quantized_dense = !dense_types.empty();
    summary_.expert_types = fmt::format("{}", fmt::join(types, ", "));
    summary_.dense_types = fmt::format("{}", fmt::join(dense_types, ", "));
    if (weights > 0) summary_.expert_bits = 8.0 * static_cast<double>(bytes) / weights;
    const bool one = plain.size() == 1 && !plain.contains(DType::kF16);
    expert_dtype_ = one ? *plain.begin() : DType::kF32;
  }

  DType dtype_of(const std::string& name, GgmlType type) const {
    const auto plain = plain_dtype(type);
    if (plain == DType::kF16 && has_experts_) return DType::kF32;
    if (plain) return *plain;
    return dense_ == QuantizedDense::kBf16 && is_dense_linear(name) ? DType::kBf16 : DType::kF32;
  }

  Mapped& add(std::string name, const Part& part, std::vector<int64_t> shape, DType dtype) {
    Mapped& mapped = mapped_.emplace_back();
    mapped.part = part;
    TensorInfo& info = mapped.info;
    info.name = std::move(name);
    info.dtype = dtype;
    info.dtype_name = storage::info_of(part.type()).name;
    info.shape = std::move(shape);
    info.shard = part.shard;
    info.bytes = static_cast<uint64_t>(info.elements()) * storage::dtype_bytes(dtype);
    const storage::GgmlTypeInfo& type = storage::info_of(part.type());
    const auto values = static_cast<uint64_t>(type.block_values);
    info.stored_bytes = static_cast<uint64_t>(info.elements()) / values * type.block_bytes;
    info.offset = part.tensor->offset + part.first / values * type.block_bytes;
    return mapped;
  }

  void add(const Part& part) {
    const std::string_view name = part.tensor->name;
    const auto layer = layer_name(name);
    if (!layer) {
      // Factors of llama3's rope scaling, which the config has (facts()).
      if (name == "rope_freqs.weight") return;
      const std::string known(published_name(kGlobalNames, name).value_or(name));
      add(known, part, part.tensor->shape, dtype_of(known, part.type()));
      return;
    }
    if (layer->rest == "attn_k_b.weight") return add_kv_b(part, layer->layer);
    if (layer->rest == "attn_v_b.weight") return require_k_b(part, layer->layer);
    if (const auto matrix = published_name(kExpertNames, layer->rest)) {
      return add_experts(part, layer->layer, *matrix);
    }
    const auto known = published_name(kLayerNames, layer->rest);
    if (!known) {  // who maps the model's tensors will refuse it by this name
      add(std::string(name), part, part.tensor->shape, DType::kF32);
      return;
    }
    const std::string published = fmt::format("model.layers.{}.{}", layer->layer, *known);
    Mapped& mapped = add(published, part, part.tensor->shape, dtype_of(published, part.type()));
    if (architecture_ == "llama") half_split(mapped, *known);
  }

  // llama's converter moves the two values of a rotary pair next to each other.
  void half_split(Mapped& mapped, std::string_view known) const {
    const bool q = known == "self_attn.q_proj.weight", k = known == "self_attn.k_proj.weight";
    if (!q && !k) return;
    const int64_t heads = metadata_.integer("llama.attention.head_count");
    const int64_t groups = metadata_.integer_or("llama.attention.head_count_kv", heads);
    const int64_t count = q ? heads : groups, rows = mapped.info.shape[0];
    if (count <= 0 || rows % count != 0 || rows / count % 2 != 0) {
      refuse(mapped.part, fmt::format("{} rows, expected {} heads of an even number", rows, count));
    }
    mapped.layout = Layout::kHalfSplit;
    mapped.head_rows = rows / count;
  }

  void add_experts(const Part& part, int64_t layer, std::string_view matrix) {
    const std::vector<int64_t>& shape = part.tensor->shape;
    if (shape.size() != 3) {
      refuse(part,
             fmt::format("shape [{}], expected [experts, rows, columns]", fmt::join(shape, ", ")));
    }
    const int64_t experts = metadata_.integer(architecture_ + ".expert_count");
    if (shape[0] != experts) {
      refuse(part,
             fmt::format("{} experts, {}.expert_count says {}", shape[0], architecture_, experts));
    }
    if (experts > kTensorsMax - std::ssize(mapped_)) {
      refuse(part, fmt::format("{} experts: more than {} tensors in all", experts, kTensorsMax));
    }
    Part one = part;
    for (int64_t expert = 0; expert < experts; ++expert) {
      one.first = static_cast<uint64_t>(expert * shape[1] * shape[2]);
      add(fmt::format("model.layers.{}.mlp.experts.{}.{}.weight", layer, expert, matrix), one,
          {shape[1], shape[2]}, expert_dtype_);
    }
  }

  void require_k_b(const Part& v_b, int64_t layer) const {
    const std::string other = fmt::format("blk.{}.attn_k_b.weight", layer);
    if (find(other) == nullptr) refuse(v_b, fmt::format("{} is missing", other));
  }

  // Of a file that has kv_b itself, too, that one is taken.
  void add_kv_b(const Part& k_b, int64_t layer) {
    if (find(fmt::format("blk.{}.attn_kv_b.weight", layer)) != nullptr) return;
    const std::string other = fmt::format("blk.{}.attn_v_b.weight", layer);
    const Part* v_b = find(other);
    if (v_b == nullptr) refuse(k_b, fmt::format("{} is missing", other));
    const std::vector<int64_t>& k = k_b.tensor->shape;
    const std::vector<int64_t>& v = v_b->tensor->shape;
    if (k.size() != 3 || v.size() != 3 || k[0] != v[0] || k[1] != v[2]) {
      refuse(k_b, fmt::format("shape [{}] beside [{}] of attn_v_b, expected [heads, rank, nope] "
                              "and [heads, v, rank]",
                              fmt::join(k, ", "), fmt::join(v, ", ")));
    }
    const std::string name = fmt::format("model.layers.{}.self_attn.kv_b_proj.weight", layer);
    const int64_t head_rows = k[2] + v[1];
    const bool same = k_b.type() == v_b->type();
    DType dtype = dtype_of(name, is_quantized(k_b.type()) ? k_b.type() : v_b->type());
    if (!same && dtype != DType::kBf16) dtype = DType::kF32;
    if (!same && !is_quantized(k_b.type()) && !is_quantized(v_b->type())) dtype = DType::kF32;
    Mapped& mapped = add(name, k_b, {k[0] * head_rows, k[1]}, dtype);
    mapped.layout = Layout::kKvB;
    mapped.v_b = *v_b;
    mapped.head_rows = head_rows;
    mapped.nope = k[2];
    mapped.info.stored_bytes = k_b.tensor->bytes + v_b->tensor->bytes;
    if (!same) {
      mapped.info.dtype_name += fmt::format("+{}", storage::info_of(v_b->type()).name);
    }
  }

  const std::vector<storage::GgufFile>& files_;
  const GgufMetadata& metadata_;
  const std::string architecture_;
  const bool has_experts_;
  const QuantizedDense dense_;
  std::vector<Part> tensors_;
  std::unordered_map<std::string_view, size_t> place_of_;  // in tensors_
  std::vector<Mapped> mapped_;
  DType expert_dtype_ = DType::kF32;
  GgufSummary summary_;
};

void store(std::span<const float> values, DType dtype, std::byte* out) {
  if (dtype == DType::kF32) {
    std::memcpy(out, values.data(), values.size_bytes());
    return;
  }
  CHECK(dtype == DType::kBf16);
  for (size_t i = 0; i < values.size(); ++i) {
    const uint16_t bits = kernels::float_to_bf16(values[i]);
    std::memcpy(out + i * sizeof bits, &bits, sizeof bits);
  }
}

// V3 and R1 choose 8 of 256 experts, by sigmoids, from 4 of 8 groups; older files leave groups out.
bool groups_are_missing(const GgufMetadata& metadata) {
  constexpr int64_t kSigmoid = 2, kExpertsOfV3 = 256;
  return gguf_architecture(metadata) == "deepseek2" &&
         !metadata.has("deepseek2.expert_group_count") &&
         metadata.integer_or("deepseek2.expert_gating_func", 0) == kSigmoid &&
         metadata.integer_or("deepseek2.expert_count", 0) == kExpertsOfV3;
}

class GgufFiles final : public GgufSource {
 public:
  GgufFiles(std::vector<storage::GgufFile> files, QuantizedDense dense)
      : file_(files[0].file.path()) {
    directory_ = file_.has_parent_path() ? file_.parent_path() : std::filesystem::path(".");
    for (storage::GgufFile& file : files) {
      Shard& shard = shards_.emplace_back();
      shard.file_name = file.file.path().filename().string();
      shard.file_bytes = file.file_bytes;
      shard.data_offset = file.header.data_offset;
      shard.fd = file.file.release();
    }
    files_ = std::move(files);
    const GgufMetadata metadata = this->metadata();
    Mapping mapping(files_, metadata, dense);
    mapped_ = mapping.run();
    for (const Mapped& mapped : mapped_) tensors_.push_back(mapped.info);
    facts_.has_head = mapping.find("output.weight") != nullptr;
    summary_ = mapping.summary();
    summary_.groups_are_missing = groups_are_missing(metadata);
    if (const Part* factors = mapping.rope_factors()) {
      facts_.rope_factors.resize(static_cast<size_t>(factors->tensor->elements()));
      read_floats(*factors, 0, facts_.rope_factors);
    }
  }

  void read(const TensorInfo& tensor, uint64_t begin, std::span<std::byte> out) const override {
    const size_t width = storage::dtype_bytes(tensor.dtype);
    CHECK_LE(begin, tensor.bytes);
    CHECK_LE(out.size(), tensor.bytes - begin);
    CHECK_EQ(begin % width, 0u);
    CHECK_EQ(out.size() % width, 0u);
    CHECK(&tensor >= tensors_.data() && &tensor < tensors_.data() + tensors_.size());
    const Mapped& mapped = mapped_[static_cast<size_t>(&tensor - tensors_.data())];
    const uint64_t first = begin / width, count = out.size() / width;
    if (mapped.layout == Layout::kRows) {
      read_values(mapped.part, mapped.part.first + first, count, tensor.dtype, out.data());
      return;
    }
    KHead head;
    const auto cols = static_cast<uint64_t>(tensor.shape.back());
    for (uint64_t at = first; at < first + count;) {
      const uint64_t row = at / cols, col = at % cols;
      const uint64_t piece = std::min(cols - col, first + count - at);
      std::byte* to = out.data() + (at - first) * width;
      if (mapped.layout == Layout::kHalfSplit) {
        const uint64_t from = half_split_row(row, static_cast<uint64_t>(mapped.head_rows));
        read_values(mapped.part, from * cols + col, piece, tensor.dtype, to);
      } else {
        read_kv_b(mapped, row, col, piece, head, to);
      }
      at += piece;
    }
  }

  std::optional<std::string> small_file(std::string_view name, uint64_t bytes_max) const override {
    std::optional<std::string> text;
    if (name == "config.json") {
      text = gguf_config_json(metadata(), facts_);
    } else if (name == "tokenizer.json") {
      text = beside(name, bytes_max);
      if (!text) text = gguf_tokenizer_json(metadata());
    } else if (name == "tokenizer_config.json") {
      text = beside(name, bytes_max);
      if (!text) text = gguf_tokenizer_config_json(metadata());
    } else if (name == "chat_template.jinja" || name.starts_with("LICENSE")) {
      text = beside(name, bytes_max);
    }
    if (text && text->size() > bytes_max) {
      throw LoadError(fmt::format("{}: metadata for {}: {} bytes, expected at most {}",
                                  file_.string(), name, text->size(), bytes_max));
    }
    return text;
  }

  const GgufSummary& summary() const override { return summary_; }
  bool has_tokenizer() const override {
    std::error_code error;
    return metadata().has("tokenizer.ggml.model") ||
           std::filesystem::exists(directory_ / "tokenizer.json", error);
  }
  const std::filesystem::path& file() const override { return file_; }

 private:
  // attn_k_b of one head as FP32, [rank, nope], kept while rows of it are read.
  struct KHead {
    std::optional<uint64_t> head;
    std::vector<float> values;
  };

  GgufMetadata metadata() const { return {files_[0].header, file_}; }

  // The user's own file is taken in place of what the metadata say.
  std::optional<std::string> beside(std::string_view name, uint64_t bytes_max) const {
    std::error_code error;
    if (!std::filesystem::exists(directory_ / name, error)) return std::nullopt;
    return storage::read_whole_file(directory_ / name, bytes_max);
  }

  // The row of the file that is row `row` of the published matrix.
  static uint64_t half_split_row(uint64_t row, uint64_t head_rows) {
    const uint64_t in_head = row % head_rows, half = head_rows / 2;
    return row - in_head + in_head % half * 2 + in_head / half;
  }

  void read_kv_b(const Mapped& mapped, uint64_t row, uint64_t col, uint64_t count, KHead& k_head,
                 std::byte* out) const {
    const auto rank = static_cast<uint64_t>(mapped.info.shape[1]);
    const auto nope = static_cast<uint64_t>(mapped.nope);
    const auto head_rows = static_cast<uint64_t>(mapped.head_rows);
    const uint64_t head = row / head_rows, in_head = row % head_rows;
    if (in_head >= nope) {
      const uint64_t v_row = head * (head_rows - nope) + in_head - nope;
      read_values(mapped.v_b, v_row * rank + col, count, mapped.info.dtype, out);
      return;
    }
    if (k_head.head != head) {
      k_head.values.resize(rank * nope);
      read_floats(mapped.part, head * rank * nope, k_head.values);
      k_head.head = head;
    }
    std::vector<float> column(count);
    for (uint64_t i = 0; i < count; ++i) column[i] = k_head.values[(col + i) * nope + in_head];
    store(column, mapped.info.dtype, out);
  }

  // Elements [first, first + count) of a file's tensor as dtype.
  void read_values(const Part& part, uint64_t first, uint64_t count, DType dtype,
                   std::byte* out) const {
    const size_t width = storage::dtype_bytes(dtype);
    if (plain_dtype(part.type()) == dtype) {
      read_file(shards_[part.shard], part.tensor->offset + first * width, {out, count * width},
                what(part));
      return;
    }
    for_each_step(part, first, count, [&](std::span<const float> values) {
      store(values, dtype, out);
      out += values.size() * width;
    });
  }

  void read_floats(const Part& part, uint64_t first, std::span<float> out) const {
    read_values(part, first, out.size(), DType::kF32, reinterpret_cast<std::byte*>(out.data()));
  }

  static std::string what(const Part& part) {
    return "tensor " + storage::printable(part.tensor->name);
  }

  // Calls take(values) with the values in order, some at a time.
  template <typename Take>
  void for_each_step(const Part& part, uint64_t first, uint64_t count, Take take) const {
    const storage::GgmlTypeInfo& type = storage::info_of(part.type());
    const auto block_values = static_cast<uint64_t>(type.block_values);
    const uint64_t blocks_at_once = std::max<uint64_t>(kStepBytes / type.block_bytes, 1);
    std::vector<std::byte> raw;
    std::vector<float> values;
    for (uint64_t at = first; at < first + count;) {
      const uint64_t block = at / block_values;
      const uint64_t end_block =
          std::min(block + blocks_at_once, (first + count + block_values - 1) / block_values);
      raw.resize((end_block - block) * type.block_bytes);
      values.resize((end_block - block) * block_values);
      read_file(shards_[part.shard], part.tensor->offset + block * type.block_bytes, raw,
                what(part));
      storage::dequantize(part.type(), raw, values);
      const uint64_t end = std::min(first + count, end_block * block_values);
      take(std::span<const float>(values).subspan(at - block * block_values, end - at));
      at = end;
    }
  }

  const std::filesystem::path file_;
  std::vector<storage::GgufFile> files_;  // their descriptors are the shards'
  std::vector<Mapped> mapped_;            // as tensors_
  GgufTensorFacts facts_;
  GgufSummary summary_;
};

}  // namespace

std::unique_ptr<const GgufSource> GgufSource::open(const std::filesystem::path& path,
                                                   QuantizedDense dense) {
  const std::filesystem::path first = storage::find_gguf(path).value_or(path);
  return std::make_unique<GgufFiles>(storage::open_gguf_files(first), dense);
}

}  // namespace atl::model
