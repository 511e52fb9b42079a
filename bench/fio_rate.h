// The drive's rate as the program fio tells it, where it is installed.
#pragma once

#include <cstddef>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

namespace atl::bench {

// Path of fio in PATH; "" if there is none.
std::string find_fio();

struct FioRate {
  double bytes_per_second = 0;
  bool huge_pages = false;  // fio's buffers; needs pages set aside (vm.nr_hugepages)
};

// Random O_DIRECT reads by fio's io_uring engine for `seconds`. nullopt, with one log line, if it
// fails.
std::optional<FioRate> measure_fio(const std::string& fio,
                                   const std::vector<std::filesystem::path>& files,
                                   size_t block_bytes, int depth, double seconds);

}  // namespace atl::bench
