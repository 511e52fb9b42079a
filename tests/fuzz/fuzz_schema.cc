// A JSON Schema: compiled or refused, and what it allows can be walked to its end.
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/check.h"
#include "constrain/json_constraint.h"
#include "tests/fuzz/byte_tokenizer.h"

namespace {

constexpr int kStepsMax = 64;

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace atl;
  static const text::Tokenizer tokenizer = fuzz::byte_tokenizer();
  static const constrain::ConstraintVocabulary vocabulary(tokenizer, {fuzz::kEnd});
  const auto grammar = constrain::compile_json_schema({reinterpret_cast<const char*>(data), size});
  if (!grammar) {
    CHECK(!grammar.error().message.empty());
    return 0;
  }
  // A walk that the bytes of the schema choose.
  auto constraint = (*grammar)->make(vocabulary, {});
  int64_t left = constraint->tokens_min() + 8;
  std::vector<uint8_t> allowed;
  for (int step = 0; step < kStepsMax && left > 0 && !constraint->finished(); ++step, --left) {
    allowed.assign(static_cast<size_t>(tokenizer.id_end()), 1);
    if (!constraint->mask(left, allowed)) return 0;
    std::vector<int32_t> ids;
    for (int32_t id = 0; id < tokenizer.id_end(); ++id) {
      if (allowed[static_cast<size_t>(id)]) ids.push_back(id);
    }
    CHECK(!ids.empty());
    const int32_t chosen = ids[data[static_cast<size_t>(step) % size] % ids.size()];
    if (chosen == fuzz::kEnd) return 0;
    constraint->accept(chosen);
  }
  return 0;
}
