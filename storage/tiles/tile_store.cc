#include "storage/tiles/tile_store.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <memory>
#include <numeric>

#include "base/check.h"
#include "base/log.h"
#include "base/units.h"
#include "storage/pack/pack_reader.h"
#include "storage/tiles/checkpoint_tiles.h"
#include "storage/tiles/usage_file.h"

namespace atl::storage {
namespace {

using TileState = ExpertCache::TileState;

// Uses lose half of their weight in as many Dispatches as this many tokens have.
constexpr double kHalfLifeTokens = 1024;
// Experts that fill() has under way: enough to keep drives busy, few enough to hold nobody up.
constexpr size_t kFillReads = 4;
constexpr size_t kPopulateBytes = 32 * kMiB;
// Experts that are read because of hints at the same time.
constexpr size_t kHintReadsMax = 16;

void warn_once_about_cold_reads() {
  static std::once_flag warned;
  std::call_once(warned, [] {
    log_warn(
        "expert tiles that are not in RAM are read from an unpacked checkpoint and re-laid each "
        "time: slow; run 'atoll pack' and serve the pack, or keep more tiles in RAM");
  });
}

size_t latency_bucket(double seconds) {
  const auto us = static_cast<uint64_t>(seconds * 1e6);
  const size_t bucket = us < 2 ? 0 : static_cast<size_t>(std::bit_width(us)) - 1;
  return std::min(bucket, ExpertCacheStats::kLatencyBuckets - 1);
}

}  // namespace

// ---- Setting up --------------------------------------------------------------------------------

TileStore::TileStore(const TensorSource& checkpoint, const ExpertCatalog& catalog,
                     HeldFormat format, TileStoreOptions options)
    : TileStore(std::make_unique<CheckpointTiles>(checkpoint, catalog, format), catalog,
                std::move(options)) {}

TileStore::TileStore(std::span<const Pack* const> packs, const ExpertCatalog& catalog,
                     HeldFormat format, TileStoreOptions options)
    : TileStore(make_pack_tiles(packs, catalog, format), catalog, std::move(options)) {}

TileStore::TileStore(const Pack& pack, const ExpertCatalog& catalog, HeldFormat format,
                     TileStoreOptions options)
    : TileStore(std::vector<const Pack*>{&pack}, catalog, format, std::move(options)) {}

TileStore::TileStore(std::unique_ptr<TileSource> source, const ExpertCatalog& catalog,
                     TileStoreOptions options)
    : source_(std::move(source)),
      catalog_(catalog),
      options_(std::move(options)),
      layouts_(source_->layouts()),
      clock_(options_.clock != nullptr ? *options_.clock : steady_clock_),
      changed_(options_.threads->make_condition()) {
  for (const kernels::TileLayout& layout : layouts_) {
    slot_bytes_ = std::max<uint64_t>(slot_bytes_, layout.bytes);
  }
  CHECK_GT(slot_bytes_, 0u);
  place_of_layer_.assign(static_cast<size_t>(catalog.num_layers), -1);
  for (size_t place = 0; place < catalog.moe_layers.size(); ++place) {
    place_of_layer_.at(static_cast<size_t>(catalog.moe_layers[place])) = static_cast<int>(place);
  }
}

TileStore::~TileStore() {
  stop_filling();
  reader_.reset();
}

uint64_t TileStore::resident_bytes(std::span<const int> tiles) const {
  check_tiles(tiles);
  uint64_t bytes = 0;
  for (const int tile : tiles) bytes += layouts_[static_cast<size_t>(tile)].bytes;
  return bytes * catalog_.moe_layers.size() * static_cast<uint64_t>(catalog_.n_routed_experts);
}

uint64_t TileStore::read_bytes(std::span<const int> tiles) const {
  check_tiles(tiles);
  return source_->read_bytes(tiles);
}

// Tables, and what reading takes.
uint64_t TileStore::overhead_bytes(uint64_t slots) const {
  const size_t experts =
      catalog_.moe_layers.size() * static_cast<size_t>(catalog_.n_routed_experts);
  return ExpertCache::table_bytes(experts, num_tiles(), slots) +
         source_->memory_bytes(options_.reader);
}

void TileStore::check_tiles(std::span<const int> tiles) const {
  for (size_t i = 0; i < tiles.size(); ++i) {
    const bool ascending = i == 0 || tiles[i - 1] < tiles[i];
    if (!ascending || tiles[i] < 0 || tiles[i] >= num_tiles()) {
      throw LoadError(fmt::format("tile {} in a tile list: expected ascending tiles from 0 to {}",
                                  tiles[i], num_tiles() - 1));
    }
  }
}

// Before any memory is taken: what the source leaves out can't be loaded.
void TileStore::require(std::span<const int> tiles) const {
  for (size_t place = 0; place < catalog_.moe_layers.size(); ++place) {
    for (const int tile : tiles) {
      if (const Status status = source_->has(place, tile); !status) {
        throw LoadError(status.error().message);
      }
    }
  }
}

size_t TileStore::num_slots(std::span<const int> tiles) const {
  const uint64_t experts =
      catalog_.moe_layers.size() * static_cast<uint64_t>(catalog_.n_routed_experts);
  const uint64_t all = experts * static_cast<uint64_t>(num_tiles());
  if (options_.ram_bytes_max) {
    const uint64_t ram = *options_.ram_bytes_max;
    if (ram < ram_bytes_min()) {
      throw LoadError(fmt::format("{} of RAM for expert tiles: expected at least {}",
                                  format_bytes(ram), format_bytes(ram_bytes_min())));
    }
    const uint64_t overhead =
        overhead_bytes(ram / slot_bytes_);  // of more slots than there will be
    const uint64_t slots = ram > overhead ? (ram - overhead) / slot_bytes_ : 0;
    return std::clamp<uint64_t>(slots, 2, all);
  }
  const uint64_t spare = std::max<uint64_t>(kSpareSlotBytes / slot_bytes_, 2 * layouts_.size());
  return std::min(experts * tiles.size() + spare, all);
}

uint64_t TileStore::ram_bytes(std::span<const int> tiles) const {
  check_tiles(tiles);
  const uint64_t slots = num_slots(tiles);
  return slots * slot_bytes_ + overhead_bytes(slots);
}

int TileStore::room(std::span<const int> tiles) const {
  check_tiles(tiles);
  const size_t experts =
      catalog_.moe_layers.size() * static_cast<size_t>(catalog_.n_routed_experts);
  return experts == 0 ? num_tiles() : static_cast<int>(num_slots(tiles) / experts);
}

void TileStore::plan(std::span<const int> tiles) {
  check_tiles(tiles);
  require(tiles);
  if (options_.admit) options_.admit(ram_bytes(tiles));
  const size_t slots = num_slots(tiles);
  const size_t experts =
      catalog_.moe_layers.size() * static_cast<size_t>(catalog_.n_routed_experts);
  std::unique_ptr<ExpertReader> reader;
  {
    const std::lock_guard lock(mutex_);
    reader = std::move(reader_);
  }
  reader.reset();  // reads under way end here
  {
    const std::lock_guard lock(mutex_);
    planned_.clear();
    cache_.reset();
    reading_.clear();
    errors_.clear();
    arena_ = HostBuffer();
  }
  // Registering memory pins it, which may take long: others may ask for statistics meanwhile.
  HostBuffer arena(slots * slot_bytes_);
  reader = source_->make_reader(options_.reader);
  reader->use_memory(arena.span());

  const std::lock_guard lock(mutex_);
  CHECK(reading_.empty());  // nothing is read into the memory that went
  arena_ = std::move(arena);
  cache_.emplace(
      experts, num_tiles(), slots, options_.eviction,
      kHalfLifeTokens * static_cast<double>(std::max<size_t>(1, catalog_.moe_layers.size())));
  load_usage();
  hinted_.assign(experts, false);
  stats_ = {};
  stats_.slot_bytes = slot_bytes_;
  stats_.slots = slots;
  stats_.stall_seconds.assign(static_cast<size_t>(catalog_.num_layers), 0);
  reader_ = std::move(reader);
  planned_.assign(tiles.begin(), tiles.end());
  log_debug("expert tiles: {} slots of {}, read by {}", slots, format_bytes(slot_bytes_),
            reader_->describe());
}

// ---- Use counts --------------------------------------------------------------------------------

void TileStore::load_usage() {
  const bool has_own = !options_.usage_file.empty() && std::filesystem::exists(options_.usage_file);
  const std::filesystem::path& file = has_own ? options_.usage_file : options_.first_usage;
  if (file.empty()) return;
  std::vector<double> uses = read_usage_file(file, catalog_, options_.checkpoint_fingerprint);
  if (!has_own) bound_uses(uses);
  for (size_t index = 0; index < uses.size(); ++index) cache_->set_uses(index, uses[index]);
}

// Counts of days would outweigh what is asked for from now on: no layer has more than a half-life's
// tokens make.
void TileStore::bound_uses(std::vector<double>& uses) const {
  const auto experts = static_cast<size_t>(catalog_.n_routed_experts);
  double most = 0;
  for (size_t begin = 0; begin < uses.size(); begin += experts) {
    const auto first = uses.begin() + static_cast<ptrdiff_t>(begin);
    most = std::max(most, std::accumulate(first, first + static_cast<ptrdiff_t>(experts), 0.0));
  }
  const double bound = kHalfLifeTokens * static_cast<double>(catalog_.num_experts_per_tok);
  if (most <= bound) return;
  for (double& use : uses) use *= bound / most;
}

void TileStore::save_usage() const {
  if (options_.usage_file.empty()) return;
  std::vector<double> uses;
  {
    const std::lock_guard lock(mutex_);
    if (!is_planned()) return;  // a file that plan() has refused stays
    const size_t experts =
        catalog_.moe_layers.size() * static_cast<size_t>(catalog_.n_routed_experts);
    for (size_t index = 0; index < experts; ++index) uses.push_back(cache_->uses(index));
  }
  try {
    write_usage_file(options_.usage_file, catalog_, options_.checkpoint_fingerprint, uses);
  } catch (const LoadError& error) {
    log_warn("expert usage not saved: {}", error.what());
  }
}

// The most used first; of equal ones all layers' first experts, then all layers' second ones, so
// that RAM that does not hold all holds a share of each layer.
std::vector<size_t> TileStore::fill_order() const {
  const auto experts = static_cast<size_t>(catalog_.n_routed_experts);
  std::vector<size_t> order(catalog_.moe_layers.size() * experts);
  for (size_t i = 0; i < order.size(); ++i) {
    order[i] = i % catalog_.moe_layers.size() * experts + i / catalog_.moe_layers.size();
  }
  const std::lock_guard lock(mutex_);
  std::stable_sort(order.begin(), order.end(),
                   [this](size_t a, size_t b) { return cache_->uses(a) > cache_->uses(b); });
  return order;
}

// ---- Filling -----------------------------------------------------------------------------------

void TileStore::stop_filling() {
  {
    const std::lock_guard lock(mutex_);
    stop_filling_ = true;
  }
  changed_->notify_all();
}

// Backs the first slots with memory, ahead of the reads into them: clearing pages takes longer than
// a fast drive, and a ring's thread would do it one page after the other.
std::vector<std::jthread> TileStore::populate_ahead(size_t num_slots) {
  const auto next = std::make_shared<std::atomic<size_t>>(0);
  const size_t end = num_slots * slot_bytes_;
  std::vector<std::jthread> threads;
  for (int i = 0; i < options_.reader.num_threads; ++i) {
    threads.emplace_back([this, next, end] {
      size_t begin = 0;
      while (!stop_filling_ && (begin = next->fetch_add(kPopulateBytes)) < end) {
        arena_.populate(begin, std::min(kPopulateBytes, end - begin));
      }
    });
  }
  return threads;
}

void TileStore::fill(Progress& progress) {
  const std::vector<size_t> order = planned_.empty() ? std::vector<size_t>{} : fill_order();
  const size_t slots = cache_->num_slots();
  const size_t fitting = planned_.empty() ? 0 : std::min(order.size(), slots / planned_.size());
  const auto populating = populate_ahead(fitting * planned_.size());
  fill(order, fitting, planned_, progress);
}

void TileStore::fill_free(std::span<const int> tiles, Progress& progress) {
  check_tiles(tiles);
  require(tiles);
  const std::vector<size_t> order = tiles.empty() ? std::vector<size_t>{} : fill_order();
  fill(order, order.size(), tiles, progress);
}

// Experts in this order, at most so many of them.
void TileStore::fill(const std::vector<size_t>& order, size_t fitting, std::span<const int> tiles,
                     Progress& progress) {
  const uint64_t bytes_each = order.empty() ? 0 : read_bytes(tiles) / order.size();
  progress.start(bytes_each * fitting);
  std::optional<Error> first_error;
  std::vector<size_t> under_way;
  std::unique_lock lock(mutex_);
  const auto settle = [&](size_t most) {
    const auto ended = [&] {
      return std::erase_if(under_way, [&](size_t index) {
        if (cache_->is_reading(index)) return false;
        if (const Error* error = error_of(index, tiles); error && !first_error) {
          first_error = *error;
        }
        progress.advance(bytes_each);
        return true;
      });
    };
    while (ended(), under_way.size() > most) changed_->wait(lock);
  };
  for (size_t i = 0; i < fitting && !stop_filling_; ++i) {
    settle(kFillReads - 1);
    if (all_here(order[i], tiles)) {
      progress.advance(bytes_each);
      continue;
    }
    while (cache_->is_reading(order[i])) changed_->wait(lock);  // other tiles, for a Dispatch
    if (!try_start(order[i], tiles, ReadUrgency::kAhead, false)) {
      progress.advance(bytes_each * (fitting - i));  // others have filled the slots
      break;
    }
    under_way.push_back(order[i]);
  }
  settle(0);
  if (first_error) throw LoadError(first_error->message);
}

// ---- Reading -----------------------------------------------------------------------------------

std::vector<int> TileStore::absent_tiles(size_t index, std::span<const int> tiles) const {
  std::vector<int> absent;
  for (const int tile : tiles) {
    if (cache_->state(index, tile) == TileState::kAbsent) absent.push_back(tile);
  }
  return absent;
}

bool TileStore::all_here(size_t index, std::span<const int> tiles) const {
  return std::all_of(tiles.begin(), tiles.end(),
                     [&](int tile) { return cache_->state(index, tile) == TileState::kHere; });
}

const Error* TileStore::error_of(size_t index, std::span<const int> tiles) const {
  for (const int tile : tiles) {
    const auto found = errors_.find({index, tile});
    if (found != errors_.end()) return &found->second;
  }
  return nullptr;
}

// Starts to read the absent ones of these tiles. False if there is no room.
bool TileStore::try_start(size_t index, std::span<const int> tiles, ReadUrgency urgency,
                          bool may_evict) {
  const std::vector<int> absent = absent_tiles(index, tiles);
  if (absent.empty()) return true;
  if (cache_->is_reading(index)) return false;  // other tiles: one read of an expert at a time
  std::vector<size_t> evicted;
  const bool room = may_evict ? cache_->make_room(absent.size(), &evicted)
                              : cache_->free_slots() >= absent.size();
  for (const size_t gone : evicted) {
    if (hinted_[gone]) ++stats_.hints_wasted;
    hinted_[gone] = false;
  }
  if (!room) return false;
  std::vector<TileTarget> targets;
  for (const int tile : absent) {
    std::byte* data = slot_data(cache_->start_reading(index, tile));
    targets.push_back({&layouts_[static_cast<size_t>(tile)], data});
  }
  const auto experts = static_cast<size_t>(catalog_.n_routed_experts);
  CHECK(!reading_.contains(index));
  Reading& reading = reading_[index];
  reading.start = clock_.now();
  reading.ticket =
      reader_->start(index / experts, static_cast<int64_t>(index % experts), std::move(targets),
                     urgency, [this, index, absent](size_t target, const Status& status) {
                       tile_done(index, absent[target], status);
                     });
  return true;
}

void TileStore::tile_done(size_t index, int tile, const Status& status) {
  const std::lock_guard lock(mutex_);
  if (status.ok()) {
    stats_.bytes_read += layouts_[static_cast<size_t>(tile)].bytes;
    cache_->end_reading(index, tile, TileState::kHere);
  } else {
    // Damage stays; what could not be read may be read later.
    const bool bad = status.error().code == ErrorCode::kCorrupt && reads_tiles_alone();
    if (bad) {
      ++stats_.tiles_bad;
      log_error("{}", status.error().message);
    }
    errors_.insert_or_assign({index, tile}, status.error());
    cache_->end_reading(index, tile, bad ? TileState::kBad : TileState::kAbsent);
  }
  if (cache_->is_reading(index)) return;
  const auto reading = reading_.find(index);
  CHECK(reading != reading_.end());
  ++stats_.read_latency[latency_bucket(seconds_between(reading->second.start, clock_.now()))];
  reading_.erase(reading);
  changed_->notify_all();
}

// ---- Requests ----------------------------------------------------------------------------------

Status TileStore::check_request(int32_t layer, std::span<const int32_t> experts,
                                std::span<const int> tiles) const {
  const bool known_layer =
      layer >= 0 && layer < catalog_.num_layers && place_of_layer_[static_cast<size_t>(layer)] >= 0;
  if (!known_layer) {
    return Error{ErrorCode::kInvalid, fmt::format("layer {} has no routed experts", layer)};
  }
  for (const int32_t expert : experts) {
    if (expert >= 0 && expert < catalog_.n_routed_experts) continue;
    return Error{ErrorCode::kInvalid, fmt::format("expert {}/{}: expected an expert from 0 to {}",
                                                  layer, expert, catalog_.n_routed_experts - 1)};
  }
  const auto place = static_cast<size_t>(place_of_layer_[static_cast<size_t>(layer)]);
  for (const int tile : tiles) {
    if (tile < 0 || tile >= num_tiles()) {
      return Error{ErrorCode::kInvalid,
                   fmt::format("tile {} of layer {}: expected a tile from 0 to {}", tile, layer,
                               num_tiles() - 1)};
    }
    if (const Status status = source_->has(place, tile); !status) return status;
  }
  return {};
}

Result<TileBatch> TileStore::request(int32_t layer, std::span<const int32_t> experts,
                                     std::span<const int> tiles) {
  CHECK(reader_ != nullptr);
  if (const Status status = check_request(layer, experts, tiles); !status) return status.error();
  TileBatch batch(*this, layer, tiles);
  const auto place = static_cast<size_t>(place_of_layer_[static_cast<size_t>(layer)]);
  const std::lock_guard lock(mutex_);
  cache_->tick();
  for (const int32_t expert : experts) {
    const size_t index = cache_index(place, expert);
    batch.experts_.push_back({index});
    count_request(index, tiles);
  }
  // First those that are here, so that reading the others does not put them out.
  for (TileBatch::Expert& expert : batch.experts_) {
    if (!all_here(expert.index, tiles)) continue;
    cache_->pin(expert.index);
    expert.started = true;
  }
  start_waiting(batch);
  return batch;
}

void TileStore::count_request(size_t index, std::span<const int> tiles) {
  cache_->use(index);
  if (hinted_[index]) ++stats_.hints_used;
  hinted_[index] = false;
  if (all_here(index, tiles)) {
    ++stats_.hits;
    return;
  }
  if (!reads_tiles_alone()) warn_once_about_cold_reads();
  ++stats_.misses;
  for (const int tile : tiles) {
    const auto error = errors_.find({index, tile});
    // A tile that could not be read is tried again; one that is bad is not.
    if (error != errors_.end() && cache_->state(index, tile) != TileState::kBad) {
      errors_.erase(error);
    }
  }
  const auto reading = reading_.find(index);
  if (reading == reading_.end()) return;
  ++stats_.late;
  reader_->raise(reading->second.ticket);
}

// Pins what is not started yet and starts its reads, in order, until there is no room.
void TileStore::start_waiting(TileBatch& batch) {
  for (TileBatch::Expert& expert : batch.experts_) {
    if (expert.started) continue;
    cache_->pin(expert.index);
    if (!try_start(expert.index, batch.tiles_, ReadUrgency::kNow, true)) {
      cache_->unpin(expert.index);
      return;
    }
    expert.started = true;
  }
}

Result<std::vector<size_t>> TileBatch::next() {
  std::vector<size_t> ready;
  if (all_handed_out()) return ready;
  TileStore& store = *store_;
  std::optional<Clock::TimePoint> stalled;
  std::unique_lock lock(store.mutex_);
  while (true) {
    store.start_waiting(*this);
    for (size_t i = 0; i < experts_.size(); ++i) {
      Expert& expert = experts_[i];
      if (expert.phase != Phase::kWaiting || !expert.started) continue;
      if (store.all_here(expert.index, tiles_)) {
        ready.push_back(i);
        expert.phase = Phase::kHandedOut;
      } else if (const Error* error = store.error_of(expert.index, tiles_);
                 error && !store.cache_->is_reading(expert.index)) {
        return *error;
      }
    }
    if (!ready.empty()) break;
    if (store.reading_.empty()) {
      return Error{
          ErrorCode::kOverloaded,
          fmt::format("{} tiles of an expert don't fit beside what is in use: {} slots of "
                      "{} in all",
                      tiles_.size(), store.cache_->num_slots(), format_bytes(store.slot_bytes_))};
    }
    if (!stalled) stalled = store.clock_.now();
    store.changed_->wait(lock);
  }
  if (stalled) {
    store.stats_.stall_seconds[static_cast<size_t>(layer_)] +=
        seconds_between(*stalled, store.clock_.now());
  }
  num_handed_out_ += ready.size();
  CHECK_LE(num_handed_out_, experts_.size());
  return ready;
}

kernels::TileView TileBatch::tile(size_t expert, size_t tile) const {
  CHECK(expert < experts_.size() && tile < tiles_.size());
  const Expert& e = experts_[expert];
  CHECK(e.phase == Phase::kHandedOut);
  const int number = tiles_[tile];
  const std::lock_guard lock(store_->mutex_);
  return {&store_->layouts_[static_cast<size_t>(number)],
          store_->slot_data(store_->cache_->slot(e.index, number))};
}

void TileBatch::release() {
  CHECK(store_ != nullptr);
  store_->release(*this);
}

void TileStore::release(TileBatch& batch) {
  const std::lock_guard lock(mutex_);
  for (TileBatch::Expert& expert : batch.experts_) {
    if (expert.phase != TileBatch::Phase::kHandedOut) continue;
    expert.phase = TileBatch::Phase::kReleased;
    cache_->unpin(expert.index);
  }
  start_waiting(batch);
}

// Reads that are under way go on: their tiles may be wanted again.
void TileStore::close(TileBatch& batch) {
  const std::lock_guard lock(mutex_);
  for (TileBatch::Expert& expert : batch.experts_) {
    if (expert.started && expert.phase != TileBatch::Phase::kReleased) cache_->unpin(expert.index);
  }
}

TileBatch::TileBatch(TileBatch&& other) noexcept
    : store_(std::exchange(other.store_, nullptr)),
      layer_(other.layer_),
      tiles_(std::move(other.tiles_)),
      experts_(std::move(other.experts_)),
      num_handed_out_(other.num_handed_out_) {}

TileBatch::~TileBatch() {
  if (store_ != nullptr) store_->close(*this);
}

Result<PinnedTile> TileStore::pin(ExpertKey key, int tile) {
  auto batch = request(key.layer, std::span(&key.expert, 1), std::span(&tile, 1));
  if (!batch) return batch.error();
  const auto ready = batch->next();
  if (!ready) return ready.error();
  const kernels::TileView view = batch->tile(0, 0);
  return PinnedTile(std::move(*batch), view);
}

int TileStore::tiles_at_once() const {
  return static_cast<int>(std::min<size_t>(cache_->num_slots() / 2, layouts_.size()));
}

void TileStore::hint(int32_t layer, std::span<const int32_t> experts, std::span<const int> tiles) {
  if (!check_request(layer, experts, tiles)) return;
  const auto place = static_cast<size_t>(place_of_layer_[static_cast<size_t>(layer)]);
  const std::lock_guard lock(mutex_);
  size_t reads = reading_.size();
  for (const int32_t expert : experts) {
    const size_t index = cache_index(place, expert);
    if (reads >= kHintReadsMax) return;
    if (cache_->is_reading(index) || absent_tiles(index, tiles).empty()) continue;
    if (!try_start(index, tiles, ReadUrgency::kAhead, true)) return;
    hinted_[index] = true;
    ++stats_.hinted;
    ++reads;
  }
}

void TileStore::evict_all() {
  const std::lock_guard lock(mutex_);
  std::vector<size_t> evicted;
  cache_->make_room(cache_->free_slots() + cache_->evictable_slots(), &evicted);
  std::fill(hinted_.begin(), hinted_.end(), false);
}

ExpertCacheStats TileStore::stats() const {
  const std::lock_guard lock(mutex_);
  ExpertCacheStats stats = stats_;
  if (!is_planned()) return stats;
  stats.slots_used = cache_->num_slots() - cache_->free_slots();
  stats.evictions = cache_->evictions();
  stats.tiles_reread = reader_->tiles_reread();
  return stats;
}

uint64_t TileStore::held_bytes() const {
  const std::lock_guard lock(mutex_);
  return cache_ ? (cache_->num_slots() - cache_->free_slots()) * slot_bytes_ : 0;
}

}  // namespace atl::storage
