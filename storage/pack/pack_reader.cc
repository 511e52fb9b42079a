#include "storage/pack/pack_reader.h"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <mutex>
#include <set>
#include <tuple>
#include <unordered_map>
#include <utility>

#include "base/check.h"
#include "base/log.h"

namespace atl::storage {
namespace {

constexpr int kAttemptsPerDrive = 2;

// A pack and what reads it.
struct Drive {
  const Pack* pack = nullptr;
  std::vector<std::optional<size_t>> places;  // by place in the catalog
  std::unique_ptr<ExtentQueue> queue;         // nullptr: the pack has no layers
  std::atomic<uint64_t> waiting_bytes{0};     // started and not arrived

  bool holds(size_t place, int tile) const {
    const PackGeometry& geometry = pack->geometry();
    return places[place] && tile >= geometry.tile_begin() && tile < geometry.tile_end();
  }
};

// A tile on its way.
struct Tile {
  size_t first = 0;    // drive that it was read from first
  size_t turn = 0;     // drives behind that which have been come to
  int attempts = 0;    // on the present drive, that have failed
  std::string errors;  // of the drives that have been given up
};

// One start() of the reader.
struct Read {
  uint64_t ticket = 0;
  size_t place = 0;
  int64_t expert = 0;
  std::vector<TileTarget> targets;
  ExpertReader::Done done;
  std::vector<Tile> tiles;  // of targets; each belongs to the thread that its read arrives on
  std::atomic<size_t> left{0};
  // Guarded by the reader's mutex.
  ReadUrgency urgency = ReadUrgency::kNow;
  std::vector<std::pair<size_t, uint64_t>> queued;  // drives and tickets there
};

class PackExpertReader final : public ExpertReader {
 public:
  PackExpertReader(std::span<const Pack* const> packs, const ExpertCatalog& catalog,
                   const ExtentQueueOptions& options, const MakeExtentQueue& make_queue)
      : piece_bytes_(options.piece_bytes) {
    check_packs_fit(packs, catalog);
    for (const Pack* pack : packs) {
      drives_.push_back(std::make_unique<Drive>());
      Drive& drive = *drives_.back();
      drive.pack = pack;
      for (const int32_t layer : catalog.moe_layers)
        drive.places.push_back(pack->find_layer(layer));
      std::vector<std::filesystem::path> files;
      for (size_t p = 0; p < pack->params().layers.size(); ++p)
        files.push_back(pack->layer_file(p));
      if (files.empty()) continue;
      drive.queue = make_queue(*pack->extents(), std::move(files), options);
    }
  }
  // All queues first: a tile that arrives from one may go on to another.
  ~PackExpertReader() override {
    for (const auto& drive : drives_) {
      if (drive->queue != nullptr) drive->queue->stop();
    }
  }

  uint64_t start(size_t place, int64_t expert, std::vector<TileTarget> targets, ReadUrgency urgency,
                 Done done) override {
    auto read = std::make_shared<Read>();
    read->place = place;
    read->expert = expert;
    read->targets = std::move(targets);
    read->done = std::move(done);
    read->tiles.resize(read->targets.size());
    read->left = read->targets.size();
    read->urgency = urgency;
    const uint64_t ticket = read->ticket = ++last_ticket_;
    if (read->targets.empty()) return ticket;
    {
      const std::lock_guard lock(mutex_);
      reads_.emplace(ticket, read);
    }
    const std::vector<std::vector<size_t>> shares = share_out(*read);
    for (size_t d = 0; d < drives_.size(); ++d) {
      for (const size_t t : shares[d]) read->tiles[t].first = d;
      if (!shares[d].empty()) queue_tiles(d, read, shares[d]);
    }
    return ticket;
  }

  void raise(uint64_t ticket) override {
    const std::lock_guard lock(mutex_);
    const auto found = reads_.find(ticket);
    if (found == reads_.end() || found->second->urgency == ReadUrgency::kNow) return;
    found->second->urgency = ReadUrgency::kNow;
    for (const auto& [drive, queued] : found->second->queued) drives_[drive]->queue->raise(queued);
  }

  void use_memory(std::span<std::byte> memory) override {
    for (const auto& drive : drives_) {
      if (drive->queue != nullptr) drive->queue->use_memory(memory);
    }
  }

  std::string describe() const override {
    const auto with_queue = std::find_if(drives_.begin(), drives_.end(),
                                         [](const auto& drive) { return drive->queue != nullptr; });
    if (with_queue == drives_.end()) return "no tiles";
    std::string text = (*with_queue)->queue->describe();
    if (drives_.size() > 1) text += fmt::format(", on each of {} drives", drives_.size());
    return text;
  }

  uint64_t memory_bytes() const override {
    uint64_t bytes = 0;
    for (const auto& drive : drives_) {
      if (drive->queue != nullptr) bytes += drive->queue->memory_bytes();
    }
    return bytes;
  }
  uint64_t tiles_reread() const override { return tiles_reread_; }

 private:
  // Targets of each drive, ascending. Those that few drives hold are given first, the others fill
  // up what is left. Neighbours stay together up to a piece, so that they are one read.
  std::vector<std::vector<size_t>> share_out(const Read& read) const {
    std::vector<std::vector<size_t>> holders(read.targets.size());
    for (size_t t = 0; t < holders.size(); ++t) {
      for (size_t d = 0; d < drives_.size(); ++d) {
        if (drives_[d]->holds(read.place, read.targets[t].layout->tile)) holders[t].push_back(d);
      }
      CHECK(!holders[t].empty());
      if (any_bad_) leave_out_bad(read, t, &holders[t]);
    }
    std::vector<uint64_t> waiting;
    for (const auto& drive : drives_) waiting.push_back(drive->waiting_bytes);
    std::vector<std::vector<size_t>> shares(drives_.size());
    for (size_t num_holders = 1; num_holders <= drives_.size(); ++num_holders) {
      size_t drive = 0;
      uint64_t together = piece_bytes_;  // given to `drive` in a row
      for (size_t t = 0; t < holders.size(); ++t) {
        if (holders[t].size() != num_holders) continue;
        const auto least = [&](size_t a, size_t b) { return waiting[a] < waiting[b]; };
        const bool can_stay =
            std::find(holders[t].begin(), holders[t].end(), drive) != holders[t].end();
        if (together >= piece_bytes_ || !can_stay) {
          drive = *std::min_element(holders[t].begin(), holders[t].end(), least);
          together = 0;
        }
        const uint64_t bytes = read.targets[t].layout->bytes;
        together += bytes;
        waiting[drive] += bytes;
        shares[drive].push_back(t);
      }
    }
    for (std::vector<size_t>& share : shares) std::sort(share.begin(), share.end());
    return shares;
  }

  // Unless nobody has it better.
  void leave_out_bad(const Read& read, size_t t, std::vector<size_t>* holders) const {
    const std::lock_guard lock(mutex_);
    std::vector<size_t> sound;
    for (const size_t d : *holders) {
      if (!bad_.contains(name_of(d, read, t))) sound.push_back(d);
    }
    if (!sound.empty()) *holders = std::move(sound);
  }

  void queue_tiles(size_t d, const std::shared_ptr<Read>& read,
                   const std::vector<size_t>& targets) {
    Drive& drive = *drives_[d];
    std::vector<ExtentPart> parts;
    for (const size_t t : targets) {
      const TileTarget& target = read->targets[t];
      drive.waiting_bytes += target.layout->bytes;
      parts.push_back({drive.pack->geometry().offset(read->expert, target.layout->tile),
                       target.data, target.layout->bytes});
    }
    const std::lock_guard lock(mutex_);
    const uint64_t queued =
        drive.queue->start(*drive.places[read->place], std::move(parts), read->urgency,
                           [this, read, targets](size_t part, const Status& status) {
                             arrive(read, targets[part], status);
                           });
    read->queued.emplace_back(d, queued);
  }

  void arrive(const std::shared_ptr<Read>& read, size_t t, const Status& status) {
    const int number = read->targets[t].layout->tile;
    const std::span<const std::byte> data(read->targets[t].data, read->targets[t].layout->bytes);
    Tile& tile = read->tiles[t];
    const size_t d = drive_of(tile);
    Drive& drive = *drives_[d];
    const size_t place = *drive.places[read->place];
    drive.waiting_bytes -= data.size();
    if (status && drive.pack->tile_is_right(place, read->expert, number, data)) {
      if (tile.attempts > 0) {
        log_warn("{}: tile {} of expert {}/{} at offset {} was right at the second reading only",
                 drive.pack->layer_file(place).string(), number, drive.pack->params().layers[place],
                 read->expert, drive.pack->geometry().offset(read->expert, number));
      }
      return finish(*read, t, {});
    }
    ++tile.attempts;
    if (tile.attempts < kAttemptsPerDrive) {
      ++tiles_reread_;
      return queue_tiles(d, read, {t});
    }
    const Error error =
        status ? drive.pack->wrong_tile(place, read->expert, number, data) : status.error();
    if (!try_next_drive(read, t, error)) {
      finish(*read, t, Error{error.code, tile.errors + error.message});
    }
  }

  // False: no other holds the tile.
  bool try_next_drive(const std::shared_ptr<Read>& read, size_t t, const Error& error) {
    Tile& tile = read->tiles[t];
    const size_t failed = drive_of(tile);
    while (++tile.turn < drives_.size()) {
      const size_t d = drive_of(tile);
      if (!drives_[d]->holds(read->place, read->targets[t].layout->tile)) continue;
      if (error.code != ErrorCode::kCorrupt || mark_bad(failed, *read, t)) {
        log_warn("{}: trying {}", error.message, drives_[d]->pack->directory().string());
      }
      tile.errors += error.message + "; ";
      tile.attempts = 0;
      ++tiles_reread_;
      queue_tiles(d, read, {t});
      return true;
    }
    return false;
  }

  // Later reads begin with another drive. False if it was known.
  bool mark_bad(size_t d, const Read& read, size_t t) {
    const std::lock_guard lock(mutex_);
    any_bad_ = true;
    return bad_.insert(name_of(d, read, t)).second;
  }

  // Drive, place, expert and tile.
  using TileName = std::tuple<size_t, size_t, int64_t, int>;
  static TileName name_of(size_t d, const Read& read, size_t t) {
    return {d, read.place, read.expert, read.targets[t].layout->tile};
  }

  size_t drive_of(const Tile& tile) const { return (tile.first + tile.turn) % drives_.size(); }

  void finish(Read& read, size_t t, const Status& status) {
    const uint64_t ticket = read.ticket;
    // Before `done`, after whose last call the caller may think that all is over.
    if (--read.left == 0) {
      const std::lock_guard lock(mutex_);
      reads_.erase(ticket);
    }
    read.done(t, status);
  }

  const size_t piece_bytes_;
  std::vector<std::unique_ptr<Drive>> drives_;
  std::atomic<uint64_t> last_ticket_{0}, tiles_reread_{0};
  std::atomic<bool> any_bad_{false};
  mutable std::mutex mutex_;                                   // of the following
  std::unordered_map<uint64_t, std::shared_ptr<Read>> reads_;  // that have not ended
  std::set<TileName> bad_;                                     // wrong twice where others hold it
};

}  // namespace

std::unique_ptr<ExpertReader> make_pack_expert_reader(std::span<const Pack* const> packs,
                                                      const ExpertCatalog& catalog,
                                                      const ExtentQueueOptions& options,
                                                      const MakeExtentQueue& make_queue) {
  return std::make_unique<PackExpertReader>(packs, catalog, options, make_queue);
}

}  // namespace atl::storage
