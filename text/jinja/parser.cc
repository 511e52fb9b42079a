#include "text/jinja/parser.h"

#include <fmt/core.h>

#include <algorithm>
#include <array>
#include <initializer_list>

#include "text/jinja/filters.h"
#include "text/jinja/lexer.h"

namespace atl::text::jinja {
namespace {

// Bounds of recursion over the tree.
constexpr int kExpressionDepthMax = 200;
constexpr int kBlockDepthMax = 60;

// The grammar and its precedences are those of jinja2's parser.py (version 3.1).
class Parser {
 public:
  explicit Parser(std::vector<Token> tokens) : tokens_(std::move(tokens)) {}

  Program run() {
    program_.body = body({});
    if (now().kind != Kind::kEnd) fail("this tag closes nothing");
    return std::move(program_);
  }

 private:
  using Kind = Token::Kind;
  using E = Expression::Kind;
  using S = Statement::Kind;

  // --- tokens ---
  const Token& now() const { return tokens_[at_]; }
  const Token& next() const { return tokens_[std::min(at_ + 1, tokens_.size() - 1)]; }
  Token take() { return tokens_[at_ + 1 < tokens_.size() ? at_++ : at_]; }
  bool is_operator(std::string_view op) const { return now().is(Kind::kOperator, op); }
  bool is_name(std::string_view name) const { return now().is(Kind::kName, name); }
  bool try_operator(std::string_view op) {
    if (!is_operator(op)) return false;
    take();
    return true;
  }
  bool try_name(std::string_view name) {
    if (!is_name(name)) return false;
    take();
    return true;
  }
  void expect_operator(std::string_view op) {
    if (!try_operator(op)) fail(fmt::format("expected '{}', found {}", op, found()));
  }
  std::string expect_name() {
    if (now().kind != Kind::kName) fail(fmt::format("expected a name, found {}", found()));
    return take().text;
  }
  void expect_word(std::string_view word) {
    if (!try_name(word)) fail(fmt::format("expected '{}', found {}", word, found()));
  }
  void expect_block_end() {
    if (now().kind != Kind::kBlockEnd) fail(fmt::format("expected %}}, found {}", found()));
    take();
  }
  std::string found() const {
    switch (now().kind) {
      case Kind::kVariableEnd:
        return "}}";
      case Kind::kBlockEnd:
        return "%}";
      case Kind::kEnd:
        return "the end of the template";
      case Kind::kString:
        return "a string";
      default:
        return "'" + now().text.substr(0, 40) + "'";
    }
  }
  Place here() const { return {now().line, now().column}; }
  [[noreturn]] void fail(std::string message) const {
    throw SyntaxError{std::move(message), now().line, now().column};
  }
  [[noreturn]] static void fail_at(Place place, std::string message) {
    throw SyntaxError{std::move(message), place.line, place.column};
  }

  // --- statements ---
  using Words = std::initializer_list<std::string_view>;

  // Up to a block that starts with one of `ends`, of which {% is taken.
  Body body(Words ends) {
    if (++block_depth_ > kBlockDepthMax) fail("blocks are nested too deep");
    Body out;
    for (;;) {
      const Place place = here();
      if (now().kind == Kind::kData) {
        out.push_back(make_statement(S::kText, place));
        out.back()->text = take().text;
      } else if (now().kind == Kind::kVariableBegin) {
        take();
        out.push_back(make_statement(S::kOutput, place));
        out.back()->expressions.push_back(tuple());
        if (now().kind != Kind::kVariableEnd) fail(fmt::format("expected }}}}, found {}", found()));
        take();
      } else if (now().kind == Kind::kBlockBegin) {
        const bool ends_here = next().kind == Kind::kName &&
                               std::find(ends.begin(), ends.end(), next().text) != ends.end();
        if (ends_here) break;
        take();
        out.push_back(statement(place));
      } else {
        break;
      }
    }
    if (ends.size() > 0) {
      if (now().kind != Kind::kBlockBegin) {
        fail(fmt::format("expected {{% {} %}}, found {}", *(ends.end() - 1), found()));
      }
      take();
    }
    --block_depth_;
    return out;
  }

  static std::unique_ptr<Statement> make_statement(S kind, Place place) {
    auto out = std::make_unique<Statement>();
    out->kind = kind;
    out->place = place;
    return out;
  }

  std::unique_ptr<Statement> statement(Place place) {
    const std::string word = expect_name();
    if (word == "if") return if_statement(place);
    if (word == "for") return for_statement(place);
    if (word == "set") return set_statement(place);
    if (word == "with") return with_statement(place);
    if (word == "macro") return macro_statement(place);
    if (word == "call") return call_statement(place);
    if (word == "filter") return filter_statement(place);
    if (word == "generation") return generation_statement(place);
    if (word == "break" || word == "continue") {
      if (loop_depth_ == 0) fail_at(place, fmt::format("'{}' stands outside of a loop", word));
      expect_block_end();
      return make_statement(word == "break" ? S::kBreak : S::kContinue, place);
    }
    static constexpr std::array<std::string_view, 8> kNotBuilt = {
        "include", "import", "from", "extends", "block", "autoescape", "do", "trans"};
    if (std::find(kNotBuilt.begin(), kNotBuilt.end(), word) != kNotBuilt.end()) {
      fail_at(place, fmt::format("the tag '{}' is not part of chat templates", word));
    }
    fail_at(place, fmt::format("unexpected tag '{}'", word.substr(0, 40)));
  }

  std::unique_ptr<Statement> if_statement(Place place) {
    auto out = make_statement(S::kIf, place);
    for (;;) {
      out->expressions.push_back(tuple(kWithCondition));
      expect_block_end();
      out->bodies.push_back(body({"elif", "else", "endif"}));
      if (try_name("elif")) continue;
      if (try_name("else")) {
        expect_block_end();
        out->bodies.push_back(body({"endif"}));
      }
      expect_word("endif");
      expect_block_end();
      return out;
    }
  }

  std::unique_ptr<Statement> for_statement(Place place) {
    auto out = make_statement(S::kFor, place);
    out->targets = target_names();
    expect_word("in");
    out->expressions.push_back(tuple(kWithoutCondition));
    out->expressions.push_back(try_name("if") ? expression() : nullptr);
    if (is_name("recursive")) fail("recursive loops are not built");
    expect_block_end();
    ++loop_depth_;
    out->bodies.push_back(body({"else", "endfor"}));
    --loop_depth_;
    if (try_name("else")) {
      expect_block_end();
      out->bodies.push_back(body({"endfor"}));
    }
    expect_word("endfor");
    expect_block_end();
    return out;
  }

  std::vector<std::string> target_names() {
    const bool in_parentheses = try_operator("(");
    std::vector<std::string> names = {target_name()};
    while (try_operator(",")) {
      if (now().kind != Kind::kName || is_name("in")) break;
      names.push_back(target_name());
    }
    if (in_parentheses) expect_operator(")");
    return names;
  }

  std::string target_name() {
    if (now().kind == Kind::kName && is_constant(now().text))
      fail("a constant can't be assigned to");
    return expect_name();
  }

  std::unique_ptr<Statement> set_statement(Place place) {
    auto out = make_statement(S::kSet, place);
    out->targets = target_names();
    if (out->targets.size() == 1 && try_operator(".")) {
      out->is_attribute = true;
      out->targets.push_back(expect_name());
    }
    if (try_operator("=")) {
      out->expressions.push_back(tuple());
      expect_block_end();
      return out;
    }
    if (out->targets.size() > 1 && !out->is_attribute) fail("expected '='");
    out->kind = S::kSetBlock;
    out->expressions.push_back(is_operator("|") ? filters(nullptr) : nullptr);
    expect_block_end();
    out->bodies.push_back(body({"endset"}));
    expect_word("endset");
    expect_block_end();
    return out;
  }

  std::unique_ptr<Statement> with_statement(Place place) {
    auto out = make_statement(S::kWith, place);
    while (now().kind != Kind::kBlockEnd) {
      if (!out->targets.empty()) expect_operator(",");
      out->targets.push_back(target_name());
      expect_operator("=");
      out->expressions.push_back(expression());
    }
    expect_block_end();
    out->bodies.push_back(body({"endwith"}));
    expect_word("endwith");
    expect_block_end();
    return out;
  }

  void signature(Macro& macro) {
    expect_operator("(");
    while (!try_operator(")")) {
      if (!macro.parameters.empty()) expect_operator(",");
      macro.parameters.push_back(target_name());
      macro.defaults.push_back(try_operator("=") ? expression() : nullptr);
    }
  }

  // `break` inside a macro doesn't reach a loop around it.
  Body macro_body(Words ends) {
    const int outer = std::exchange(loop_depth_, 0);
    Body out = body(ends);
    loop_depth_ = outer;
    return out;
  }

  std::unique_ptr<Statement> macro_statement(Place place) {
    auto out = make_statement(S::kMacro, place);
    out->macro = std::make_unique<Macro>();
    out->macro->name = target_name();
    signature(*out->macro);
    expect_block_end();
    out->macro->body = macro_body({"endmacro"});
    expect_word("endmacro");
    expect_block_end();
    return out;
  }

  std::unique_ptr<Statement> call_statement(Place place) {
    auto out = make_statement(S::kCall, place);
    out->macro = std::make_unique<Macro>();
    out->macro->name = "caller";
    if (is_operator("(")) signature(*out->macro);
    out->expressions.push_back(expression());
    if (out->expressions[0]->kind != E::kCall) fail_at(place, "expected a call behind 'call'");
    expect_block_end();
    out->macro->body = macro_body({"endcall"});
    expect_word("endcall");
    expect_block_end();
    return out;
  }

  std::unique_ptr<Statement> filter_statement(Place place) {
    auto out = make_statement(S::kFilter, place);
    out->expressions.push_back(one_filter(nullptr, here()));
    out->expressions[0] = filters(std::move(out->expressions[0]));
    expect_block_end();
    out->bodies.push_back(body({"endfilter"}));
    expect_word("endfilter");
    expect_block_end();
    return out;
  }

  std::unique_ptr<Statement> generation_statement(Place place) {
    auto out = make_statement(S::kBody, place);
    expect_block_end();
    out->bodies.push_back(body({"endgeneration"}));
    expect_word("endgeneration");
    expect_block_end();
    return out;
  }

  // --- expressions ---
  enum Condition { kWithCondition, kWithoutCondition };

  // Counts nesting on the way down, where the tree isn't built yet.
  class Nested {
   public:
    explicit Nested(Parser& parser) : parser_(parser) {
      if (++parser_.nesting_ > kExpressionDepthMax) parser_.fail("this is nested too deep");
    }
    ~Nested() { --parser_.nesting_; }

   private:
    Parser& parser_;
  };

  static ExpressionPtr node(E kind, Place place) {
    auto out = std::make_unique<Expression>();
    out->kind = kind;
    out->place = place;
    return out;
  }

  void add(Expression& parent, ExpressionPtr child) const {
    if (child) grow(parent, *child);
    parent.operands.push_back(std::move(child));
  }

  void grow(Expression& parent, const Expression& child) const {
    parent.depth = std::max(parent.depth, child.depth + 1);
    if (parent.depth > kExpressionDepthMax) fail_at(parent.place, "this is nested too deep");
  }

  ExpressionPtr make(E kind, Place place, ExpressionPtr a, ExpressionPtr b = nullptr) const {
    ExpressionPtr out = node(kind, place);
    add(*out, std::move(a));
    if (b) add(*out, std::move(b));
    return out;
  }

  ExpressionPtr constant(Place place, Value value) const {
    ExpressionPtr out = node(E::kLiteral, place);
    out->value = std::move(value);
    return out;
  }

  // One expression, or several with commas between them.
  ExpressionPtr tuple(Condition condition = kWithCondition) {
    const Place place = here();
    ExpressionPtr first = expression(condition);
    if (!is_operator(",")) return first;
    ExpressionPtr out = make(E::kTuple, place, std::move(first));
    while (try_operator(",")) {
      if (ends_tuple()) break;
      add(*out, expression(condition));
    }
    return out;
  }

  bool ends_tuple() const {
    return now().kind == Kind::kVariableEnd || now().kind == Kind::kBlockEnd || is_operator(")");
  }

  ExpressionPtr expression(Condition condition = kWithCondition) {
    const Nested nested(*this);
    const Place place = here();
    ExpressionPtr out = or_expression();
    while (condition == kWithCondition && try_name("if")) {
      out = make(E::kConditional, place, std::move(out), or_expression());
      add(*out, try_name("else") ? expression() : nullptr);
    }
    return out;
  }

  ExpressionPtr or_expression() {
    const Place place = here();
    ExpressionPtr out = and_expression();
    while (try_name("or")) out = make(E::kOr, place, std::move(out), and_expression());
    return out;
  }

  ExpressionPtr and_expression() {
    const Place place = here();
    ExpressionPtr out = not_expression();
    while (try_name("and")) out = make(E::kAnd, place, std::move(out), not_expression());
    return out;
  }

  ExpressionPtr not_expression() {
    const Nested nested(*this);
    const Place place = here();
    if (is_name("not") && !next().is(Kind::kName, "in")) {
      take();
      return make(E::kNot, place, not_expression());
    }
    return comparison();
  }

  std::string comparison_operator() {
    static constexpr std::array<std::string_view, 6> kSigns = {"==", "!=", ">=", "<=", ">", "<"};
    for (std::string_view sign : kSigns) {
      if (try_operator(sign)) return std::string(sign);
    }
    if (try_name("in")) return "in";
    if (is_name("not") && next().is(Kind::kName, "in")) {
      take();
      take();
      return "not in";
    }
    return "";
  }

  ExpressionPtr comparison() {
    const Place place = here();
    ExpressionPtr out = sum();
    std::string op = comparison_operator();
    if (op.empty()) return out;
    out = make(E::kCompare, place, std::move(out));
    for (; !op.empty(); op = comparison_operator()) {
      out->operators.push_back(op);
      add(*out, sum());
    }
    return out;
  }

  template <typename Operand>
  ExpressionPtr binary(Words signs, Operand operand) {
    ExpressionPtr out = operand();
    for (;;) {
      const auto sign = std::find_if(signs.begin(), signs.end(),
                                     [&](std::string_view s) { return is_operator(s); });
      if (sign == signs.end()) return out;
      const Place place = here();
      take();
      out = make(E::kBinary, place, std::move(out), operand());
      out->text = *sign;
    }
  }

  ExpressionPtr sum() {
    return binary({"+", "-"}, [this] { return concatenation(); });
  }
  ExpressionPtr product() {
    return binary({"*", "/", "//", "%"}, [this] { return power(); });
  }
  ExpressionPtr power() {
    return binary({"**"}, [this] { return unary(kWithFilters); });
  }

  ExpressionPtr concatenation() {
    const Place place = here();
    ExpressionPtr out = product();
    if (!is_operator("~")) return out;
    out = make(E::kConcat, place, std::move(out));
    while (try_operator("~")) add(*out, product());
    return out;
  }

  enum Filters { kWithFilters, kWithoutFilters };

  ExpressionPtr unary(Filters with) {
    const Nested nested(*this);
    const Place place = here();
    ExpressionPtr out;
    if (try_operator("-")) {
      out = make(E::kNegative, place, unary(kWithoutFilters));
    } else if (try_operator("+")) {
      out = make(E::kPositive, place, unary(kWithoutFilters));
    } else {
      out = primary();
    }
    out = postfix(std::move(out));
    return with == kWithFilters ? filters(std::move(out)) : std::move(out);
  }

  static bool is_constant(std::string_view name) {
    return name == "true" || name == "True" || name == "false" || name == "False" ||
           name == "none" || name == "None";
  }

  ExpressionPtr primary() {
    const Place place = here();
    switch (now().kind) {
      case Kind::kName:
        return name(place);
      case Kind::kString:
        return string(place);
      case Kind::kInteger:
        return constant(place, Value::of_int(take().integer));
      case Kind::kFloat:
        return constant(place, Value::of_float(take().number));
      default:
        break;
    }
    if (try_operator("(")) return parenthesis(place);
    if (try_operator("[")) return list(place);
    if (try_operator("{")) return dict(place);
    fail(fmt::format("expected an expression, found {}", found()));
  }

  ExpressionPtr name(Place place) {
    const std::string text = take().text;
    if (text == "true" || text == "True") return constant(place, Value::of_bool(true));
    if (text == "false" || text == "False") return constant(place, Value::of_bool(false));
    if (text == "none" || text == "None") return constant(place, None{});
    program_.names_read.insert(text);
    ExpressionPtr out = node(E::kName, place);
    out->text = text;
    return out;
  }

  ExpressionPtr string(Place place) {
    std::string text;
    while (now().kind == Kind::kString) text += take().text;
    return constant(place, Value(std::make_shared<const std::string>(std::move(text))));
  }

  ExpressionPtr parenthesis(Place place) {
    if (try_operator(")")) return node(E::kTuple, place);
    ExpressionPtr out = tuple();
    expect_operator(")");
    return out;
  }

  ExpressionPtr list(Place place) {
    ExpressionPtr out = node(E::kList, place);
    while (!try_operator("]")) {
      if (!out->operands.empty()) expect_operator(",");
      if (try_operator("]")) break;
      add(*out, expression());
    }
    return out;
  }

  ExpressionPtr dict(Place place) {
    ExpressionPtr out = node(E::kDict, place);
    while (!try_operator("}")) {
      if (!out->operands.empty()) expect_operator(",");
      if (try_operator("}")) break;
      add(*out, expression());
      expect_operator(":");
      add(*out, expression());
    }
    return out;
  }

  ExpressionPtr postfix(ExpressionPtr out) {
    for (;;) {
      const Place place = here();
      if (try_operator(".")) {
        out = attribute(place, std::move(out));
      } else if (try_operator("[")) {
        out = subscript(place, std::move(out));
      } else if (is_operator("(")) {
        out = call(place, std::move(out));
      } else {
        return out;
      }
    }
  }

  ExpressionPtr attribute(Place place, ExpressionPtr of) {
    if (now().kind == Kind::kInteger) {
      return make(E::kSubscript, place, std::move(of),
                  constant(place, Value::of_int(take().integer)));
    }
    ExpressionPtr out = make(E::kAttribute, place, std::move(of));
    out->text = expect_name();
    return out;
  }

  ExpressionPtr subscript(Place place, ExpressionPtr of) {
    ExpressionPtr first = is_operator(":") ? nullptr : expression();
    if (!is_operator(":")) {
      expect_operator("]");
      return make(E::kSubscript, place, std::move(of), std::move(first));
    }
    ExpressionPtr out = make(E::kSlice, place, std::move(of));
    add(*out, std::move(first));
    for (int part = 1; part < 3; ++part) {
      const bool given = try_operator(":") && !is_operator(":") && !is_operator("]");
      add(*out, given ? expression() : nullptr);
    }
    expect_operator("]");
    return out;
  }

  ExpressionPtr call(Place place, ExpressionPtr callee) {
    ExpressionPtr out = make(E::kCall, place, std::move(callee));
    arguments(*out);
    return out;
  }

  void arguments(Expression& out) {
    expect_operator("(");
    for (bool first = true; !try_operator(")"); first = false) {
      if (!first) expect_operator(",");
      if (try_operator(")")) return;
      if (is_operator("*") || is_operator("**")) fail("'*' before arguments is not built");
      if (now().kind == Kind::kName && next().is(Kind::kOperator, "=")) {
        std::string name = take().text;
        take();
        ExpressionPtr value = expression();
        grow(out, *value);
        out.named.emplace_back(std::move(name), std::move(value));
      } else {
        if (!out.named.empty()) fail("an argument without a name stands behind one with a name");
        add(out, expression());
      }
    }
  }

  // Filters, tests and calls behind an expression; `out` is null in a filter block.
  ExpressionPtr filters(ExpressionPtr out) {
    for (;;) {
      const Place place = here();
      if (try_operator("|")) {
        out = one_filter(std::move(out), place);
      } else if (out && is_name("is")) {
        take();
        out = test(place, std::move(out));
      } else if (out && is_operator("(")) {
        out = call(place, std::move(out));
      } else {
        return out;
      }
    }
  }

  ExpressionPtr one_filter(ExpressionPtr of, Place place) {
    ExpressionPtr out = node(E::kFilter, place);
    add(*out, std::move(of));
    if (!has_filter(now().text)) fail(fmt::format("no filter {}", found()));
    out->text = expect_name();
    if (is_operator("(")) arguments(*out);
    return out;
  }

  ExpressionPtr test(Place place, ExpressionPtr of) {
    const bool negated = try_name("not");
    ExpressionPtr out = make(E::kTest, place, std::move(of));
    if (!has_test(now().text)) fail(fmt::format("no test {}", found()));
    out->text = expect_name();
    if (is_operator("(")) {
      arguments(*out);
    } else if (starts_test_argument()) {
      const Nested nested(*this);
      add(*out, postfix(primary()));
    }
    return negated ? make(E::kNot, place, std::move(out)) : std::move(out);
  }

  bool starts_test_argument() const {
    switch (now().kind) {
      case Kind::kName: {
        static constexpr std::array<std::string_view, 8> kEnds = {
            "else", "or", "and", "is", "if", "not", "in", "recursive"};
        return std::find(kEnds.begin(), kEnds.end(), now().text) == kEnds.end();
      }
      case Kind::kString:
      case Kind::kInteger:
      case Kind::kFloat:
        return true;
      default:
        return is_operator("[") || is_operator("{");
    }
  }

  const std::vector<Token> tokens_;
  size_t at_ = 0;
  int block_depth_ = 0, loop_depth_ = 0, nesting_ = 0;
  Program program_;
};

}  // namespace

Program parse(std::string_view source) { return Parser(tokens_of(source)).run(); }

}  // namespace atl::text::jinja
