#include "kernels/cuda/launches.h"

#include <algorithm>

#include "kernels/int4.h"

namespace atl::kernels::cuda {

std::vector<PanelGroup> panel_groups(const PanelShape& shape) {
  std::vector<PanelGroup> groups;
  if (shape.format == WeightFormat::kInt4) {
    for_each_int4_group(shape.k, shape.k_offset, [&](const Int4Group& group) {
      groups.push_back({static_cast<int32_t>(group.begin), static_cast<int32_t>(group.end),
                        static_cast<uint32_t>(group.codes / sizeof(uint32_t)),
                        static_cast<uint32_t>(group.scales / sizeof(uint16_t))});
    });
    return groups;
  }
  const auto per_word = static_cast<int64_t>(sizeof(uint32_t) / code_bytes(shape.format));
  int64_t begin = 0;
  for (int64_t g = 0; g < shape.num_groups(); ++g) {
    const int64_t end = std::min(shape.k, shape.first_group() + g * kScaleBlock);
    groups.push_back({static_cast<int32_t>(begin), static_cast<int32_t>(end),
                      static_cast<uint32_t>(begin / per_word * kPanelWidth),
                      static_cast<uint32_t>(shape.scale_per_output ? g * kPanelWidth : g)});
    begin = end;
  }
  return groups;
}

}  // namespace atl::kernels::cuda
