// Writes which experts each step wanted to a file, for simulators of caches and placements.
//
// The file: a line of JSON about the model, then records, little-endian (docs/profiling.md):
//   u32 step, u16 layer, u16 rows, u16 n, and n times u16 expert, u16 rows that chose it,
// experts ascending. Which row chose what, whose it was and what it said is not in it.
//
// The engine's thread puts a step into memory, another one writes it: a slow drive costs records,
// told by steps_lost(), never time. The file has a bound; at it recording ends.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <mutex>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "model/config.h"

namespace atl::coordinator {

struct RoutingRecorderOptions {
  std::filesystem::path file;  // replaced
  uint64_t bytes_max = uint64_t{256} << 20;
  std::string model_name, checkpoint_fingerprint;
};

class RoutingRecorder {
 public:
  // LoadError if the file can't be made.
  RoutingRecorder(RoutingRecorderOptions options, const model::ModelConfig& config);
  ~RoutingRecorder();  // what was recorded is in the file

  // The engine's thread. ids [rows, num_experts_per_tok], -1: none.
  void begin_step();
  void on_layer(int64_t layer, std::span<const int32_t> ids);

  uint64_t steps_lost() const;  // any thread; the drive was too slow for them

 private:
  static constexpr size_t kWaitingBytesMax = 4 << 20;

  void hand_over();
  void write();

  const RoutingRecorderOptions options_;
  const size_t top_k_;
  std::ofstream out_;  // the writer's thread
  // The engine's thread:
  uint32_t step_ = 0;
  bool full_ = false;
  uint64_t bytes_ = 0;  // of the file, what waits counted in
  std::string of_step_;
  std::vector<uint32_t> rows_of_;  // [experts] of a layer

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::string waiting_;
  uint64_t lost_ = 0;
  bool stopping_ = false;
  std::thread writer_;
};

}  // namespace atl::coordinator
