#include "base/affinity.h"

#include <pthread.h>

namespace atl {
namespace {

bool set_one(pthread_t thread, int cpu) {
  if (cpu < 0 || cpu >= CPU_SETSIZE) return false;
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(cpu, &set);
  return pthread_setaffinity_np(thread, sizeof(set), &set) == 0;
}

}  // namespace

bool pin_thread(std::thread& thread, int cpu) { return set_one(thread.native_handle(), cpu); }

ScopedThreadPin::ScopedThreadPin(int cpu) {
  pinned_ = pthread_getaffinity_np(pthread_self(), sizeof(saved_), &saved_) == 0 &&
            set_one(pthread_self(), cpu);
}

ScopedThreadPin::~ScopedThreadPin() {
  if (pinned_) pthread_setaffinity_np(pthread_self(), sizeof(saved_), &saved_);
}

}  // namespace atl
