// Ids of different things are different types, so that swapping two of them doesn't compile.
#pragma once

#include <compare>
#include <cstdint>
#include <functional>
#include <ostream>

namespace atl {

template <typename Tag, typename Value>
struct Id {
  Value value{};
  constexpr Id() = default;
  constexpr explicit Id(Value v) : value(v) {}
  friend constexpr auto operator<=>(const Id&, const Id&) = default;
  friend std::ostream& operator<<(std::ostream& os, const Id& id) { return os << id.value; }
};

using NodeId = Id<struct NodeIdTag, uint32_t>;          // place of a node in the plan, from 0
using SessionId = Id<struct SessionIdTag, uint64_t>;    // one coordinator's use of one node
using DispatchId = Id<struct DispatchIdTag, uint64_t>;  // counts up within a session
using Epoch = Id<struct EpochTag, uint32_t>;            // version of the placement plan

// One routed expert: the layer's index in the checkpoint and the expert's in the layer.
struct ExpertKey {
  int32_t layer = 0;
  int32_t expert = 0;
  friend constexpr auto operator<=>(const ExpertKey&, const ExpertKey&) = default;
};

}  // namespace atl
