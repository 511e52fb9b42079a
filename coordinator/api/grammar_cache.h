// Compiled schemas, and schemas that were refused, shared by all requests.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <list>
#include <memory>
#include <mutex>
#include <optional>
#include <stop_token>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>

#include "base/result.h"
#include "constrain/json_constraint.h"

namespace atl::coordinator {

// Any thread. Nobody waits for a schema but those who want it, too: what is asked for twice is
// compiled once. What was used least lately is forgotten.
class GrammarCache {
 public:
  using Grammar = std::shared_ptr<const constrain::ConstraintGrammar>;
  using Compile = std::function<Result<Grammar>(std::stop_token)>;

  GrammarCache(size_t entries_max, size_t bytes_max)
      : entries_max_(entries_max), bytes_max_(bytes_max) {}

  // Never waits; nullopt: it is not there, or not yet.
  std::optional<Result<Grammar>> find(const std::string& key);
  // What `compile` says, now or at an earlier time. It is called at most once for equal keys,
  // unless it was stopped: then nothing is kept, and another one who waits compiles. kUnavailable:
  // stopped.
  Result<Grammar> get(const std::string& key, const std::stop_token& stop, const Compile& compile);

  size_t num_entries() const;
  size_t bytes() const;  // of keys and grammars; never more than bytes_max after a call

 private:
  struct Entry {
    std::string key;
    std::optional<Result<Grammar>> grammar;  // nullopt: somebody is compiling it
    size_t bytes = 0;
  };
  using Entries = std::list<Entry>;

  std::optional<Result<Grammar>> find_locked(const std::string& key);
  void keep(Entries::iterator entry, Result<Grammar> grammar);
  void erase(Entries::iterator entry);

  const size_t entries_max_, bytes_max_;
  mutable std::mutex mutex_;
  std::condition_variable_any changed_;
  Entries entries_;  // last used first
  std::unordered_map<std::string_view, Entries::iterator> by_key_;
  size_t bytes_ = 0;
};

}  // namespace atl::coordinator
