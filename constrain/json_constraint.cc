#include "constrain/json_constraint.h"

#include <fmt/core.h>

#include <algorithm>
#include <functional>
#include <utility>

#include "base/check.h"
#include "constrain/char_automaton.h"
#include "constrain/grammar.h"
#include "constrain/json_schema_grammar.h"
#include "constrain/json_text_grammar.h"
#include "constrain/sequence.h"

namespace atl::constrain {
namespace {

using Node = GrammarBuilder::Node;

constexpr int kParallelCallsMax = 16;

Error invalid_constraint(std::string message) { return {ErrorCode::kInvalid, std::move(message)}; }

size_t bytes_of(const ConstraintMachine& machine) {
  size_t bytes = machine.steps.capacity() * sizeof(int32_t) +
                 machine.states.capacity() * sizeof(ConstraintMachine::State);
  for (const ConstraintMachine::State& state : machine.states) {
    bytes +=
        (state.calls.capacity() + state.marks.capacity()) * sizeof(std::pair<int32_t, int32_t>);
  }
  return bytes;
}

class CompiledGrammar final : public ConstraintGrammar {
 public:
  // with_tokens: for vocabularies that have the marks as tokens; null if there are no marks.
  CompiledGrammar(std::shared_ptr<const CompiledConstraint> with_bytes,
                  std::shared_ptr<const CompiledConstraint> with_tokens)
      : with_bytes_(std::move(with_bytes)), with_tokens_(std::move(with_tokens)) {}

  std::unique_ptr<TokenConstraint> make(const ConstraintVocabulary& vocabulary,
                                        const ConstraintOptions& options) const override {
    const bool tokens = with_tokens_ && has_marks(vocabulary.tokenizer());
    return make_constraint_sequence(tokens ? with_tokens_ : with_bytes_, vocabulary, options);
  }

  size_t memory_bytes() const override {
    return bytes_of(with_bytes_->machine) + (with_tokens_ ? bytes_of(with_tokens_->machine) : 0);
  }

 private:
  bool has_marks(const text::Tokenizer& tokenizer) const {
    const auto& marks = with_tokens_->machine.marks;
    return std::all_of(marks.begin(), marks.end(), [&](const std::string& mark) {
      const auto id = tokenizer.token_id(mark);
      return id && tokenizer.is_added(*id);
    });
  }

  const std::shared_ptr<const CompiledConstraint> with_bytes_, with_tokens_;
};

// Adds the rule of a text that line ends may lead, and compiles.
Result<std::shared_ptr<const CompiledConstraint>> finish(GrammarBuilder& grammar, int32_t top) {
  auto compiled = std::make_shared<CompiledConstraint>();
  compiled->led_top = grammar.add_rule();
  const auto [start, accept] = grammar.rule(compiled->led_top);
  grammar.call(start, top, accept);
  const Node one = grammar.literal(start, "\n");
  grammar.call(one, top, accept);
  grammar.call(grammar.literal(one, "\n"), top, accept);
  auto machine = grammar.compile(top);
  if (!machine) return machine.error();
  compiled->machine = std::move(*machine);
  return std::shared_ptr<const CompiledConstraint>(std::move(compiled));
}

// What `compile` gives, or the Error that it throws: too much work, or a request to stop.
Result<std::shared_ptr<const ConstraintGrammar>> caught(
    const std::function<Result<std::shared_ptr<const ConstraintGrammar>>()>& compile) {
  try {
    return compile();
  } catch (const Error& error) {
    return error;
  }
}

// --- calls of tools ---

class ToolCallGrammar {
 public:
  ToolCallGrammar(GrammarBuilder& grammar, text::ReplyFormat format)
      : grammar_(grammar), format_(format) {}

  Result<int32_t> add(std::span<const ToolSchema> tools, bool parallel) {
    const JsonRules rules = add_json_rules(grammar_);
    std::vector<int32_t> arguments;
    for (const ToolSchema& tool : tools) {
      const auto rule = arguments_rule(rules, tool);
      if (!rule) return rule.error();
      arguments.push_back(*rule);
    }
    const int32_t top = grammar_.add_rule();
    const auto [start, accept] = grammar_.rule(top);
    Node at = grammar_.mark(start, section_begin());
    for (int i = 0; i < (parallel ? kParallelCallsMax : 1); ++i) {
      if (i > 0 && format_ == text::ReplyFormat::kDeepseekV3) at = grammar_.literal(at, "\n");
      const Node behind = grammar_.node();
      for (size_t t = 0; t < tools.size(); ++t) {
        grammar_.empty(call(at, tools[t].name, i, arguments[t]), behind);
      }
      grammar_.empty(grammar_.mark(behind, section_end()), accept);
      at = behind;
    }
    return top;
  }

 private:
  Result<int32_t> arguments_rule(const JsonRules& rules, const ToolSchema& tool) {
    std::string_view schema = tool.parameters_json;
    if (schema.empty()) schema = "{}";
    auto rule = add_json_schema(grammar_, rules, schema, true);
    if (!rule)
      return invalid_constraint(fmt::format("tool {}: {}", tool.name, rule.error().message));
    return rule;
  }

  bool is_kimi() const { return format_ == text::ReplyFormat::kKimiK2; }
  std::string_view section_begin() const {
    return is_kimi() ? "<|tool_calls_section_begin|>" : "<｜tool▁calls▁begin｜>";
  }
  std::string_view section_end() const {
    return is_kimi() ? "<|tool_calls_section_end|>" : "<｜tool▁calls▁end｜>";
  }

  // One call, from its first mark to its last.
  Node call(Node from, const std::string& name, int index, int32_t arguments) {
    const Node behind = grammar_.node();
    if (is_kimi()) {
      from = grammar_.mark(from, "<|tool_call_begin|>");
      from = grammar_.literal(from, fmt::format("functions.{}:{}", name, index));
      grammar_.call(grammar_.mark(from, "<|tool_call_argument_begin|>"), arguments, behind);
      return grammar_.mark(behind, "<|tool_call_end|>");
    }
    from = grammar_.mark(from, "<｜tool▁call▁begin｜>");
    const bool fenced = format_ == text::ReplyFormat::kDeepseekV3;
    if (fenced) from = grammar_.mark(grammar_.literal(from, "function"), "<｜tool▁sep｜>");
    from = grammar_.literal(from, name);
    from = fenced ? grammar_.literal(from, "\n```json\n") : grammar_.mark(from, "<｜tool▁sep｜>");
    grammar_.call(from, arguments, behind);
    return grammar_.mark(fenced ? grammar_.literal(behind, "\n```") : behind,
                         "<｜tool▁call▁end｜>");
  }

  GrammarBuilder& grammar_;
  const text::ReplyFormat format_;
};

Status check_names(std::span<const ToolSchema> tools) {
  if (tools.empty()) return invalid_constraint("there are no tools to call");
  for (const ToolSchema& tool : tools) {
    const bool good = !tool.name.empty() && tool.name.size() <= 256 &&
                      std::all_of(tool.name.begin(), tool.name.end(), [](char c) {
                        return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
                               (c >= '0' && c <= '9') || c == '_' || c == '-' || c == '.';
                      });
    if (!good) {
      return invalid_constraint(fmt::format(
          "tool name \"{}\": expected letters, digits, '_', '-' or '.'", tool.name.substr(0, 80)));
    }
  }
  return {};
}

}  // namespace

std::shared_ptr<const ConstraintGrammar> json_object_grammar() {
  CompileWork work;
  GrammarBuilder grammar(work);
  const JsonRules rules = add_json_rules(grammar);
  auto compiled = finish(grammar, rules.object);
  CHECK(compiled.has_value());
  return std::make_shared<CompiledGrammar>(*compiled, nullptr);
}

Result<std::shared_ptr<const ConstraintGrammar>> compile_json_schema(std::string_view schema_json,
                                                                     std::stop_token stop) {
  CompileWork work(std::move(stop));
  return caught([&]() -> Result<std::shared_ptr<const ConstraintGrammar>> {
    GrammarBuilder grammar(work);
    const JsonRules rules = add_json_rules(grammar);
    const auto top = add_json_schema(grammar, rules, schema_json);
    if (!top) return top.error();
    auto compiled = finish(grammar, *top);
    if (!compiled) return compiled.error();
    return std::shared_ptr<const ConstraintGrammar>(
        std::make_shared<CompiledGrammar>(*compiled, nullptr));
  });
}

namespace {

Result<std::shared_ptr<const ConstraintGrammar>> compile_texts(
    const std::function<Result<CharAutomaton>(CompileWork&)>& texts, std::stop_token stop) {
  CompileWork work(std::move(stop));
  return caught([&]() -> Result<std::shared_ptr<const ConstraintGrammar>> {
    const auto automaton = texts(work);
    if (!automaton) return automaton.error();
    GrammarBuilder grammar(work);
    add_json_rules(grammar);  // every machine begins with them
    const int32_t top = grammar.add_rule();
    const auto [start, accept] = grammar.rule(top);
    grammar.empty(automaton->add_plain_to(grammar, start), accept);
    auto compiled = finish(grammar, top);
    if (!compiled) return compiled.error();
    return std::shared_ptr<const ConstraintGrammar>(
        std::make_shared<CompiledGrammar>(*compiled, nullptr));
  });
}

}  // namespace

Result<std::shared_ptr<const ConstraintGrammar>> compile_regex(std::string_view pattern,
                                                               std::stop_token stop) {
  std::string whole(pattern);
  if (whole.starts_with('^')) whole.erase(0, 1);
  if (whole.ends_with('$') && !whole.ends_with("\\$")) whole.pop_back();
  return compile_texts(
      [&](CompileWork& work) { return CharAutomaton::of_pattern("^(?:" + whole + ")$", work); },
      std::move(stop));
}

Result<std::shared_ptr<const ConstraintGrammar>> compile_choice(std::span<const std::string> texts,
                                                                std::stop_token stop) {
  return compile_texts(
      [&](CompileWork& work) -> Result<CharAutomaton> {
        return CharAutomaton::of_words(texts, work);
      },
      std::move(stop));
}

Result<std::shared_ptr<const ConstraintGrammar>> compile_tool_calls(
    text::ReplyFormat format, std::span<const ToolSchema> tools, bool parallel,
    std::stop_token stop) {
  if (format == text::ReplyFormat::kPlain) {
    return invalid_constraint("this model's chat template has no form for calls of tools");
  }
  if (Status names = check_names(tools); !names) return names.error();
  CompileWork work(std::move(stop));
  return caught([&]() -> Result<std::shared_ptr<const ConstraintGrammar>> {
    std::shared_ptr<const CompiledConstraint> compiled[2];
    for (const bool as_tokens : {false, true}) {
      GrammarBuilder grammar(work);
      grammar.marks_are_tokens = as_tokens;
      const auto top = ToolCallGrammar(grammar, format).add(tools, parallel);
      if (!top) return top.error();
      auto one = finish(grammar, *top);
      if (!one) return one.error();
      compiled[as_tokens] = *one;
    }
    return std::shared_ptr<const ConstraintGrammar>(
        std::make_shared<CompiledGrammar>(compiled[0], compiled[1]));
  });
}

}  // namespace atl::constrain
