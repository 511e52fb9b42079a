// The syntax tree of a Jinja template.
#pragma once

#include <cstdint>
#include <memory>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "text/jinja/value.h"

namespace atl::text::jinja {

struct Expression;
struct Statement;
using ExpressionPtr = std::unique_ptr<Expression>;
using Body = std::vector<std::unique_ptr<Statement>>;

struct Place {
  int line = 1, column = 1;
};

struct Expression {
  enum class Kind : uint8_t {
    kLiteral,      // value
    kName,         // text
    kList,         // operands
    kTuple,        // operands
    kDict,         // operands: key, value, key, value, ...
    kAttribute,    // operands[0] . text
    kSubscript,    // operands[0] [ operands[1] ]
    kSlice,        // operands[0] [ operands[1] : operands[2] : operands[3] ], null where left out
    kCall,         // operands[0] ( operands[1..], named )
    kFilter,       // operands[0] | text ( operands[1..], named ); in a filter block [0] is null
    kTest,         // operands[0] is text ( operands[1..], named )
    kNot,          // operands[0]
    kNegative,     // operands[0]
    kPositive,     // operands[0]
    kBinary,       // operands[0] text operands[1]: + - * / // % **
    kConcat,       // operands, joined as texts
    kCompare,      // operands[0] operators[0] operands[1] operators[1] ...
    kAnd,          // operands[0], [1]
    kOr,           // operands[0], [1]
    kConditional,  // operands[0] if operands[1] else operands[2] (null: undefined)
  };
  Kind kind = Kind::kLiteral;
  Place place;
  int depth = 1;
  std::string text;
  Value value;
  std::vector<ExpressionPtr> operands;
  std::vector<std::pair<std::string, ExpressionPtr>> named;
  std::vector<std::string> operators;
};

// A macro, or the body of a call block.
struct Macro {
  std::string name;
  std::vector<std::string> parameters;
  std::vector<ExpressionPtr> defaults;  // [parameters], null without one
  Body body;
};

struct Statement {
  enum class Kind : uint8_t {
    kText,      // text
    kOutput,    // expressions[0]
    kIf,        // expressions[i] decides on bodies[i]; a last body without one is else
    kFor,       // targets in expressions[0] if expressions[1] (may be null): bodies[0] else [1]
    kSet,       // targets, or namespace.attribute: targets[0].targets[1] (is_attribute)
    kSetBlock,  // targets[0] from bodies[0] through the filter expressions[0] (may be null)
    kWith,      // targets[i] = expressions[i] for bodies[0]
    kMacro,     // macro
    kCall,      // expressions[0] called with macro as `caller`
    kFilter,    // bodies[0] through expressions[0]
    kBody,      // bodies[0]: a generation block
    kBreak,
    kContinue,
  };
  Kind kind = Kind::kText;
  Place place;
  std::string text;
  std::vector<ExpressionPtr> expressions;
  std::vector<Body> bodies;
  std::vector<std::string> targets;
  bool is_attribute = false;
  std::unique_ptr<Macro> macro;
};

struct Program {
  Body body;
  std::set<std::string, std::less<>> names_read;
};

// Throws SyntaxError (text/jinja/lexer.h).
Program parse(std::string_view source);

}  // namespace atl::text::jinja
