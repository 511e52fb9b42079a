#include "coordinator/api/grammar_cache.h"

#include <exception>
#include <iterator>

#include "base/check.h"

namespace atl::coordinator {
namespace {

constexpr size_t kEntryBytes = 256;  // lists, tables, a message

Error stopped() { return {ErrorCode::kUnavailable, "compiling the schema was stopped"}; }

}  // namespace

std::optional<Result<GrammarCache::Grammar>> GrammarCache::find(const std::string& key) {
  const std::lock_guard lock(mutex_);
  return find_locked(key);
}

std::optional<Result<GrammarCache::Grammar>> GrammarCache::find_locked(const std::string& key) {
  const auto found = by_key_.find(key);
  if (found == by_key_.end()) return std::nullopt;
  entries_.splice(entries_.begin(), entries_, found->second);
  return found->second->grammar;
}

Result<GrammarCache::Grammar> GrammarCache::get(const std::string& key, const std::stop_token& stop,
                                                const Compile& compile) {
  std::unique_lock lock(mutex_);
  // Whoever compiles it may be stopped: then it is gone, and the next one compiles.
  while (by_key_.contains(key)) {
    if (const auto known = find_locked(key)) return *known;
    const bool changed = changed_.wait(lock, stop, [&] {
      const auto at = by_key_.find(key);
      return at == by_key_.end() || at->second->grammar.has_value();
    });
    if (!changed) return stopped();
  }
  entries_.push_front({.key = key, .grammar = {}, .bytes = kEntryBytes + key.size()});
  const auto entry = entries_.begin();
  by_key_.emplace(entry->key, entry);
  bytes_ += entry->bytes;

  lock.unlock();
  Result<Grammar> grammar = Error{ErrorCode::kInternal, "compiling the schema threw"};
  try {
    grammar = compile(stop);
  } catch (const std::exception& e) {
    grammar = Error{ErrorCode::kInternal, e.what()};
  }
  lock.lock();
  const bool kept = grammar || grammar.error().code == ErrorCode::kInvalid;
  if (kept) {
    keep(entry, grammar);
  } else {
    erase(entry);
  }
  lock.unlock();
  changed_.notify_all();
  return grammar;
}

void GrammarCache::keep(Entries::iterator entry, Result<Grammar> grammar) {
  if (grammar) {
    const size_t bytes = (*grammar)->memory_bytes();
    entry->bytes += bytes;
    bytes_ += bytes;
  }
  entry->grammar = std::move(grammar);
  for (auto at = entries_.end(); at != entries_.begin();) {
    if (entries_.size() <= entries_max_ && bytes_ <= bytes_max_) return;
    --at;
    // Those who compile hold on to theirs.
    if (at->grammar) erase(std::exchange(at, std::next(at)));
  }
}

void GrammarCache::erase(Entries::iterator entry) {
  CHECK_GE(bytes_, entry->bytes);
  bytes_ -= entry->bytes;
  by_key_.erase(entry->key);
  entries_.erase(entry);
}

size_t GrammarCache::num_entries() const {
  const std::lock_guard lock(mutex_);
  return entries_.size();
}

size_t GrammarCache::bytes() const {
  const std::lock_guard lock(mutex_);
  return bytes_;
}

}  // namespace atl::coordinator
