// An option whose value is a number of bytes.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

namespace CLI {
class App;
}

namespace atl::cli {

// `name SIZE`: plain bytes or with a unit, such as 8GiB (parse_bytes()); `take` gets them.
void add_byte_size_option(CLI::App& command, const std::string& name, const std::string& help,
                          std::function<void(uint64_t)> take);

}  // namespace atl::cli
