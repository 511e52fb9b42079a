// A small world in one thread: machines with threads of their own, events, and time that passes
// only when nobody has anything to do. Everything follows from one seed.
//
// A thread of a machine is a fiber: it runs until it waits (SimThreads, World::sleep), and then the
// next event's turn has come. Events of one instant come in an order that the seed draws. A machine
// may be paused (its fibers and what it would answer wait) or killed (its fibers are unwound where
// they wait, and what it owned is gone).
#pragma once

#include <ucontext.h>

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "base/check.h"
#include "base/clock.h"
#include "base/threads.h"

namespace atl::sim {

using Time = Clock::TimePoint;
using Duration = std::chrono::nanoseconds;

// Source: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014 (splitmix64).
class Draw {
 public:
  explicit Draw(uint64_t seed) : state_(seed * 0x9e3779b97f4a7c15u + 0x1234567) {}
  uint64_t bits() {
    uint64_t z = state_ += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }
  int64_t below(int64_t n) { return static_cast<int64_t>(bits() % static_cast<uint64_t>(n)); }
  int64_t between(int64_t first, int64_t last) { return first + below(last - first + 1); }
  Duration between(Duration first, Duration last) {
    return Duration(between(first.count(), last.count()));
  }
  bool chance(double p) { return static_cast<double>(bits() >> 11) * 0x1p-53 < p; }
  template <typename T>
  T one_of(std::initializer_list<T> values) {
    return *(values.begin() + below(std::ssize(values)));
  }

 private:
  uint64_t state_;
};

class Fiber;
class World;

// A process: what it runs on stops and ends together.
class Machine {
 public:
  Machine(World& world, std::string name) : world_(world), name_(std::move(name)) {}
  const std::string& name() const { return name_; }
  bool is_dead() const { return dead_; }
  bool is_paused() const { return paused_; }
  void pause();
  void resume();
  // Unwinds its fibers. Not from one of them.
  void kill();
  // Now, or when it is no longer paused; never if it is dead by then.
  void when_running(std::function<void()> action);

 private:
  friend class World;
  World& world_;
  const std::string name_;
  bool dead_ = false, paused_ = false;
  std::vector<std::function<void()>> deferred_;
};

// What Machine::kill() unwinds a fiber with. No std::exception: nobody is to catch it.
struct Killed {};

class Fiber {
 public:
  Fiber(World& world, Machine& machine, std::function<void()> body);
  bool is_done() const { return done_; }

 private:
  friend class World;
  friend class Machine;
  static void enter(unsigned high, unsigned low);
  void run();

  World& world_;
  Machine& machine_;
  std::function<void()> body_;
  std::vector<std::byte>* stack_ = nullptr;
  ucontext_t context_{}, caller_{};
  uint64_t ticket_ = 0;  // of the wait that it is in
  bool woken_ = false;   // by a notification, not by time
  bool kill_ = false, done_ = false;
  std::vector<std::pair<Fiber*, uint64_t>> joiners_;
};

class World final : public Clock {
 public:
  explicit World(uint64_t seed) : draw_(seed) {}
  ~World() override;

  Time now() const override { return now_; }
  Draw& draw() { return draw_; }
  Machine& add_machine(std::string name);

  void at(Time time, std::function<void()> action);
  void after(Duration delay, std::function<void()> action) { at(now_ + delay, std::move(action)); }

  Fiber& start(Machine& machine, std::function<void()> body);
  // The rest is for fibers. The one that runs:
  Fiber* current() const { return current_; }
  void sleep(Duration time) { park(now_ + time); }
  // Waits until wake(), or until the time has come: false.
  bool park(std::optional<Time> until);
  // Names the wait that the current fiber begins next, for wake().
  uint64_t next_ticket() const { return last_ticket_ + 1; }
  void wake(Fiber& fiber, uint64_t ticket);
  void join(Fiber& fiber);

  // Runs events until `done` holds or the time has come. Whether it holds.
  bool run(Time until, const std::function<bool()>& done);

  // A line of what happens, if somebody looks. `text` is called only then.
  template <typename Text>
  void trace(const Text& text) {
    if (verbose) print(text());
  }
  bool verbose = false;
  // What is not to be. The first one counts.
  void fail(const std::string& what);
  const std::string& failure() const { return failure_; }
  uint64_t num_events() const { return num_events_; }
  // Of the events so far, their order and times.
  uint64_t fingerprint() const { return fingerprint_; }

 private:
  friend class Machine;
  struct Event {
    Time time;
    uint64_t turn;  // among those of one instant
    uint64_t number;
    std::function<void()> action;
    bool operator<(const Event& other) const {  // the last one first: a heap's top is its largest
      return std::tie(time, turn, number) > std::tie(other.time, other.turn, other.number);
    }
  };
  void resume(Fiber& fiber);
  bool wait(std::optional<Time> until);
  void print(const std::string& line);

  Draw draw_;
  Time now_{};
  std::vector<Event> events_;  // a heap
  uint64_t num_events_ = 0, last_ticket_ = 0, fingerprint_ = 0, last_number_ = 0;
  std::vector<std::unique_ptr<Machine>> machines_;
  std::vector<std::unique_ptr<Fiber>> fibers_;
  Fiber* current_ = nullptr;
  std::string failure_;
};

// A machine's threads.
class SimThreads final : public Threads {
 public:
  SimThreads(World& world, Machine& machine) : world_(world), machine_(machine) {}
  std::unique_ptr<Condition> make_condition() override;
  std::unique_ptr<Thread> start(std::function<void()> body) override;

 private:
  World& world_;
  Machine& machine_;
};

}  // namespace atl::sim
