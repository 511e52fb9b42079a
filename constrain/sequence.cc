#include "constrain/sequence.h"

#include <algorithm>
#include <atomic>
#include <limits>
#include <optional>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <vector>

#include "base/check.h"
#include "constrain/json_text_grammar.h"
#include "constrain/vocabulary.h"

namespace atl::constrain {
namespace {

using Trie = ConstraintVocabulary::Trie;

constexpr size_t kThreadsMax = 256;
// Work of one mask (Stepper::work()), some 24 ns each. A vocabulary of 129k tokens is a tree of
// some 300k nodes, and a state that is new to a sequence walks it once: a mask that people's
// schemas need takes one or two such walks, some milliseconds. This is three of the whole tree.
constexpr uint64_t kMaskWorkMax = 1'000'000;
// Tokens of a list that is known that are looked at in one step.
constexpr uint64_t kListedPerStep = 32;
// Of one settle(): pairs of state and stack that are followed, and how many are looked for one by
// one before a table is made of them.
constexpr size_t kSettledMax = 1024, kSeenInOrder = 16;

// One way to have read the text so far: a state, and where to go on when its rule ends.
struct Thread {
  int32_t state = 0;
  int32_t stack = -1;  // a frame; -1: nothing is left below
  friend bool operator==(const Thread&, const Thread&) = default;
};

struct Frame {
  int32_t state = 0;
  int32_t below = -1;
  int64_t cost = 0;  // least bytes from this state to the end of everything below
  int32_t depth = 1;
};

// All ways to have read the text so far.
struct Reading {
  std::vector<Thread> threads;  // those that can read on
  bool complete = false;        // the text may end here
};

// Steps readings through a machine. Frames are added at the end and dropped from there.
class Stepper {
 public:
  explicit Stepper(const ConstraintMachine& machine) : machine_(machine) {}

  const ConstraintMachine& machine() const { return machine_; }
  const Frame& frame(int32_t index) const { return frames_[static_cast<size_t>(index)]; }
  size_t num_frames() const { return frames_.size(); }
  void drop_frames(size_t num_kept) { frames_.resize(num_kept); }

  int64_t cost_below(int32_t stack) const { return stack < 0 ? 0 : frame(stack).cost; }
  int64_t cost(const Thread& thread) const {
    return state(thread.state).cost + cost_below(thread.stack);
  }
  int64_t cost(const Reading& reading) const {
    if (reading.complete) return 0;
    int64_t least = kNoCompletion;
    for (const Thread& thread : reading.threads) least = std::min(least, cost(thread));
    return least;
  }

  // Adds what `state` on `stack` can do without reading. Each pair of them is looked at once: calls
  // that meet again (anyOf of anyOf, $refs to one definition) would be followed 2^n times.
  void settle(int32_t at, int32_t stack, Reading& out) {
    to_settle_.assign(1, {at, stack});
    seen_.clear();
    while (!to_settle_.empty()) {
      const Thread here = to_settle_.back();
      to_settle_.pop_back();
      if (!see(here)) continue;
      if (seen_.size() > kSettledMax) return settle_cheapest({at, stack}, out);
      look_at(here, out);
      std::reverse(to_settle_.end() - num_added_, to_settle_.end());  // as a recursion would go
    }
  }

  // From here on at most so much work is to be done; who works in a loop looks at exhausted().
  void allow_work(uint64_t work) { work_max_ = work_ + work; }
  bool exhausted() const { return work_ > work_max_; }
  // Looked at since the beginning: threads that took a byte, and pairs of state and stack that were
  // settled. A measure of work that doesn't depend on the machine.
  uint64_t work() const { return work_; }

  void step(const Reading& in, uint8_t byte, Reading& out) {
    out.complete = false;
    work_ += in.threads.size();
    if (in.threads.size() == 1 && step_plainly(in.threads[0], byte, out)) return;
    out.threads.clear();
    for (const Thread& thread : in.threads) {
      const int32_t next = machine_.next(thread.state, byte);
      if (next < 0) continue;
      if (state(next).plain) {
        add({next, thread.stack}, out);
      } else {
        settle(next, thread.stack, out);
        if (out.threads.size() > 2 * kThreadsMax) keep_cheapest(out);
      }
    }
    if (out.threads.size() > kThreadsMax) keep_cheapest(out);
  }

  void step_mark(const Reading& in, int32_t mark, Reading& out) {
    out.threads.clear();
    out.complete = false;
    for (const Thread& thread : in.threads) {
      for (const auto& [m, next] : state(thread.state).marks) {
        if (m == mark) settle(next, thread.stack, out);
      }
    }
  }

  // Forgets all frames that the reading doesn't need.
  void keep_only(Reading& reading) {
    std::vector<Frame> kept;
    std::unordered_map<int32_t, int32_t> moved;
    for (Thread& thread : reading.threads) thread.stack = move_frame(thread.stack, kept, moved);
    frames_ = std::move(kept);
  }

 private:
  const ConstraintMachine::State& state(int32_t s) const {
    return machine_.states[static_cast<size_t>(s)];
  }

  // The usual case while a tree is walked: one thread that reads on within its rule, or doesn't.
  bool step_plainly(Thread thread, uint8_t byte, Reading& out) const {
    const int32_t next = machine_.next(thread.state, byte);
    if (next >= 0 && !state(next).plain) return false;
    out.threads.resize(next >= 0 ? 1 : 0);
    if (next >= 0) out.threads[0] = {next, thread.stack};
    return true;
  }

  // Adds what is next to settle to the end of to_settle_, num_added_ of them.
  void look_at(Thread here, Reading& out) {
    ++work_;
    num_added_ = 0;
    const auto later = [&](Thread thread) {
      to_settle_.push_back(thread);
      ++num_added_;
    };
    const auto& at = state(here.state);
    if (at.reads) add(here, out);
    for (const auto& [rule, behind] : at.calls) {
      // Nothing is left to do behind a call that ends its rule: no frame says so, and calls that
      // lead to the same rule on different ways are seen to be the same.
      later({machine_.rule_starts[static_cast<size_t>(rule)],
             state(behind).only_ends ? here.stack : push(behind, here.stack)});
    }
    if (!at.accepting) return;
    if (here.stack < 0) {
      out.complete = true;
    } else {
      later({frame(here.stack).state, frame(here.stack).below});
    }
  }

  // More ways than anybody follows: the cheapest ones only. Fewer readings allow fewer texts, all
  // of them valid, and the shortest completion stays.
  void settle_cheapest(Thread start, Reading& out) {
    const auto dearer = [&](const auto& a, const auto& b) { return a.first > b.first; };
    std::vector<std::pair<int64_t, Thread>> open = {{cost(start), start}};
    seen_.clear();
    for (size_t n = 0; !open.empty() && n < kSettledMax; ++n) {
      std::pop_heap(open.begin(), open.end(), dearer);
      const Thread here = open.back().second;
      open.pop_back();
      if (!see(here)) continue;
      to_settle_.clear();
      look_at(here, out);
      for (const Thread& next : to_settle_) {
        open.emplace_back(cost(next), next);
        std::push_heap(open.begin(), open.end(), dearer);
      }
    }
    to_settle_.clear();
  }

  // Whether it is new.
  bool see(Thread thread) {
    if (seen_.size() < kSeenInOrder) {
      if (std::find(seen_.begin(), seen_.end(), thread) != seen_.end()) return false;
    } else {
      if (seen_.size() == kSeenInOrder) {
        seen_keys_.clear();
        for (const Thread& earlier : seen_) seen_keys_.insert(key(earlier));
      }
      if (!seen_keys_.insert(key(thread)).second) return false;
    }
    seen_.push_back(thread);
    return true;
  }
  static uint64_t key(Thread thread) {
    return static_cast<uint64_t>(static_cast<uint32_t>(thread.state)) << 32 |
           static_cast<uint32_t>(thread.stack);
  }

  static void add(Thread thread, Reading& out) {
    if (std::find(out.threads.begin(), out.threads.end(), thread) == out.threads.end()) {
      out.threads.push_back(thread);
    }
  }

  // An equal frame made lately is used again, so that equal threads are seen to be equal.
  int32_t push(int32_t behind, int32_t stack) {
    const size_t end = frames_.size(), begin = end > 32 ? end - 32 : 0;
    for (size_t i = begin; i < end; ++i) {
      if (frames_[i].state == behind && frames_[i].below == stack) return static_cast<int32_t>(i);
    }
    frames_.push_back({behind, stack, state(behind).cost + cost_below(stack),
                       1 + (stack < 0 ? 0 : frame(stack).depth)});
    return static_cast<int32_t>(end);
  }

  // Fewer readings allow fewer texts, all of them valid.
  void keep_cheapest(Reading& reading) {
    std::stable_sort(reading.threads.begin(), reading.threads.end(),
                     [&](const Thread& a, const Thread& b) { return cost(a) < cost(b); });
    reading.threads.resize(kThreadsMax);
  }

  int32_t move_frame(int32_t index, std::vector<Frame>& kept,
                     std::unordered_map<int32_t, int32_t>& moved) const {
    std::vector<int32_t> path;
    for (; index >= 0 && !moved.contains(index); index = frame(index).below) path.push_back(index);
    int32_t below = index < 0 ? -1 : moved.at(index);
    for (; !path.empty(); path.pop_back()) {
      kept.push_back(frame(path.back()));
      kept.back().below = below;
      below = static_cast<int32_t>(kept.size()) - 1;
      moved.emplace(path.back(), below);
    }
    return below;
  }

  const ConstraintMachine& machine_;
  std::vector<Frame> frames_;
  uint64_t work_ = 0, work_max_ = std::numeric_limits<uint64_t>::max();
  // Of the settle() under way.
  std::vector<Thread> to_settle_;
  std::ptrdiff_t num_added_ = 0;
  std::vector<Thread> seen_;
  std::unordered_set<uint64_t> seen_keys_;  // of seen_, from kSeenInOrder of them on
};

// Reads the tokens of a part of the tree, all at once.
class TreeWalk {
 public:
  TreeWalk(Stepper& stepper, const Trie& trie)
      : stepper_(stepper),
        trie_(trie),
        readings_(static_cast<size_t>(trie.depth_max) + 2),
        kept_(readings_.size()) {}

  Reading& start() { return readings_[0]; }

  // From start() through the nodes [begin, end), which are the children of one node with their
  // subtrees: visit(node, reading behind it) for each node that can be read.
  template <typename Visit>
  void run(int32_t begin, int32_t end, Visit visit) {
    if (begin == end) return;
    const size_t frames_before = stepper_.num_frames();
    const int32_t base = trie_.depth[static_cast<size_t>(begin)];
    kept_[0] = frames_before;
    for (int32_t node = begin; node < end && !stepper_.exhausted();) {
      const auto n = static_cast<size_t>(node);
      const auto level = static_cast<size_t>(trie_.depth[n] - base);
      stepper_.drop_frames(kept_[level]);
      Reading& reading = readings_[level + 1];
      stepper_.step(readings_[level], trie_.byte[n], reading);
      kept_[level + 1] = stepper_.num_frames();
      if (!reading.threads.empty() || reading.complete) visit(node, std::as_const(reading));
      node = reading.threads.empty() ? trie_.subtree_end[n] : node + 1;
    }
    stepper_.drop_frames(frames_before);
  }

 private:
  Stepper& stepper_;
  const Trie& trie_;
  std::vector<Reading> readings_;  // by depth
  std::vector<size_t> kept_;       // frames up to each depth
};

// Collects what a state allows by itself.
class StateTokensFinder {
 public:
  StateTokensFinder(const ConstraintMachine& machine, int32_t state, const Trie& trie)
      : state_(state),
        in_string_(state < machine.num_shared_states),
        trie_(trie),
        stepper_(machine),
        walk_(stepper_, trie),
        num_chars_(static_cast<size_t>(trie.depth_max) + 1, 0) {}

  // Takes what it costs from *work; nullopt: that is not enough.
  std::optional<StateTokens> run(uint64_t* work) {
    stepper_.allow_work(*work);
    walk_.start().threads = {Thread{state_, -1}};
    walk_.run(0, trie_.num_nodes(),
              [&](int32_t node, const Reading& reading) { look_at(node, reading); });
    if (stepper_.exhausted()) return std::nullopt;
    *work -= stepper_.work();
    out_.work = stepper_.work();
    for (auto& [cost, tokens] : out_.by_cost) {
      std::stable_sort(tokens.begin(), tokens.end(),
                       [](const auto& a, const auto& b) { return a.num_chars < b.num_chars; });
    }
    return std::move(out_);
  }

 private:
  void look_at(int32_t node, const Reading& reading) {
    const auto n = static_cast<size_t>(node);
    const int32_t before = num_chars_[trie_.depth[n] - 1u];
    if (reading.complete) out_.ends.push_back({node, before});
    if (reading.threads.empty()) return;
    // A character is finished when the state within the string is reached again.
    const bool finished = in_string_ && reading.threads[0].state == state_;
    num_chars_[trie_.depth[n]] = before + finished;
    if (trie_.token_begin[n] == trie_.token_begin[n + 1]) return;
    int64_t cost = kNoCompletion;
    for (const Thread& thread : reading.threads) cost = std::min(cost, stepper_.cost(thread));
    auto& tokens = tokens_of_cost(cost);
    for (int32_t i = trie_.token_begin[n]; i < trie_.token_begin[n + 1]; ++i) {
      tokens.push_back({trie_.tokens[static_cast<size_t>(i)], in_string_ ? before + 1 : 0});
    }
  }

  std::vector<StateTokens::Token>& tokens_of_cost(int64_t cost) {
    for (auto& [known, tokens] : out_.by_cost) {
      if (known == cost) return tokens;
    }
    return out_.by_cost.emplace_back(cost, std::vector<StateTokens::Token>{}).second;
  }

  const int32_t state_;
  const bool in_string_;
  const Trie& trie_;
  Stepper stepper_;
  TreeWalk walk_;
  std::vector<int32_t> num_chars_;  // finished, by depth
  StateTokens out_;
};

// The states' tokens. A state that is new to the sequence costs it what finding its tokens takes,
// also if another sequence has found them: whether a mask is too much work depends on the text
// alone.
class TokenLists {
 public:
  TokenLists(const CompiledConstraint& compiled, const ConstraintVocabulary& vocabulary)
      : compiled_(compiled), vocabulary_(vocabulary) {}

  // Takes from *work; nullptr: it isn't enough.
  std::shared_ptr<const StateTokens> get(int32_t state, uint64_t* work) {
    const int32_t like = compiled_.machine.states[static_cast<size_t>(state)].like;
    if (like >= 0) state = like;
    if (state < compiled_.machine.num_shared_states) {
      return vocabulary_.trie().shared.at(static_cast<size_t>(state));
    }
    auto known = vocabulary_.lists().find(compiled_.id, state);
    if (known) {
      if (!paid_.contains(state) && !take(known->work, work)) return nullptr;
      paid_.insert(state);
      return known;
    }
    uint64_t again = kMaskWorkMax;  // it was paid for, and forgotten since
    uint64_t* const pays = paid_.contains(state) ? &again : work;
    auto tokens = StateTokensFinder(compiled_.machine, state, vocabulary_.trie()).run(pays);
    if (!tokens) return nullptr;
    paid_.insert(state);
    known = std::make_shared<const StateTokens>(std::move(*tokens));
    vocabulary_.lists().keep(compiled_.id, state, known);
    return known;
  }

  static bool take(uint64_t cost, uint64_t* work) {
    if (cost > *work) return false;
    *work -= cost;
    return true;
  }

 private:
  const CompiledConstraint& compiled_;
  const ConstraintVocabulary& vocabulary_;
  std::unordered_set<int32_t> paid_;
};

// The free text before the constraint begins: watches for the mark that ends it.
class FreeText {
 public:
  FreeText(std::string mark, const text::Tokenizer& tokenizer) : mark_(std::move(mark)) {
    if (mark_.empty()) return;
    const std::optional<int32_t> id = tokenizer.token_id(mark_);
    if (id && tokenizer.is_added(*id)) mark_id_ = *id;
    // failure_[n]: how much of the mark's beginning ends the first n bytes of it (Knuth, Morris,
    // Pratt).
    failure_.assign(mark_.size() + 1, 0);
    for (size_t n = 1; n < mark_.size(); ++n) failure_[n + 1] = advance(failure_[n], mark_[n]);
    for (int32_t token = 0; token < tokenizer.id_end(); ++token) {
      if (tokenizer.token_bytes(token).find(mark_.back()) != std::string_view::npos) {
        may_end_it_.push_back(token);
      }
    }
  }

  const std::string& mark() const { return mark_; }
  int32_t mark_id() const { return mark_id_; }  // -1: it is spelled in bytes
  const std::vector<int32_t>& may_end_it() const { return may_end_it_; }

  size_t advance(size_t matched, char c) const {
    while (matched > 0 && mark_[matched] != c) matched = failure_[matched];
    return mark_[matched] == c ? matched + 1 : 0;
  }

  // Bytes of `text` up to the end of the mark; nullopt: it doesn't end there, and `matched` is how
  // much of it has been read.
  std::optional<size_t> find_end(std::string_view text, size_t& matched) const {
    for (size_t i = 0; i < text.size(); ++i) {
      matched = advance(matched, text[i]);
      if (matched == mark_.size()) return i + 1;
    }
    return std::nullopt;
  }

  int64_t cost(size_t matched) const {
    return mark_id_ >= 0 ? 1 : static_cast<int64_t>(mark_.size() - matched);
  }

 private:
  const std::string mark_;
  int32_t mark_id_ = -1;
  std::vector<size_t> failure_;
  std::vector<int32_t> may_end_it_;
};

// The mark that a text may begin with instead of what else it may begin with.
class OpeningMark {
 public:
  OpeningMark(std::string mark, const text::Tokenizer& tokenizer)
      : mark_(std::move(mark)), possible_(!mark_.empty()) {
    const std::optional<int32_t> id = tokenizer.token_id(mark_);
    if (possible_ && id && tokenizer.is_added(*id)) mark_id_ = *id;
  }

  bool possible() const { return possible_; }
  bool read() const { return possible_ && num_read_ == mark_.size(); }
  int64_t cost() const {
    return mark_id_ >= 0 ? 1 - read() : static_cast<int64_t>(mark_.size() - num_read_);
  }

  // Calls allow(id) for each token that is the next of it, and for none that goes beyond.
  template <typename Allow, typename AllowNode>
  void allow_next(const Trie& trie, Allow allow, AllowNode allow_node) const {
    if (mark_id_ >= 0) return allow(mark_id_);
    int32_t node = 0, end = trie.num_nodes();
    for (size_t at = num_read_; at < mark_.size(); ++at) {
      while (node < end && static_cast<char>(trie.byte[static_cast<size_t>(node)]) != mark_[at]) {
        node = trie.subtree_end[static_cast<size_t>(node)];
      }
      if (node >= end) return;
      allow_node(node);
      end = trie.subtree_end[static_cast<size_t>(node)];
      ++node;
    }
  }

  void accept(int32_t id, std::string_view bytes) {
    if (!possible_) return;
    possible_ = mark_id_ >= 0 ? id == mark_id_
                              : std::string_view(mark_).substr(num_read_).starts_with(bytes);
    if (possible_) num_read_ += mark_id_ >= 0 ? mark_.size() : bytes.size();
  }

 private:
  std::string mark_;
  bool possible_ = false;
  int32_t mark_id_ = -1;  // it is spelled in bytes
  size_t num_read_ = 0;
};

class ConstraintSequence final : public TokenConstraint {
 public:
  ConstraintSequence(std::shared_ptr<const CompiledConstraint> compiled,
                     const ConstraintVocabulary& vocabulary, const ConstraintOptions& options)
      : compiled_(std::move(compiled)),
        vocabulary_(vocabulary),
        free_text_(options.begin_after, vocabulary.tokenizer()),
        opening_(free_text_.mark().empty() ? std::string() : options.may_begin_with,
                 vocabulary.tokenizer()),
        in_free_text_(!free_text_.mark().empty() && !opening_.possible()),
        stepper_(compiled_->machine),
        walk_(stepper_, vocabulary.trie()),
        lists_(*compiled_, vocabulary) {
    if (opening_.possible()) {
      begin(compiled_->led_top);
      led_cost_ = stepper_.cost(reading_);
    }
    begin(in_free_text_ ? compiled_->led_top : compiled_->machine.top);
    for (const std::string& mark : compiled_->machine.marks) {
      mark_ids_.push_back(vocabulary.tokenizer().token_id(mark).value_or(-1));
    }
  }

  Status mask(int64_t tokens_left, std::span<uint8_t> allowed) const override {
    return mask_within(kMaskWorkMax, tokens_left, allowed);
  }

  Status mask_within(uint64_t work_max, int64_t tokens_left,
                     std::span<uint8_t> allowed) const override {
    may_come_.assign(allowed.size(), 0);
    work_left_ = std::min(work_max, kMaskWorkMax);
    if (opening_.possible()) allow_opening(tokens_left - 1);
    if (in_free_text_) {
      allow_free_text(tokens_left - 1);
    } else if (!ended_ && !(opening_.possible() && is_dead())) {
      if (!allow_grammar(tokens_left - 1)) {
        if (work_max < kMaskWorkMax) return Error{ErrorCode::kOverloaded, "the mask is dear"};
        return Error{ErrorCode::kInvalid,
                     "the schema can be read in too many ways here to tell what may follow: use "
                     "fewer alternatives in anyOf, oneOf and pattern"};
      }
    }
    if (!in_free_text_ && (ended_ || reading_.complete)) {
      for (int32_t id : vocabulary_.stop_ids()) allow(id);
    }
    for (size_t i = 0; i < allowed.size(); ++i) {
      if (may_come_[i] == 0) allowed[i] = 0;
    }
    return {};
  }

  void accept(int32_t id) override {
    const auto& stops = vocabulary_.stop_ids();
    if (std::find(stops.begin(), stops.end(), id) != stops.end()) {
      ended_ = true;
    } else if (opening_.possible()) {
      accept_opening(id);
    } else if (in_free_text_) {
      accept_free_text(id);
    } else {
      accept_in_grammar(id);
    }
  }

  bool finished() const override {
    return !in_free_text_ && (ended_ || (reading_.complete && reading_.threads.empty()));
  }

  int64_t tokens_min() const override {
    if (ended_) return 0;
    if (opening_.possible() && is_dead()) return opened_cost();
    return (in_free_text_ ? free_text_.cost(matched_) : 0) + stepper_.cost(reading_);
  }

 private:
  void allow(int32_t id) const {
    if (id >= 0 && static_cast<size_t>(id) < may_come_.size())
      may_come_[static_cast<size_t>(id)] = 1;
  }

  void allow_node(int32_t node) const {
    const Trie& trie = vocabulary_.trie();
    const auto n = static_cast<size_t>(node);
    for (int32_t i = trie.token_begin[n]; i < trie.token_begin[n + 1]; ++i) {
      allow(trie.tokens[static_cast<size_t>(i)]);
    }
  }

  void begin(int32_t rule) {
    reading_ = {};
    stepper_.drop_frames(0);
    stepper_.settle(compiled_->machine.rule_starts[static_cast<size_t>(rule)], -1, reading_);
  }

  // --- free text that may come ---

  bool is_dead() const { return reading_.threads.empty() && !reading_.complete; }
  int64_t opened_cost() const { return opening_.cost() + free_text_.cost(0) + led_cost_; }

  void allow_opening(int64_t budget) const {
    // In bytes each token takes one of the mark at least.
    if (opened_cost() - 1 > budget && !is_dead()) return;
    opening_.allow_next(
        vocabulary_.trie(), [&](int32_t id) { allow(id); },
        [&](int32_t node) { allow_node(node); });
  }

  // Both ways stay open as long as the text fits both.
  void accept_opening(int32_t id) {
    opening_.accept(id, vocabulary_.tokenizer().token_bytes(id));
    if (opening_.read()) {
      begin(compiled_->led_top);
      opening_ = OpeningMark({}, vocabulary_.tokenizer());
      in_free_text_ = true;
    } else if (!is_dead()) {
      accept_in_grammar(id);
    }
  }

  // --- free text ---

  void allow_free_text(int64_t budget) const {
    const int64_t after = stepper_.cost(reading_);
    if (budget < free_text_.cost(0) + after) return allow_next_of_mark();
    const text::Tokenizer& tokenizer = vocabulary_.tokenizer();
    for (int32_t id = 0; id < tokenizer.id_end(); ++id) {
      if (tokenizer.has_token(id) && !tokenizer.is_special(id)) allow(id);
    }
    for (int32_t id : vocabulary_.stop_ids()) forbid(id);
    for (int32_t id : free_text_.may_end_it()) {
      if (id != free_text_.mark_id() && !may_follow_free_text(id, budget)) forbid(id);
    }
    allow(free_text_.mark_id());
  }

  void forbid(int32_t id) const {
    if (id >= 0 && static_cast<size_t>(id) < may_come_.size())
      may_come_[static_cast<size_t>(id)] = 0;
  }

  void allow_next_of_mark() const {
    if (free_text_.mark_id() >= 0) return allow(free_text_.mark_id());
    const Trie& trie = vocabulary_.trie();
    for (int32_t node = 0; node < trie.num_nodes();
         node = trie.subtree_end[static_cast<size_t>(node)]) {
      const char byte = static_cast<char>(trie.byte[static_cast<size_t>(node)]);
      if (byte == free_text_.mark()[matched_]) allow_node(node);
    }
  }

  // What stands behind the mark in the same token must fit the grammar.
  bool may_follow_free_text(int32_t id, int64_t budget) const {
    const std::string_view bytes = vocabulary_.tokenizer().token_bytes(id);
    size_t matched = matched_;
    const auto end = free_text_.find_end(bytes, matched);
    if (!end) return true;
    const size_t frames = stepper_.num_frames();
    Reading reading = reading_, next;
    for (char c : bytes.substr(*end)) {
      stepper_.step(reading, static_cast<uint8_t>(c), next);
      std::swap(reading, next);
    }
    const bool fits = stepper_.cost(reading) <= budget;
    stepper_.drop_frames(frames);
    return fits;
  }

  void accept_free_text(int32_t id) {
    const std::string_view bytes = vocabulary_.tokenizer().token_bytes(id);
    const auto end = free_text_.find_end(bytes, matched_);
    if (!end) return;
    in_free_text_ = false;
    read(bytes.substr(*end));
  }

  // --- the grammar ---

  // Beyond the greatest depth, or with less than it takes, only the shortest completion is left.
  int64_t budget_here(int64_t budget) const {
    const int64_t cost = stepper_.cost(reading_);
    int32_t depth = kConstraintDepthMax + 1;
    for (const Thread& thread : reading_.threads) {
      depth = std::min(depth, thread.stack < 0 ? 0 : stepper_.frame(thread.stack).depth);
    }
    if (depth > kConstraintDepthMax) budget = std::min(budget, cost - 1);
    return std::max(budget, cost - 1);
  }

  // false: it takes too much work.
  bool allow_grammar(int64_t tokens_after) const {
    const int64_t budget = budget_here(tokens_after);
    std::vector<Thread> covered;
    for (const Thread& thread : reading_.threads) {
      const auto& state = compiled_->machine.states[static_cast<size_t>(thread.state)];
      if (state.like < 0) continue;
      for (const auto& [rule, behind] : state.calls) covered.push_back({behind, thread.stack});
    }
    for (const Thread& thread : reading_.threads) {
      if (!is_covered(thread, covered) && !allow_thread(thread, budget)) return false;
    }
    return true;
  }

  // A state that is like any string already says what the characters that it calls may be.
  bool is_covered(const Thread& thread, const std::vector<Thread>& covered) const {
    if (thread.stack < 0 || covered.empty()) return false;
    const Frame& frame = stepper_.frame(thread.stack);
    return std::find(covered.begin(), covered.end(), Thread{frame.state, frame.below}) !=
           covered.end();
  }

  // Tokens that stay within the thread's rule, and then those that leave it.
  bool allow_thread(const Thread& thread, int64_t budget) const {
    const auto& state = compiled_->machine.states[static_cast<size_t>(thread.state)];
    const int64_t below = stepper_.cost_below(thread.stack);
    for (const auto& [mark, next] : state.marks) {
      const int64_t cost = compiled_->machine.states[static_cast<size_t>(next)].cost + below;
      if (cost <= budget) allow(mark_ids_[static_cast<size_t>(mark)]);
    }
    const auto tokens = lists_.get(thread.state, &work_left_);
    if (!tokens || !TokenLists::take(1 + tokens->num_ids() / kListedPerStep, &work_left_)) {
      return false;
    }
    for (const auto& [cost, those] : tokens->by_cost) {
      if (cost + below > budget) continue;
      for (const auto& [id, num_chars] : those) {
        if (num_chars > state.chars_max) break;
        // Each character that is still missing takes a byte at least.
        const int64_t missing = std::max(state.chars_min - num_chars, 0);
        if (cost + missing + below <= budget) allow(id);
      }
    }
    return allow_behind(thread, tokens->ends, budget);
  }

  // Tokens that leave the thread's rule, at any of the nodes.
  bool allow_behind(const Thread& thread, const std::vector<StateTokens::End>& ends,
                    int64_t budget) const {
    if (ends.empty()) return true;
    const uint64_t work_before = stepper_.work();
    stepper_.allow_work(work_left_);
    const auto& state = compiled_->machine.states[static_cast<size_t>(thread.state)];
    const int32_t stack = thread.stack;
    const size_t frames = stepper_.num_frames();
    Reading& behind = walk_.start();
    behind.threads.clear();
    behind.complete = stack < 0;
    if (stack >= 0) {
      const Frame frame = stepper_.frame(stack);
      stepper_.settle(frame.state, frame.below, behind);
    }
    const bool fits = stepper_.cost(behind) <= budget;
    for (const auto& [node, num_chars] : ends) {
      if (num_chars < state.chars_min || num_chars > state.chars_max) continue;
      if (fits) allow_node(node);
      walk_.run(node + 1, vocabulary_.trie().subtree_end[static_cast<size_t>(node)],
                [&](int32_t inner, const Reading& reading) {
                  if (stepper_.cost(reading) <= budget) allow_node(inner);
                });
    }
    stepper_.drop_frames(frames);
    if (stepper_.exhausted()) return false;
    work_left_ -= stepper_.work() - work_before;
    return true;
  }

  void accept_in_grammar(int32_t id) {
    const auto mark = std::find(mark_ids_.begin(), mark_ids_.end(), id);
    if (mark == mark_ids_.end()) return read(vocabulary_.tokenizer().token_bytes(id));
    Reading next;
    stepper_.step_mark(reading_, static_cast<int32_t>(mark - mark_ids_.begin()), next);
    reading_ = std::move(next);
    stepper_.keep_only(reading_);
  }

  void read(std::string_view bytes) {
    Reading next;
    for (char c : bytes) {
      stepper_.step(reading_, static_cast<uint8_t>(c), next);
      std::swap(reading_, next);
    }
    stepper_.keep_only(reading_);
  }

  const std::shared_ptr<const CompiledConstraint> compiled_;
  const ConstraintVocabulary& vocabulary_;
  const FreeText free_text_;
  OpeningMark opening_;  // possible: neither it nor the grammar has been chosen
  int64_t led_cost_ = 0;
  bool in_free_text_ = false;
  size_t matched_ = 0;  // bytes of the free text's mark
  bool ended_ = false;
  std::vector<int32_t> mark_ids_;
  Reading reading_;
  // Working memory of mask(), which leaves it as it was.
  mutable Stepper stepper_;
  mutable TreeWalk walk_;
  mutable TokenLists lists_;
  mutable std::vector<uint8_t> may_come_;
  mutable uint64_t work_left_ = 0;
};

}  // namespace

uint64_t CompiledConstraint::next_id() {
  static std::atomic<uint64_t> last{0};
  return ++last;
}

std::unique_ptr<TokenConstraint> make_constraint_sequence(
    std::shared_ptr<const CompiledConstraint> compiled, const ConstraintVocabulary& vocabulary,
    const ConstraintOptions& options) {
  return std::make_unique<ConstraintSequence>(std::move(compiled), vocabulary, options);
}

void find_shared_tokens(ConstraintVocabulary::Trie& trie) {
  CompileWork work;
  GrammarBuilder grammar(work);
  const JsonRules rules = add_json_rules(grammar);
  const auto machine = grammar.compile(rules.string);
  CHECK(machine.has_value());
  for (int32_t state = 0; state < machine->num_shared_states; ++state) {
    uint64_t any = std::numeric_limits<uint64_t>::max() / 2;
    auto tokens = StateTokensFinder(*machine, state, trie).run(&any);
    CHECK(tokens.has_value());
    trie.shared.push_back(std::make_shared<const StateTokens>(std::move(*tokens)));
  }
}

}  // namespace atl::constrain
