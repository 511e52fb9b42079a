// Constraints of structured output: JSON, JSON of a schema, forced calls of tools.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <stop_token>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "constrain/token_constraint.h"
#include "text/reply_parser.h"
#include "text/tokenizer.h"

namespace atl::constrain {

// The tokens of a vocabulary arranged for masks. Built once per model; any thread.
class ConstraintVocabulary {
 public:
  // stop_ids: the tokens that end a text. The tokenizer is borrowed.
  ConstraintVocabulary(const text::Tokenizer& tokenizer, std::vector<int32_t> stop_ids);
  ~ConstraintVocabulary();

  struct Trie;
  const Trie& trie() const { return *trie_; }
  class Lists;  // of tokens that states of schemas allow, kept for all sequences
  Lists& lists() const { return *lists_; }
  const text::Tokenizer& tokenizer() const { return tokenizer_; }
  std::span<const int32_t> stop_ids() const { return stop_ids_; }

 private:
  const text::Tokenizer& tokenizer_;
  const std::vector<int32_t> stop_ids_;
  std::unique_ptr<const Trie> trie_;
  const std::unique_ptr<Lists> lists_;
};

struct ConstraintOptions {
  // Free text comes first, up to and including this mark ("</think>"); empty: none.
  std::string begin_after = {};
  // With begin_after: the free text comes only if it starts with this mark ("<think>"), and may be
  // left out with it; empty: it comes.
  std::string may_begin_with = {};
};

struct ToolSchema {
  std::string name;
  std::string parameters_json;  // a JSON Schema; empty: no parameters, {}
};

// A compiled constraint: make() gives one for each sequence. Immutable; any thread.
class ConstraintGrammar {
 public:
  virtual ~ConstraintGrammar() = default;
  virtual std::unique_ptr<TokenConstraint> make(const ConstraintVocabulary& vocabulary,
                                                const ConstraintOptions& options) const = 0;
  virtual size_t memory_bytes() const = 0;  // about
};

// Any JSON object (`response_format` json_object).
std::shared_ptr<const ConstraintGrammar> json_object_grammar();

// JSON text of a schema. Covers what docs/structured-output.md lists; kInvalid names the keyword
// and its place ("$.properties.a.pattern") for what is not covered, for a schema that nothing
// fulfils, and for one that takes too much work or memory; kUnavailable: it was asked to stop.
Result<std::shared_ptr<const ConstraintGrammar>> compile_json_schema(std::string_view schema_json,
                                                                     std::stop_token stop = {});

// Texts that match the regular expression as a whole, and one of these texts. Errors as above.
Result<std::shared_ptr<const ConstraintGrammar>> compile_regex(std::string_view pattern,
                                                               std::stop_token stop = {});
Result<std::shared_ptr<const ConstraintGrammar>> compile_choice(std::span<const std::string> texts,
                                                                std::stop_token stop = {});

// Calls of the named tools in the model's own marks, one or more (`parallel`) of them, and nothing
// else (`tool_choice` required or a function's name). Errors as above.
Result<std::shared_ptr<const ConstraintGrammar>> compile_tool_calls(
    text::ReplyFormat format, std::span<const ToolSchema> tools, bool parallel,
    std::stop_token stop = {});

}  // namespace atl::constrain
