#include "tests/sim/world.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <exception>
#include <tuple>
#include <utility>

namespace atl::sim {
using namespace std::chrono_literals;
namespace {

constexpr size_t kStackBytes = 256 << 10;

// Stacks are used again: the memory of a new one has to be cleared.
std::vector<std::unique_ptr<std::vector<std::byte>>>& free_stacks() {
  static std::vector<std::unique_ptr<std::vector<std::byte>>> stacks;
  return stacks;
}

std::vector<std::byte>* take_stack() {
  auto& stacks = free_stacks();
  if (stacks.empty()) return new std::vector<std::byte>(kStackBytes);
  std::vector<std::byte>* stack = stacks.back().release();
  stacks.pop_back();
  return stack;
}

}  // namespace

// ---- Machines ----------------------------------------------------------------------------------

void Machine::pause() {
  if (dead_) return;
  paused_ = true;
  world_.trace([&] { return fmt::format("{} stops", name_); });
}

void Machine::resume() {
  if (!paused_) return;
  paused_ = false;
  world_.trace([&] { return fmt::format("{} goes on", name_); });
  for (std::function<void()>& action : std::exchange(deferred_, {})) {
    world_.after(0ns, [this, action = std::move(action)] { when_running(action); });
  }
}

void Machine::kill() {
  if (dead_) return;
  world_.trace([&] { return fmt::format("{} ends", name_); });
  dead_ = true;
  paused_ = false;
  deferred_.clear();
  // Those that others started and wait for end before them.
  for (size_t f = world_.fibers_.size(); f-- > 0;) {
    Fiber& fiber = *world_.fibers_[f];
    if (&fiber.machine_ != this || fiber.done_) continue;
    CHECK(&fiber != world_.current_);
    fiber.kill_ = true;
    world_.resume(fiber);
    CHECK(fiber.done_);
  }
}

void Machine::when_running(std::function<void()> action) {
  if (dead_) return;
  if (paused_) {
    deferred_.push_back(std::move(action));
  } else {
    action();
  }
}

// ---- Fibers ------------------------------------------------------------------------------------

Fiber::Fiber(World& world, Machine& machine, std::function<void()> body)
    : world_(world), machine_(machine), body_(std::move(body)) {
  stack_ = take_stack();
  CHECK_EQ(getcontext(&context_), 0);
  context_.uc_stack.ss_sp = stack_->data();
  context_.uc_stack.ss_size = stack_->size();
  context_.uc_link = nullptr;
  const auto address = reinterpret_cast<uintptr_t>(this);
  makecontext(&context_, reinterpret_cast<void (*)()>(&Fiber::enter), 2,
              static_cast<unsigned>(address >> 32), static_cast<unsigned>(address));
}

void Fiber::enter(unsigned high, unsigned low) {
  reinterpret_cast<Fiber*>(static_cast<uintptr_t>(high) << 32 | low)->run();
}

void Fiber::run() {
  try {
    if (!kill_) body_();
  } catch (const Killed&) {
  }
  body_ = nullptr;
  done_ = true;
  for (const auto& [fiber, ticket] : joiners_) world_.wake(*fiber, ticket);
  setcontext(&caller_);
}

// ---- The world ---------------------------------------------------------------------------------

World::~World() {
  for (const auto& machine : machines_) machine->kill();
}

Machine& World::add_machine(std::string name) {
  machines_.push_back(std::make_unique<Machine>(*this, std::move(name)));
  return *machines_.back();
}

void World::at(Time time, std::function<void()> action) {
  events_.push_back({std::max(time, now_), draw_.bits(), ++last_number_, std::move(action)});
  std::push_heap(events_.begin(), events_.end());
}

Fiber& World::start(Machine& machine, std::function<void()> body) {
  CHECK(!machine.is_dead());
  fibers_.push_back(std::make_unique<Fiber>(*this, machine, std::move(body)));
  Fiber& fiber = *fibers_.back();
  fiber.ticket_ = ++last_ticket_;
  wake(fiber, fiber.ticket_);
  return fiber;
}

void World::wake(Fiber& fiber, uint64_t ticket) {
  at(now_, [this, &fiber, ticket] {
    fiber.machine_.when_running([this, &fiber, ticket] {
      if (fiber.done_ || fiber.ticket_ != ticket) return;
      fiber.woken_ = true;
      resume(fiber);
    });
  });
}

bool World::park(std::optional<Time> until) {
  if (current_->kill_) {
    if (std::uncaught_exceptions() > 0) return true;  // a destructor waits: nothing to wait for
    throw Killed();
  }
  const bool woken = wait(until);
  if (current_->kill_) throw Killed();
  return woken;
}

bool World::wait(std::optional<Time> until) {
  Fiber& fiber = *current_;
  const uint64_t ticket = fiber.ticket_ = ++last_ticket_;
  fiber.woken_ = false;
  if (until) {
    at(*until, [this, &fiber, ticket] {
      fiber.machine_.when_running([this, &fiber, ticket] {
        if (!fiber.done_ && fiber.ticket_ == ticket) resume(fiber);
      });
    });
  }
  CHECK_EQ(swapcontext(&fiber.context_, &fiber.caller_), 0);
  return fiber.woken_;
}

void World::resume(Fiber& fiber) {
  Fiber* const before = std::exchange(current_, &fiber);
  CHECK_EQ(swapcontext(&fiber.caller_, &fiber.context_), 0);
  current_ = before;
  if (fiber.done_ && fiber.stack_ != nullptr) {
    free_stacks().emplace_back(std::exchange(fiber.stack_, nullptr));
  }
}

void World::join(Fiber& fiber) {
  while (!fiber.done_) {
    CHECK(current_ != nullptr);
    if (current_->kill_) return;  // so is the other one
    fiber.joiners_.emplace_back(current_, next_ticket());
    wait(std::nullopt);  // maybe in a destructor, which must not throw
  }
}

bool World::run(Time until, const std::function<bool()>& done) {
  while (failure_.empty()) {
    if (done()) return true;
    if (events_.empty() || events_.front().time > until) {
      now_ = std::max(now_, until);
      return false;
    }
    std::pop_heap(events_.begin(), events_.end());
    const Event event = std::move(events_.back());
    events_.pop_back();
    now_ = event.time;
    ++num_events_;
    fingerprint_ = (fingerprint_ ^ static_cast<uint64_t>(now_.time_since_epoch().count()) ^
                    event.number << 40) *
                   0x100000001b3u;
    event.action();
  }
  return false;
}

void World::fail(const std::string& what) {
  if (!failure_.empty()) return;
  failure_ = fmt::format("after {:.6f} s: {}", seconds_between(Time(), now_), what);
  trace([&] { return "FAILED: " + what; });
}

void World::print(const std::string& line) {
  std::fprintf(stderr, "%12.6f  %s\n", seconds_between(Time(), now_), line.c_str());
}

// ---- Threads -----------------------------------------------------------------------------------

namespace {

class SimCondition final : public Condition {
 public:
  explicit SimCondition(World& world) : world_(world) {}
  void notify_all() override {
    for (const auto& [fiber, ticket] : std::exchange(waiting_, {})) world_.wake(*fiber, ticket);
  }
  void wait(std::unique_lock<std::mutex>& lock) override { park(lock, std::nullopt); }
  bool wait_until(std::unique_lock<std::mutex>& lock, Time time) override {
    return park(lock, time);
  }
  bool wait_for(std::unique_lock<std::mutex>& lock, Duration time) override {
    return park(lock, world_.now() + time);
  }

 private:
  bool park(std::unique_lock<std::mutex>& lock, std::optional<Time> until) {
    const auto own = std::pair(world_.current(), world_.next_ticket());
    CHECK(own.first != nullptr);
    waiting_.push_back(own);
    lock.unlock();
    const bool woken = world_.park(until);
    lock.lock();
    std::erase(waiting_, own);
    return woken;
  }

  World& world_;
  std::vector<std::pair<Fiber*, uint64_t>> waiting_;
};

class SimThread final : public Thread {
 public:
  SimThread(World& world, Fiber& fiber) : world_(world), fiber_(fiber) {}
  ~SimThread() override { join(); }
  void join() override { world_.join(fiber_); }

 private:
  World& world_;
  Fiber& fiber_;
};

}  // namespace

std::unique_ptr<Condition> SimThreads::make_condition() {
  return std::make_unique<SimCondition>(world_);
}

std::unique_ptr<Thread> SimThreads::start(std::function<void()> body) {
  return std::make_unique<SimThread>(world_, world_.start(machine_, std::move(body)));
}

}  // namespace atl::sim
