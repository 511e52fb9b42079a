#include "cli/byte_size_option.h"

#include <CLI/CLI.hpp>
#include <utility>

#include "base/units.h"

namespace atl::cli {

void add_byte_size_option(CLI::App& command, const std::string& name, const std::string& help,
                          std::function<void(uint64_t)> take) {
  const auto refuse = [](const std::string& text) {
    const Result<uint64_t> bytes = parse_bytes(text);
    return bytes ? std::string() : bytes.error().message;
  };
  command
      .add_option_function<std::string>(
          name, [take = std::move(take)](const std::string& text) { take(*parse_bytes(text)); },
          help)
      ->check(CLI::Validator(refuse, ""))
      ->type_name("SIZE");
}

}  // namespace atl::cli
