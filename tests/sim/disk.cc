#include "tests/sim/disk.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <memory>

namespace atl::sim {

uint64_t SimQueue::start(size_t file, std::vector<storage::ExtentPart> parts, storage::ReadUrgency,
                         Done done) {
  const auto shared_done = std::make_shared<Done>(std::move(done));
  for (size_t p = 0; p < parts.size(); ++p) {
    busy_until_ = std::max(busy_until_, world_.now()) +
                  disk_.slowness * world_.draw().between(disk_.latency_min, disk_.latency_max);
    world_.at(busy_until_, [this, alive = alive_, file, part = parts[p], p, shared_done] {
      if (!*alive) return;
      machine_.when_running([this, alive, file, part, p, shared_done] {
        if (!*alive) return;
        const std::pair where(file, part.offset);
        const std::string& bytes = disk_.image->at(file);
        CHECK(part.offset + part.bytes <= bytes.size());
        if (world_.draw().chance(disk_.eio) || disk_.unreadable.contains(where)) {
          ++disk_.num_eio;
          (*shared_done)(p, storage::extent_error("simulated", part.offset, 0, part.bytes, EIO));
          return;
        }
        std::memcpy(part.data, bytes.data() + part.offset, part.bytes);
        if (disk_.damaged.contains(where) || world_.draw().chance(disk_.flip)) {
          ++disk_.num_flipped;
          const int64_t bit = world_.draw().below(static_cast<int64_t>(part.bytes) * 8);
          part.data[bit / 8] ^= static_cast<std::byte>(1 << bit % 8);
        }
        (*shared_done)(p, {});
      });
    });
  }
  return ++last_ticket_;
}

}  // namespace atl::sim
