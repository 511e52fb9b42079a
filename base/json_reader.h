// JSON text to values, whoever wrote the text: bounded depth and memory, linear time.
#pragma once

#include <cstddef>
#include <nlohmann/json_fwd.hpp>
#include <string_view>

#include "base/result.h"

namespace atl {

struct JsonBounds {
  int depth_max = 64;  // of objects and arrays within each other
  // Memory of the values, about: up to 32 bytes an element of a list, 150 a member of an object, 64
  // a list or object, and texts.
  size_t bytes_max = size_t{64} << 20;
};

// The order of keys is kept; of equal keys in one object the last value counts, where the first one
// stood. kInvalid: it is no JSON, and where; kUnsupported: more than the bounds. Without the name
// of what was read.
//   bytes  if not null: what the values take, in the measure of bytes_max
Result<nlohmann::ordered_json> read_json(std::string_view text, const JsonBounds& bounds,
                                         size_t* bytes = nullptr);

// The bound of a file of ours, from its size: what we write takes less.
JsonBounds bounds_of_file(size_t file_bytes);

}  // namespace atl
