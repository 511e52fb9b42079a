// A block's threads as fibers of one OS thread, switched only where a kernel waits for others: at
// barriers, warp barriers, shuffles and votes. Which fiber goes on is an order of choice, since a
// missing barrier shows in some orders only: run each test in all of them.
//
// Seen: a barrier that is missing (in one of the orders) or not reached by all (deadlock, with
// counts), shared memory read before it was written (it starts as NaNs), and, under the address
// sanitizer, reads and writes outside of global memory. Not seen: bank conflicts, the memory model,
// anything about speed.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <utility>
#include <vector>

#define SIMT_KERNEL(threads) void
#define SIMT_DEVICE inline
#define SIMT_UNROLL
#define SIMT_NO_UNROLL

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  constexpr dim3(unsigned nx = 1, unsigned ny = 1, unsigned nz = 1) : x(nx), y(ny), z(nz) {}
};

// Saves the callee-saved registers and the stack pointer in *save, takes those at `load`.
extern "C" void atl_simt_switch(void** save, void* load);

namespace simt {

using Stream = void*;

enum class Order { kFirstIn, kNewestFirst, kRandom };

struct Warp {
  static constexpr size_t kSlotBytes = 16;
  int live = 0;  // threads that have not ended
  std::vector<struct Fiber*> waiting;
  // What the lanes show each other; two, so that a fast lane does not overwrite what a slow one has
  // yet to read.
  alignas(16) unsigned char slot[2][32][kSlotBytes];
};

struct Fiber {
  void* stack_pointer = nullptr;
  int thread = 0;
  Warp* warp = nullptr;
  unsigned turns = 0;  // exchanges so far
};

struct Block {
  std::vector<Fiber> fibers;
  std::vector<Warp> warps;
  std::vector<Fiber*> runnable;
  std::vector<Fiber*> waiting;  // at the block's barrier
  int live = 0;
  Fiber* current = nullptr;
  void* main_stack = nullptr;
  std::unique_ptr<unsigned char[]> memory;  // shared
  size_t memory_bytes = 0;
  const std::function<void()>* body = nullptr;
  std::mt19937_64 random{1};
  dim3 index;
};

// The block that runs on this OS thread, and the order of its fibers.
inline thread_local Block* running = nullptr;
inline thread_local Order order = Order::kFirstIn;

[[noreturn]] inline void fail(const char* what) {
  std::fprintf(stderr, "simt: %s\n", what);
  std::abort();
}

inline int thread_x() { return running->current->thread; }
inline int block_x() { return static_cast<int>(running->index.x); }
inline int block_y() { return static_cast<int>(running->index.y); }
inline int block_z() { return static_cast<int>(running->index.z); }

// Goes on with another fiber, or with run_block() when none can run.
inline void resume_next(void** save) {
  Block& block = *running;
  std::vector<Fiber*>& runnable = block.runnable;
  Fiber* const before = block.current;
  if (runnable.empty()) {
    block.current = nullptr;
    atl_simt_switch(save, block.main_stack);
    return;
  }
  size_t place = 0;
  if (order == Order::kNewestFirst) place = runnable.size() - 1;
  if (order == Order::kRandom) place = block.random() % runnable.size();
  Fiber* const next = runnable[place];
  runnable.erase(runnable.begin() + static_cast<std::ptrdiff_t>(place));
  block.current = next;
  if (next == before) return;  // its saved stack pointer is an old one
  atl_simt_switch(save, next->stack_pointer);
}

// Waits until `expected` threads have come; the last one does `last` first.
template <class Last>
void arrive(std::vector<Fiber*>& waiting, int expected, const Last& last) {
  Fiber* const self = running->current;
  waiting.push_back(self);
  if (static_cast<int>(waiting.size()) == expected) {
    last();
    running->runnable.insert(running->runnable.end(), waiting.begin(), waiting.end());
    waiting.clear();
  }
  resume_next(&self->stack_pointer);
}

inline void sync_block() {
  arrive(running->waiting, running->live, [] {});
}
inline void sync_warp() {
  Warp& warp = *running->current->warp;
  arrive(warp.waiting, warp.live, [] {});
}

// Every lane of the warp shows `mine`; the 32 of them are at the returned place.
template <class T>
unsigned char (*exchange(const T& mine))[Warp::kSlotBytes] {
  static_assert(sizeof(T) <= Warp::kSlotBytes);
  Fiber& self = *running->current;
  Warp& warp = *self.warp;
  if (warp.live != 32) fail("a collective in a warp of which threads have ended");
  const unsigned turn = self.turns++ % 2;
  std::memcpy(warp.slot[turn][self.thread % 32], &mine, sizeof(T));
  arrive(warp.waiting, 32, [] {});
  return warp.slot[turn];
}

template <class T>
T shuffle_xor(T value, int mask) {
  const auto all = exchange(value);
  T out;
  std::memcpy(&out, all[(thread_x() % 32) ^ mask], sizeof(T));
  return out;
}
inline uint32_t ballot(bool value) {
  const auto all = exchange(value);
  uint32_t votes = 0;
  for (uint32_t lane = 0; lane < 32; ++lane) votes |= uint32_t{all[lane][0] != 0} << lane;
  return votes;
}

inline float fma_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline float mul_rn(float a, float b) { return a * b; }
inline float add_rn(float a, float b) { return a + b; }
inline float div_rn(float a, float b) { return a / b; }
inline float sqrt_rn(float a) { return std::sqrt(a); }
inline float as_float(uint32_t bits) { return std::bit_cast<float>(bits); }
inline uint32_t as_bits(float value) { return std::bit_cast<uint32_t>(value); }
inline float from_int(int value) { return static_cast<float>(value); }

template <class T>
T* shared() {
  const auto at = (reinterpret_cast<uintptr_t>(running->memory.get()) + 127) & ~uintptr_t{127};
  return reinterpret_cast<T*>(at);
}

// Runs all threads of one block to their end.
void run_block(dim3 index, int threads, size_t shared_bytes, const std::function<void()>& body);

template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, int threads, size_t shared_bytes, Stream,
            Arguments... arguments) {
  const std::function<void()> body = [&] { kernel(Parameters(arguments)...); };
  const unsigned blocks = grid.x * grid.y * grid.z;
  for (unsigned i = 0; i < blocks; ++i) {
    // Blocks have no order either.
    const unsigned at = order == Order::kFirstIn ? i : blocks - 1 - i;
    run_block(dim3(at % grid.x, at / grid.x % grid.y, at / grid.x / grid.y), threads, shared_bytes,
              body);
  }
}

}  // namespace simt
