// Loads tiles of a checkpoint and ends: the process whose memory memory_limit_test watches.
//   load_tiles MODEL_DIR FIRST_TILE LAST_TILE THREADS WINDOW_BYTES
// Prints the bytes that are resident at the end.
#include <cstdio>
#include <cstdlib>
#include <numeric>
#include <vector>

#include "base/result.h"
#include "model/config.h"
#include "model/weights_map.h"
#include "storage/checkpoint/checkpoint.h"
#include "storage/tiles/tile_store.h"

int main(int argc, char** argv) {
  if (argc != 6) return 2;
  try {
    const atl::model::ModelConfig config = atl::model::load_config(argv[1]);
    const auto checkpoint = atl::storage::Checkpoint::open(argv[1]);
    const auto catalog = atl::model::map_experts(config, checkpoint);
    atl::storage::TileStoreOptions options;
    options.reader.num_threads = std::atoi(argv[4]);
    options.reader.window_bytes = static_cast<size_t>(std::atoll(argv[5]));
    atl::storage::TileStore store(checkpoint, catalog, {}, options);
    std::vector<int> tiles(static_cast<size_t>(std::atoi(argv[3]) - std::atoi(argv[2]) + 1));
    std::iota(tiles.begin(), tiles.end(), std::atoi(argv[2]));
    atl::NoProgress progress;
    store.plan(tiles);
    store.fill(progress);
    std::printf("%llu\n", static_cast<unsigned long long>(store.resident_bytes(tiles)));
  } catch (const atl::LoadError& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return 0;
}
