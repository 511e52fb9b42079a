#include "model/conversion_loss.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <optional>

#include "base/check.h"
#include "kernels/int4.h"
#include "kernels/int8.h"
#include "kernels/ops.h"
#include "kernels/panel.h"

namespace atl::model {
namespace {

using kernels::WeightFormat;
using storage::MatrixSource;

constexpr size_t kMatrices = 24;
constexpr int64_t kRowsOfMatrix = 4;
// Experts in int8 from here on: of Q5_K (5.5) int4 would lose more than half of what it has.
constexpr double kInt8Bits = 5;

// The values of a group as they are held.
void hold(WeightFormat format, std::span<const float> group, std::span<float> held) {
  const auto n = static_cast<int64_t>(group.size());
  int8_t codes[kernels::kScaleBlock];
  float scale = 0;
  switch (format) {
    case WeightFormat::kInt4: {
      uint16_t bits = 0;
      kernels::quantize_int4(group.data(), n, codes, &bits);
      scale = kernels::bf16_to_float(bits);
      break;
    }
    case WeightFormat::kInt8:
      kernels::quantize_int8(group.data(), n, codes, &scale);
      break;
    case WeightFormat::kFp8E4m3: {
      float largest = 0;
      for (const float value : group) largest = std::max(largest, std::abs(value));
      scale = largest / 448;
      for (size_t i = 0; i < group.size(); ++i) {
        const uint8_t code = scale == 0 ? 0 : kernels::float_to_e4m3(group[i] / scale);
        held[i] = kernels::e4m3_to_float(code) * scale;
      }
      return;
    }
    case WeightFormat::kBf16:
      for (size_t i = 0; i < group.size(); ++i) {
        held[i] = kernels::bf16_to_float(kernels::float_to_bf16(group[i]));
      }
      return;
    default:
      std::copy(group.begin(), group.end(), held.begin());
      return;
  }
  for (size_t i = 0; i < group.size(); ++i) held[i] = scale * static_cast<float>(codes[i]);
}

std::vector<float> read_row(const storage::TensorSource& source, const MatrixSource& matrix,
                            int64_t row) {
  std::vector<std::byte> raw(storage::row_bytes(matrix));
  std::vector<float> values(static_cast<size_t>(matrix.cols));
  source.read(*matrix.weight, static_cast<uint64_t>(row) * raw.size(), raw);
  kernels::load_weights_row(raw.data(), matrix.cols, matrix.format, values.data());
  return values;
}

// Evenly spread, the first and the last among them.
template <typename T>
std::vector<T> some_of(std::span<const T> all, size_t count) {
  if (all.size() <= count) return {all.begin(), all.end()};
  std::vector<T> some;
  for (size_t i = 0; i < count; ++i) some.push_back(all[i * (all.size() - 1) / (count - 1)]);
  return some;
}

std::string note(std::string_view what, std::string_view types, WeightFormat held,
                 const ConversionLoss& loss, std::string_view option) {
  return fmt::format(
      "{} of {} in the file are held in {}: relative rms error {:.2g} (of {} rows); {} f32 loses "
      "nothing",
      what, types, kernels::to_string(held), loss.relative_rms, loss.rows, option);
}

std::vector<const MatrixSource*> expert_matrices(const storage::ExpertCatalog& catalog) {
  std::vector<const MatrixSource*> matrices;
  for (const std::vector<storage::ExpertSource>& layer : catalog.experts) {
    for (const storage::ExpertSource& expert : layer) {
      for (const MatrixSource* matrix : {&expert.gate, &expert.up, &expert.down}) {
        matrices.push_back(matrix);
      }
    }
  }
  return matrices;
}

std::vector<const MatrixSource*> dense_matrices(const ModelTensors& tensors) {
  std::vector<const MatrixSource*> matrices = {&tensors.lm_head};
  for (const LayerTensors& layer : tensors.layers) {
    for (const MatrixSource* matrix : whole_matrices(layer.attention)) matrices.push_back(matrix);
    for (const MatrixSource* matrix :
         {&layer.ffn.gate_proj, &layer.ffn.up_proj, &layer.ffn.down_proj}) {
      if (matrix->weight != nullptr) matrices.push_back(matrix);
    }
  }
  return matrices;
}

}  // namespace

NumericsProfile held_of_gguf(const GgufSummary& summary, const NumericsProfile& asked) {
  NumericsProfile profile = asked;
  if (summary.quantized_experts && !profile.format) {
    profile.format = summary.expert_bits < kInt8Bits ? WeightFormat::kInt4 : WeightFormat::kInt8;
  }
  if (summary.quantized_dense && !profile.dense_format) profile.dense_format = WeightFormat::kBf16;
  return profile;
}

ConversionLoss conversion_loss(const storage::TensorSource& source,
                               std::span<const MatrixSource* const> matrices, WeightFormat held) {
  ConversionLoss loss;
  double errors = 0, squares = 0;
  const int64_t group = held == WeightFormat::kInt4 ? kernels::kInt4Group : kernels::kScaleBlock;
  for (const MatrixSource* matrix : some_of(matrices, kMatrices)) {
    const int64_t rows = std::min(kRowsOfMatrix, matrix->rows);
    for (int64_t i = 0; i < rows; ++i) {
      const std::vector<float> row = read_row(source, *matrix, i * (matrix->rows - 1) / rows);
      std::vector<float> as_held(row.size());
      for (size_t at = 0; at < row.size(); at += static_cast<size_t>(group)) {
        const size_t n = std::min(static_cast<size_t>(group), row.size() - at);
        hold(held, std::span(row).subspan(at, n), std::span(as_held).subspan(at, n));
      }
      for (size_t k = 0; k < row.size(); ++k) {
        const double error = static_cast<double>(as_held[k]) - row[k];
        errors += error * error;
        squares += static_cast<double>(row[k]) * row[k];
      }
      ++loss.rows;
    }
  }
  loss.relative_rms = squares == 0 ? 0 : std::sqrt(errors / squares);
  return loss;
}

std::vector<std::string> conversion_notes(const GgufSource& source, const ModelConfig& config,
                                          const NumericsProfile& settled) {
  std::vector<std::string> notes;
  if (source.summary().groups_are_missing) {
    notes.push_back(
        "key deepseek2.expert_group_count: missing; experts are chosen from all, where DeepSeek-V3 "
        "and R1 as published choose from 4 of 8 groups: a file of a newer converter says so");
  }
  const auto loses = [](const std::optional<WeightFormat>& held) {
    return held && *held != WeightFormat::kF32;
  };
  if (source.summary().quantized_experts && loses(settled.format)) {
    const storage::ExpertCatalog catalog = map_experts(config, source);
    const auto loss = conversion_loss(source, expert_matrices(catalog), *settled.format);
    notes.push_back(
        note(fmt::format("experts ({:.2f} bits a weight)", source.summary().expert_bits),
             source.summary().expert_types, *settled.format, loss, "--format"));
  }
  if (source.summary().quantized_dense && loses(settled.dense_format)) {
    const ModelTensors tensors = map_tensors(config, source);
    const auto loss = conversion_loss(source, dense_matrices(tensors), *settled.dense_format);
    notes.push_back(note("other linear layers", source.summary().dense_types, *settled.dense_format,
                         loss, "--dense-format"));
  }
  return notes;
}

}  // namespace atl::model
