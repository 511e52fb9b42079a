// One world from one seed: a cluster that serves requests while things go wrong, and then well
// again. What has to hold:
//
// - With faults: no token is another than without them, no request is answered twice, bounds of
//   memory, queues and messages hold. Who was never harmed is never lost. A request ends in an
//   error only where every node had a fault, or it asked for one (deadline). A coordinator that is
//   killed takes its requests with it; the next one finds the nodes, and clients ask it again.
// - Healed: within kRecovery every accepted request has ended, every node is ready, and is asked
//   for the tiles that it owns by the plan for all; one more request then is answered right.
#pragma once

#include <cstdint>
#include <string>

#include "tests/sim/model.h"

namespace atl::sim {

struct Outcome {
  std::string failure;       // "": all of it held
  std::string draw;          // what the seed drew, in a line
  uint64_t fingerprint = 0;  // of everything that happened
  // What was gone through, added up by who runs many.
  uint64_t events = 0, requests = 0, tokens = 0, errors = 0, faults = 0, losses = 0, restarts = 0,
           replans = 0, messages_lost = 0, messages_doubled = 0, messages_held = 0,
           reads_failed = 0, reads_flipped = 0, preempted = 0;
  double recovery_s = 0;  // simulated seconds from healing until all was well
  Outcome& operator+=(const Outcome& other);
};

Outcome run_scenario(uint64_t seed, bool verbose);

}  // namespace atl::sim
