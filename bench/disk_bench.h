// What a drive gives by itself, and what the reader of packs makes of it: `atoll bench disk`.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "bench/fio_rate.h"
#include "storage/pack/pack_reader.h"

namespace atl::bench {

// Experts that are under way at the same time, as when a layer misses several.
inline constexpr int kDiskExpertsAtOnce = 4;
struct DiskBenchOptions {
  std::filesystem::path dir;
  std::vector<std::string> blocks{"64KiB", "256KiB", "1MiB", "2MiB", "4MiB"};
  std::vector<int64_t> depths{1, 2, 4, 8, 16};
  std::string file_bytes = "4GiB";
  double seconds_per_case = 0.1;
  int repeats = 5;
  bool use_fio = true;
  storage::PackIo io = storage::PackIo::kAuto;  // of the reader
  bool json = false;
};

struct DiskCase {
  size_t block_bytes = 0;
  int depth = 0;
  std::vector<double> in_turn, same;  // bytes per second, by the memory read to
  std::optional<FioRate> fio;
};

// A way to read and its rates in the last comparison, all taken in turns.
struct DiskContender {
  size_t block_bytes = 0;
  int depth = 0;
  std::vector<double> rates;
};

struct DiskReport {
  std::string files;  // "1 file of 10.5 GiB"
  bool io_uring = false;
  uint64_t memory_bytes = 0;
  std::string no_fio;  // why there is none
  bool fio_huge_pages = true;
  std::vector<DiskCase> cases;
  std::string reader;  // "" where the directory is no pack
  uint64_t expert_bytes = 0;
  std::vector<double> reader_rates, of_in_turn, of_best;
  DiskContender in_turn, same, fio;
};

// LoadError: files that can't be read, no room for the scratch file, no block that fits.
DiskReport measure_disk(const DiskBenchOptions& options);

}  // namespace atl::bench
