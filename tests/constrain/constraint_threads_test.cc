// Constraints of one grammar and one vocabulary on several threads, as the scheduler samples.
#include <gtest/gtest.h>

#include <filesystem>
#include <thread>
#include <vector>

#include "base/rng.h"
#include "constrain/json_constraint.h"

namespace atl::constrain {
namespace {

constexpr int kThreads = 4;
constexpr int kTokens = 60;
constexpr int64_t kLeft = 10'000;
constexpr const char* kSchema =
    R"({"type": "object", "properties": {"a": {"type": "string", "maxLength": 40},
        "b": {"type": "array", "items": {"type": "number"}}}, "required": ["a", "b"]})";

// A text of allowed tokens, chosen by `seed`.
std::vector<int32_t> walk(const ConstraintGrammar& grammar, const ConstraintVocabulary& vocabulary,
                          uint32_t seed) {
  const auto constraint = grammar.make(vocabulary, {});
  std::vector<int32_t> text;
  for (uint32_t i = 0; i < kTokens && !constraint->finished(); ++i) {
    std::vector<uint8_t> allowed(static_cast<size_t>(vocabulary.tokenizer().id_end()), 1);
    EXPECT_TRUE(constraint->mask(kLeft, allowed));
    std::vector<int32_t> ids;
    for (size_t id = 0; id < allowed.size(); ++id) {
      if (allowed[id]) ids.push_back(static_cast<int32_t>(id));
    }
    if (ids.empty()) break;
    text.push_back(ids[philox4x32_10({i, 0, 0, 0}, {seed, 0})[0] % ids.size()]);
    constraint->accept(text.back());
  }
  return text;
}

TEST(ConstraintThreads, allow_the_same_together_as_alone) {
  const text::Tokenizer tokenizer =
      text::Tokenizer::load(std::filesystem::path(ATOLL_SOURCE_DIR) / "tests/models/tiny-fp8");
  const auto grammar = compile_json_schema(kSchema);
  ASSERT_TRUE(grammar) << grammar.error().message;
  const ConstraintVocabulary fresh(tokenizer, {*tokenizer.eos_id()});
  std::vector<std::vector<int32_t>> together(kThreads);
  std::vector<std::thread> threads;
  for (uint32_t t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] { together[t] = walk(**grammar, fresh, t); });
  }
  for (std::thread& thread : threads) thread.join();
  const ConstraintVocabulary again(tokenizer, {*tokenizer.eos_id()});
  for (uint32_t t = 0; t < kThreads; ++t) {
    EXPECT_GT(together[t].size(), 5u);
    EXPECT_EQ(together[t], walk(**grammar, again, t));
  }
}

}  // namespace
}  // namespace atl::constrain
