// What a sequence may say next: constrained decoding.
#pragma once

#include <cstdint>
#include <span>

#include "base/result.h"

namespace atl::constrain {

// Follows one sequence and knows which tokens may come next. One thread at a time.
//
// The promise: with mask() applied before every token, and with at least tokens_min() tokens to
// spend at the start, the text up to the stop token is valid, also if max_tokens runs out: near the
// end only what can still be completed in time is allowed. (Every byte has a token of its own in a
// byte-level vocabulary, so a completion of n bytes takes at most n tokens.)
class TokenConstraint {
 public:
  virtual ~TokenConstraint() = default;
  // Clears allowed[id] ([vocab_limit], 0 or 1) of every token that may not come next. At least one
  // that was set stays set, if the ones given were all tokens of the vocabulary. A stop id stays
  // only where the text may end.
  //   tokens_left  that may still be generated, this one included; >= 1
  // kInvalid: the constraint can be read in so many ways at this place that finding the tokens
  // takes more work than one request may cost the others; `allowed` is left unspecified. The same
  // text always has the same answer, on any machine.
  virtual Status mask(int64_t tokens_left, std::span<uint8_t> allowed) const = 0;
  // As mask(), if it takes at most so much work (steps of some 24 ns); kOverloaded: it takes more,
  // `allowed` is left unspecified, and mask() tells.
  virtual Status mask_within(uint64_t work_max, int64_t tokens_left,
                             std::span<uint8_t> allowed) const {
    (void)work_max;
    return mask(tokens_left, allowed);
  }
  // The token that was chosen; one that mask() had left.
  virtual void accept(int32_t id) = 0;
  // The text is whole, and nothing may follow.
  virtual bool finished() const = 0;
  // Tokens that are enough for a whole text from here on, the stop token not counted.
  virtual int64_t tokens_min() const = 0;
};

}  // namespace atl::constrain
