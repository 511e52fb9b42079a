// What schemas cost: compiling (CPU time, memory at its peak) and masks, for a list of schemas.
//
//   atoll_constraint_bench MODEL_DIR SCHEMAS.jsonl [--each]
//
// MODEL_DIR has a tokenizer.json. A line of the list is {"name", "schema", "valid"?}; masks are
// taken before each token of the valid text, and of a text that is written at random. Prints the
// worst and the usual of all, with --each also a line for each schema.
#include <fmt/format.h>
#include <malloc.h>
#include <time.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <fstream>
#include <new>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <vector>

#include "constrain/json_constraint.h"
#include "text/tokenizer.h"

namespace {

std::atomic<size_t> held{0}, held_max{0};

void* counted(void* memory) {
  if (memory == nullptr) throw std::bad_alloc();
  const size_t now = held += malloc_usable_size(memory);
  if (now > held_max) held_max = now;
  return memory;
}

void give_back(void* memory) {
  if (memory != nullptr) held -= malloc_usable_size(memory);
  std::free(memory);
}

}  // namespace

void* operator new(size_t bytes) { return counted(std::malloc(bytes)); }
void operator delete(void* memory) noexcept { give_back(memory); }
void operator delete(void* memory, size_t) noexcept { give_back(memory); }

namespace {

using namespace atl;
using Json = nlohmann::ordered_json;

constexpr int64_t kPlenty = 1'000'000;
constexpr int kRandomTokens = 60;

double cpu_ms() {
  timespec now{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) * 1e3 + static_cast<double>(now.tv_nsec) * 1e-6;
}

double mib(size_t bytes) { return static_cast<double>(bytes) / (1 << 20); }

double percentile(std::vector<double>& values, double share) {
  if (values.empty()) return 0;
  std::sort(values.begin(), values.end());
  return values[static_cast<size_t>(share * static_cast<double>(values.size() - 1))];
}

class Bench {
 public:
  explicit Bench(const std::string& model_dir)
      : tokenizer_(text::Tokenizer::load(model_dir)), vocabulary_(tokenizer_, {1}) {}

  void run(const Json& line, bool print) {
    const std::string schema = line.at("schema").dump();
    const size_t before = held;
    held_max = before;
    const double begin = cpu_ms();
    const auto grammar = constrain::compile_json_schema(schema);
    const double ms = cpu_ms() - begin, peak = mib(held_max - before);
    compile_ms_.push_back(ms);
    peak_mib_.push_back(peak);
    std::vector<double> masks;
    if (grammar && line.contains("valid")) follow(**grammar, line["valid"].dump(), masks);
    if (grammar) write(**grammar, masks);
    mask_ms_.insert(mask_ms_.end(), masks.begin(), masks.end());
    if (!print) return;
    fmt::print(
        "{:40} {:7.1f} KB {:7.2f} ms {:6.2f} MiB  kept {:6.2f} MiB  masks p99 {:6.3f} max {:7.3f} "
        "ms  {}\n",
        line.value("name", "").substr(0, 40), static_cast<double>(schema.size()) / 1e3, ms, peak,
        grammar ? mib((*grammar)->memory_bytes()) : 0.0, percentile(masks, 0.99),
        percentile(masks, 1), grammar ? "" : grammar.error().message);
  }

  void summary() {
    fmt::print("{} schemas: compile p50 {:.2f} max {:.2f} ms, peak p50 {:.2f} max {:.2f} MiB\n",
               compile_ms_.size(), percentile(compile_ms_, 0.5), percentile(compile_ms_, 1),
               percentile(peak_mib_, 0.5), percentile(peak_mib_, 1));
    fmt::print("{} masks of {} tokens: p50 {:.3f} p99 {:.3f} max {:.3f} ms\n", mask_ms_.size(),
               tokenizer_.vocab_size(), percentile(mask_ms_, 0.5), percentile(mask_ms_, 0.99),
               percentile(mask_ms_, 1));
  }

 private:
  bool mask(const constrain::TokenConstraint& constraint, std::vector<double>& masks) {
    allowed_.assign(static_cast<size_t>(tokenizer_.id_end()), 1);
    const double begin = cpu_ms();
    const Status done = constraint.mask(kPlenty, allowed_);
    masks.push_back(cpu_ms() - begin);
    return static_cast<bool>(done);
  }

  void follow(const constrain::ConstraintGrammar& grammar, const std::string& text,
              std::vector<double>& masks) {
    const auto constraint = grammar.make(vocabulary_, {});
    const auto ids = tokenizer_.encode(text, {.parse_added_tokens = false});
    for (const int32_t id : *ids) {
      if (!mask(*constraint, masks) || allowed_[static_cast<size_t>(id)] == 0) return;
      constraint->accept(id);
    }
  }

  // As a model that knows nothing would: any token that may come.
  void write(const constrain::ConstraintGrammar& grammar, std::vector<double>& masks) {
    const auto constraint = grammar.make(vocabulary_, {});
    std::mt19937 random(1);
    for (int i = 0; i < kRandomTokens && !constraint->finished(); ++i) {
      if (!mask(*constraint, masks)) return;
      std::vector<int32_t> ids;
      for (size_t id = 0; id < allowed_.size(); ++id) {
        if (allowed_[id] && tokenizer_.has_token(static_cast<int32_t>(id))) {
          ids.push_back(static_cast<int32_t>(id));
        }
      }
      if (ids.empty()) return;
      constraint->accept(ids[random() % ids.size()]);
    }
  }

  const text::Tokenizer tokenizer_;
  const constrain::ConstraintVocabulary vocabulary_;
  std::vector<uint8_t> allowed_;
  std::vector<double> compile_ms_, peak_mib_, mask_ms_;
};

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3) {
    fmt::print(stderr, "usage: {} MODEL_DIR SCHEMAS.jsonl [--each]\n", argv[0]);
    return 2;
  }
  try {
    Bench bench(argv[1]);
    std::ifstream in(argv[2]);
    if (!in) throw LoadError(std::string(argv[2]) + ": can't be read");
    for (std::string line; std::getline(in, line);) bench.run(Json::parse(line), argc > 3);
    bench.summary();
  } catch (const std::exception& e) {
    fmt::print(stderr, "{}\n", e.what());
    return 1;
  }
}
