// schema_texts MODEL_DIR SCHEMAS.jsonl COUNT: what a model with random weights writes under each
// schema. One line of JSON for each: {"name", "texts": [...]}, or {"name", "refused": why}.
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <nlohmann/json.hpp>
#include <random>
#include <string>

#include "constrain/json_constraint.h"
#include "text/tokenizer.h"

namespace atl::constrain {
namespace {

using Json = nlohmann::ordered_json;

class RandomModel {
 public:
  explicit RandomModel(const std::string& model_dir)
      : tokenizer_(text::Tokenizer::load(model_dir)),
        vocabulary_(tokenizer_, {*tokenizer_.eos_id()}) {}

  std::string write(const ConstraintGrammar& grammar, uint32_t seed) const {
    std::mt19937 random(seed);
    const auto constraint = grammar.make(vocabulary_, {});
    std::string text;
    std::vector<uint8_t> allowed;
    for (int64_t left = constraint->tokens_min() + static_cast<int64_t>(random() % 60); left > 0;
         --left) {
      allowed.assign(static_cast<size_t>(tokenizer_.id_end()), 1);
      if (!constraint->mask(left, allowed)) return "(no mask)";
      std::vector<int32_t> ids;
      for (int32_t id = 0; id < tokenizer_.id_end(); ++id) {
        if (allowed[static_cast<size_t>(id)] != 0) ids.push_back(id);
      }
      if (ids.empty()) return "(nothing may come)" + text;
      const int32_t id = ids[random() % ids.size()];
      if (id == *tokenizer_.eos_id()) break;
      text += tokenizer_.token_bytes(id);
      constraint->accept(id);
      if (constraint->finished()) break;
    }
    return text;
  }

 private:
  const text::Tokenizer tokenizer_;
  const ConstraintVocabulary vocabulary_;
};

void run(const std::string& model_dir, const std::string& schemas, int count) {
  const RandomModel model(model_dir);
  std::ifstream in(schemas);
  for (std::string line; std::getline(in, line);) {
    const Json row = Json::parse(line);
    Json out = {{"name", row["name"]}};
    const auto grammar = compile_json_schema(row["schema"].dump());
    if (!grammar) out["refused"] = grammar.error().message;
    for (int i = 0; grammar && i < count; ++i) {
      out["texts"].push_back(model.write(**grammar, static_cast<uint32_t>(i)));
    }
    std::cout << out.dump() << "\n";
  }
}

}  // namespace
}  // namespace atl::constrain

int main(int argc, char** argv) {
  if (argc != 4) {
    std::cerr << "usage: schema_texts MODEL_DIR SCHEMAS.jsonl COUNT\n";
    return 2;
  }
  atl::constrain::run(argv[1], argv[2], std::atoi(argv[3]));
  return 0;
}
