// How much memory an expert node takes beside its budget: runs mixed load on a node in a memory
// cgroup whose limit is just above the budget, and prints the most that the group had.
//
//   atoll_memory_budget PACK --ram-budget 3GiB --seconds 3600
//
// Prompts of 1 to 1,000 tokens beside 1 to 16 sequences that are decoded, all of random tokens.
// Needs a cgroup that may be written (root); version 1 or 2.
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <fstream>
#include <random>
#include <thread>

#include "base/units.h"
#include "deployment/deployment.h"

namespace atl {
namespace {

namespace fs = std::filesystem;

struct Options {
  fs::path pack;
  std::string atoll = "atoll";
  uint64_t budget = 0;
  uint64_t above = 64 * kMiB;
  double seconds = 60;
  int64_t rows_max = 512;
};

// The group that the node is in; gone in the end.
class MemoryGroup {
 public:
  explicit MemoryGroup(uint64_t limit)
      : v2_(fs::exists("/sys/fs/cgroup/cgroup.controllers")),
        path_(fs::path(v2_ ? "/sys/fs/cgroup" : "/sys/fs/cgroup/memory") /
              fmt::format("atoll-budget-{}", getpid())) {
    if (mkdir(path_.c_str(), 0755) != 0) {
      throw LoadError(fmt::format("{}: cannot create a memory cgroup: {}", path_.string(),
                                  std::strerror(errno)));
    }
    if (!v2_) write("memory.swappiness", 0);
    if (v2_) write("memory.swap.max", 0);
    write(v2_ ? "memory.max" : "memory.limit_in_bytes", limit);
  }
  ~MemoryGroup() { rmdir(path_.c_str()); }
  fs::path procs() const { return path_ / "cgroup.procs"; }

  // Anonymous memory (huge pages included) and shared memory; page cache is the kernel's to take.
  uint64_t used() const {
    uint64_t bytes = 0;
    std::ifstream in(path_ / "memory.stat");
    std::string name;
    for (uint64_t value = 0; in >> name >> value;) {
      if (name == (v2_ ? "anon" : "rss") || name == "shmem") bytes += value;
    }
    return bytes;
  }
  // What the kernel counted at most, page cache included.
  uint64_t peak() const { return read(v2_ ? "memory.peak" : "memory.max_usage_in_bytes"); }

 private:
  void write(const char* file, uint64_t value) const {
    std::ofstream out(path_ / file);
    out << value;
    if (!out.flush()) throw LoadError(fmt::format("{}: cannot write", (path_ / file).string()));
  }
  uint64_t read(const char* file) const {
    uint64_t value = 0;
    std::ifstream(path_ / file) >> value;
    return value;
  }

  const bool v2_;
  const fs::path path_;
};

// A program that enters the group and becomes atoll.
class Wrapper {
 public:
  Wrapper(const MemoryGroup& group, const std::string& atoll)
      : path_(fs::temp_directory_path() / fmt::format("atoll-budget-{}.sh", getpid())) {
    std::ofstream(path_) << fmt::format("#!/bin/sh\necho $$ > {} || exit 1\nexec {} \"$@\"\n",
                                        group.procs().string(), fs::absolute(atoll).string());
    fs::permissions(path_, fs::perms::owner_all);
  }
  ~Wrapper() { fs::remove(path_); }
  std::string path() const { return path_.string(); }

 private:
  const fs::path path_;
};

class Load {
 public:
  explicit Load(deployment::Deployment& deployment, int64_t chunk)
      : deployment_(deployment), chunk_(chunk), sequences_(16) {}
  ~Load() {
    for (coordinator::Sequence& sequence : sequences_) deployment_.engine().release(sequence);
  }
  uint64_t steps() const { return steps_; }
  uint64_t tokens() const { return tokens_; }

  // A prompt for one of the sequences, then all that have begun are decoded for a while.
  void round() {
    coordinator::Sequence& sequence = sequences_[below(sequences_.size())];
    deployment_.engine().release(sequence);
    for (int64_t left = 1 + static_cast<int64_t>(below(1000)); left > 0;) {
      const int64_t count = std::min(left, chunk_);
      step({&sequence}, count);
      left -= count;
    }
    const size_t batch = 1 + below(sequences_.size());
    for (size_t i = 0, steps = below(40); i < steps; ++i) {
      std::vector<coordinator::Sequence*> running;
      for (coordinator::Sequence& other : sequences_) {
        if (other.num_tokens > 0 && running.size() < batch) running.push_back(&other);
      }
      step(running, 1);
    }
  }

 private:
  size_t below(size_t n) { return std::uniform_int_distribution<size_t>(0, n - 1)(random_); }
  void step(const std::vector<coordinator::Sequence*>& sequences, int64_t count) {
    std::vector<std::vector<int32_t>> tokens(sequences.size());
    std::vector<coordinator::SequenceRows> work;
    for (size_t s = 0; s < sequences.size(); ++s) {
      const auto vocab = static_cast<size_t>(deployment_.config().vocab_size);
      for (int64_t i = 0; i < count; ++i) tokens[s].push_back(static_cast<int32_t>(below(vocab)));
      work.push_back({sequences[s], tokens[s], coordinator::WantLogits::kLast});
    }
    std::vector<std::optional<Error>> errors(work.size());
    const Status status = deployment_.engine().step(
        work, [](size_t, size_t, std::span<const float>) {}, errors);
    if (!status) throw LoadError(status.error().message);
    for (size_t s = 0; s < errors.size(); ++s) {
      if (!errors[s]) continue;
      if (errors[s]->code != ErrorCode::kOverloaded) throw LoadError(errors[s]->message);
      deployment_.engine().release(*sequences[s]);  // the cache is full
    }
    ++steps_;
    tokens_ += static_cast<uint64_t>(count) * work.size();
  }

  deployment::Deployment& deployment_;
  const int64_t chunk_;
  std::vector<coordinator::Sequence> sequences_;
  std::mt19937_64 random_{1};
  uint64_t steps_ = 0, tokens_ = 0;
};

void report(const Options& options, const MemoryGroup& group, uint64_t most, double seconds,
            const Load& load, deployment::Deployment& deployment) {
  const ExpertCacheStats cache = deployment.node_reports().at(0).stats.cache;
  const double over = static_cast<double>(most) - static_cast<double>(options.budget);
  fmt::print(
      "{:6.0f} s: {} steps, {} tokens; hits {}, misses {}, {} read, {} experts evicted; "
      "memory at most {}, {:+.1f} MiB beside the budget of {} (with page cache {})\n",
      seconds, load.steps(), load.tokens(), cache.hits, cache.misses,
      format_bytes(cache.bytes_read), cache.evictions, format_bytes(most), over / kMiB,
      format_bytes(options.budget), format_bytes(group.peak()));
  std::fflush(stdout);
}

void run(const Options& options) {
  const MemoryGroup group(options.budget + options.above);
  const Wrapper wrapper(group, options.atoll);
  std::atomic<uint64_t> most{0};
  std::jthread sampler([&](std::stop_token stop) {
    while (!stop.stop_requested()) {
      most = std::max(most.load(), group.used());
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
  });
  deployment::DeploymentOptions deploy;
  deploy.model_dir = options.pack;
  deploy.nodes = 1;
  deploy.rows_max = options.rows_max;
  deploy.cache_tokens = 16 * 1024;
  deploy.memory.ram_budget = options.budget;
  deploy.node_program = wrapper.path();
  deployment::Deployment deployment(deploy);
  Load load(deployment, options.rows_max);
  const SteadyClock clock;
  const auto start = clock.now();
  double next_report = 60;
  for (double now = 0; now < options.seconds; now = seconds_between(start, clock.now())) {
    load.round();
    if (now < next_report) continue;
    report(options, group, most, now, load, deployment);
    next_report = now + 60;
  }
  report(options, group, most, seconds_between(start, clock.now()), load, deployment);
}

}  // namespace
}  // namespace atl

int main(int argc, char** argv) {
  atl::Options options;
  CLI::App app("Memory of an expert node beside its budget, under mixed load");
  app.add_option("pack", options.pack, "Expert pack")->required();
  app.add_option("--atoll", options.atoll, "The atoll program")->capture_default_str();
  std::string budget;
  app.add_option("--ram-budget", budget, "Budget of the node, such as 3GiB")->required();
  app.add_option("--seconds", options.seconds, "How long")->capture_default_str();
  app.add_option("--chunk", options.rows_max, "Tokens per step of prefill")->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  try {
    const atl::Result<uint64_t> bytes = atl::parse_bytes(budget);
    if (!bytes) throw atl::LoadError("--ram-budget: " + bytes.error().message);
    options.budget = *bytes;
    atl::run(options);
  } catch (const atl::LoadError& error) {
    fmt::print(stderr, "atoll_memory_budget: {}\n", error.what());
    return 1;
  }
  return 0;
}
