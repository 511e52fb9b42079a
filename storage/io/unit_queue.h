// Independent pieces of work, shared among threads.
#pragma once

#include <cstdint>
#include <functional>

namespace atl::storage {

using UnitWorker = std::function<void(int64_t unit)>;

// Works off units 0 .. num_units - 1, in ascending order of start, with up to num_threads threads
// (the caller is one). Each thread makes its worker once, so that a worker may own buffers. The
// first exception, of a worker or of making one, is rethrown here after all threads have ended;
// the others stop after their unit.
void run_units(int64_t num_units, int num_threads, const std::function<UnitWorker()>& make_worker);

}  // namespace atl::storage
