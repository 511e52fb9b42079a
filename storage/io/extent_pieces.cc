#include "storage/io/extent_pieces.h"

#include <algorithm>
#include <utility>

#include "base/check.h"

namespace atl::storage {
namespace {

// Adds memory behind the last range, or to it.
void append(std::vector<iovec>* memory, std::byte* data, size_t bytes) {
  if (!memory->empty()) {
    iovec& last = memory->back();
    if (static_cast<std::byte*>(last.iov_base) + last.iov_len == data) {
      last.iov_len += bytes;
      return;
    }
  }
  memory->push_back({data, bytes});
}

}  // namespace

void ExtentPieces::add(std::shared_ptr<ExtentRequest> request, ReadUrgency urgency) {
  for (const ExtentPart& part : request->parts) {
    CHECK(part.bytes > 0 && part.bytes % kExtentAlign == 0 && part.offset % kExtentAlign == 0);
    CHECK_EQ(reinterpret_cast<uintptr_t>(part.data) % kExtentAlign, 0u);
    request->bytes_left.push_back(part.bytes);
  }
  if (request->parts.empty()) return;
  request->errors.resize(request->parts.size());
  (urgency == ReadUrgency::kNow ? now_ : ahead_).push_back(std::move(request));
}

void ExtentPieces::raise(uint64_t ticket) {
  const auto found = std::find_if(ahead_.begin(), ahead_.end(),
                                  [&](const auto& request) { return request->ticket == ticket; });
  if (found == ahead_.end()) return;
  now_.push_back(std::move(*found));
  ahead_.erase(found);
}

ExtentPiece ExtentPieces::cut(const std::shared_ptr<ExtentRequest>& request) const {
  size_t part = request->next_part, part_offset = request->next_offset;
  ExtentPiece piece{.request = request,
                    .part = part,
                    .part_offset = part_offset,
                    .offset = request->parts[part].offset + part_offset,
                    .bytes = 0,
                    .memory = {}};
  while (part < request->parts.size() && piece.bytes < piece_bytes_ &&
         piece.memory.size() < kMemoryRangesMax) {
    const ExtentPart& from = request->parts[part];
    if (from.offset + part_offset != piece.offset + piece.bytes) break;
    const size_t bytes = std::min(from.bytes - part_offset, piece_bytes_ - piece.bytes);
    append(&piece.memory, from.data + part_offset, bytes);
    piece.bytes += bytes;
    part_offset += bytes;
    if (part_offset < from.bytes) break;
    part_offset = 0;
    ++part;
  }
  request->next_part = part;
  request->next_offset = part_offset;
  return piece;
}

bool ExtentPieces::next(ExtentPiece* piece, AheadReads ahead) {
  Requests& requests = now_.empty() ? ahead_ : now_;
  if (requests.empty() || (now_.empty() && ahead == AheadReads::kMustWait)) return false;
  *piece = cut(requests.front());
  const ExtentRequest& request = *requests.front();
  if (request.next_part == request.parts.size()) requests.pop_front();
  return true;
}

void ExtentPieces::finish(const ExtentPiece& piece, const Status& status,
                          std::deque<FinishedPart>* finished) {
  ExtentRequest& request = *piece.request;
  size_t left = piece.bytes, begin = piece.part_offset;
  for (size_t part = piece.part; left > 0; ++part) {
    const size_t bytes = std::min(left, request.parts[part].bytes - begin);
    begin = 0;
    left -= bytes;
    if (!status && !request.errors[part]) request.errors[part] = status.error();
    request.bytes_left[part] -= bytes;
    if (request.bytes_left[part] > 0) continue;
    const std::optional<Error>& error = request.errors[part];
    finished->push_back({piece.request, part, error ? Status(*error) : Status()});
  }
}

}  // namespace atl::storage
