#include "kernels/cuda/emulator.h"

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#endif

#ifndef __x86_64__
#error "the emulator switches stacks by hand: x86-64 only"
#endif

asm(R"(
.text
.globl atl_simt_switch
.type atl_simt_switch,@function
atl_simt_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size atl_simt_switch,.-atl_simt_switch
)");

namespace simt {
namespace {

constexpr size_t kStackBytes = 64 << 10;
constexpr int kSavedRegisters = 6;
constexpr size_t kSharedAlign = 128;

// Kept between launches: fresh stacks cost more than small kernels.
thread_local std::vector<std::unique_ptr<unsigned char[]>> stacks;

void fiber_main() {
  Block& block = *running;
  (*block.body)();
  Fiber* const self = block.current;
  --block.live;
  --self->warp->live;
  resume_next(&self->stack_pointer);
  fail("an ended thread was resumed");
}

// A stack that atl_simt_switch() returns from into fiber_main().
void* fresh_stack(unsigned char* memory) {
#ifdef __SANITIZE_ADDRESS__
  __asan_unpoison_memory_region(memory, kStackBytes);  // an ended thread leaves its frames behind
#endif
  const auto top = (reinterpret_cast<uintptr_t>(memory) + kStackBytes) & ~uintptr_t{63};
  void** pointer = reinterpret_cast<void**>(top) - 1;
  *--pointer = reinterpret_cast<void*>(&fiber_main);
  return pointer - kSavedRegisters;
}

}  // namespace

void run_block(dim3 index, int threads, size_t shared_bytes, const std::function<void()>& body) {
  Block block;
  running = &block;
  block.index = index;
  block.body = &body;
  block.live = threads;
  block.memory_bytes = shared_bytes;
  block.memory = std::make_unique<unsigned char[]>(shared_bytes + kSharedAlign);
  std::memset(block.memory.get(), 0xff, shared_bytes + kSharedAlign);  // NaNs
  block.fibers.resize(static_cast<size_t>(threads));
  block.warps.resize(static_cast<size_t>((threads + 31) / 32));
  while (stacks.size() < static_cast<size_t>(threads)) {
    stacks.push_back(std::make_unique<unsigned char[]>(kStackBytes));
  }
  for (int thread = 0; thread < threads; ++thread) {
    Fiber& fiber = block.fibers[static_cast<size_t>(thread)];
    fiber.thread = thread;
    fiber.warp = &block.warps[static_cast<size_t>(thread / 32)];
    ++fiber.warp->live;
    fiber.stack_pointer = fresh_stack(stacks[static_cast<size_t>(thread)].get());
    block.runnable.push_back(&fiber);
  }
  resume_next(&block.main_stack);
  if (block.live != 0) {
    size_t at_warps = 0;
    for (const Warp& warp : block.warps) at_warps += warp.waiting.size();
    std::fprintf(stderr,
                 "simt: deadlock: %d threads live, %zu at the block's barrier, %zu at warps'\n",
                 block.live, block.waiting.size(), at_warps);
    std::abort();
  }
  running = nullptr;
}

}  // namespace simt
