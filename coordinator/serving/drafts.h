// Drafts: tokens that may come, computed in the same step as the one that is certain, and kept as
// far as they are what would have been chosen anyway.
//
// Two sources: what followed the same tokens earlier in the text (LookupDraft), and the model's
// next-token layer (Engine::draft()). A sequence's tokens don't change: each is chosen from its own
// logits by the random number of its own position, draft or not, and the first one that differs
// ends what is kept of the step. So a draft is worth its rows or is not, and nothing else;
// choose_drafts() says so beforehand, by what steps took (StepCost) and how often drafts were
// right.
#pragma once

#include <cstdint>
#include <span>
#include <unordered_map>

#include "coordinator/serving/step_cost.h"

namespace atl::coordinator {

// What stood behind the last kMatch tokens the last time that they stood in the sequence: right for
// code, quotations and answers from given texts. About 40 bytes for each token of the sequence.
// The engine's thread.
class LookupDraft {
 public:
  static constexpr size_t kMatch = 3;

  // The sequence's first tokens; those of earlier calls are known.
  void learn(std::span<const int32_t> tokens);
  // At most `most` tokens that may follow, of the same `tokens`; empty: nothing is known.
  std::span<const int32_t> propose(std::span<const int32_t> tokens, size_t most) const;

 private:
  static uint64_t key_of(std::span<const int32_t> last);  // exact: ids have 21 bits

  std::unordered_map<uint64_t, size_t> behind_;  // the place after the last match
  size_t learned_ = 0;                           // tokens whose predecessors are known
};

// How often a draft's next token was right, as a share that fades: the last 32 or so count.
class DraftAcceptance {
 public:
  explicit DraftAcceptance(double expected) : share_(expected) {}
  // Of one token that was proposed behind tokens that were right, whether it was computed or not.
  void observe(bool right) { share_ += kFollow * ((right ? 1.0 : 0.0) - share_); }
  double share() const { return share_; }

 private:
  static constexpr double kFollow = 1.0 / 16;
  double share_;
};

// Whether the next-token layer's passes, which cost something whatever becomes of their drafts, are
// made: as long as they bring more than they take, and now and then to see whether they do.
//
// A balance in seconds: what steps take adds kAllowance of it, an open gate adds what was saved and
// takes what was spent. Below zero it closes until the balance is full again. So the losses of any
// time are at most kAllowance of it and one balance, and what was saved long ago pays for nothing.
class DraftGate {
 public:
  static constexpr double kAllowance = 0.003;
  // A full balance: a probe of some dozen passes, 50 s apart; more where a step takes longer than
  // most, as a prompt's rows for the layer then do.
  static constexpr double kFull = 0.15, kFullSteps = 1;

  bool is_open() const { return open_; }
  // What the next step is, whose gate is open. Some in a row are as if it were closed, so that it
  // is known what drafts are held against; the first of them find the caches as passes left them,
  // and are not measured.
  enum class Step : uint8_t { kDrafts, kPlain, kMeasured };
  Step begin_step();
  // Of a step without prompts, drafts and pass, seconds for each of its tokens.
  void observe_plain(double token_s);
  double plain_token_s() const { return plain_token_s_; }  // a mean that fades; 0: not known
  // Of a step and the pass behind it, in seconds.
  void observe(double busy_s, double saved_s, double spent_s);
  // A pass failed: nothing is tried for about 17 minutes of steps.
  void shut();

 private:
  double balance_ = kFull;
  double step_s_ = 0;  // a mean that fades
  double plain_token_s_ = 0;
  int64_t steps_ = 0;
  bool open_ = true;
};

// Rows of a step that are drafts, at most: each has a row of logits (V3: 517 KB).
inline constexpr int64_t kDraftRowsMax = 64;

// A sequence with a draft.
struct DraftRows {
  double acceptance = 0;  // of each token, given that those before it were right
  int64_t context = 0;    // tokens in the cache
  int64_t proposed = 0;   // tokens, >= 1
  int64_t rows = 0;       // of this step: the answer, of the first tokens proposed
};

// Sets the rows of `drafts` so that the step's expected tokens come at the highest rate: none where
// they cost more than they bring.
//   step       without drafts; its rows are one token each
//   rows_left  that the step has room for
void choose_drafts(const StepCost& cost, StepSize step, int64_t rows_left,
                   std::span<DraftRows> drafts);

// How many tokens the next-token layer proposes behind each sequence, 1 to `most`: a further one
// takes a pass of one row each, and is of use where all before it are right.
//   decoding    a step of these sequences without drafts
//   acceptance  of each sequence's drafts
//   pass_s      a pass takes
int64_t choose_chain(const StepCost& cost, StepSize decoding, std::span<const double> acceptance,
                     double pass_s, int64_t most);

}  // namespace atl::coordinator
