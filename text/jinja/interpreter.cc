#include "text/jinja/interpreter.h"

#include <fmt/core.h>

#include <algorithm>
#include <array>
#include <ctime>
#include <optional>

#include "text/jinja/filters.h"
#include "text/jinja/methods.h"
#include "text/jinja/operators.h"

namespace atl::text::jinja {

// The variables that a block has set; what it doesn't have is looked for further out.
struct Scope {
  Scope* outer = nullptr;
  std::vector<std::pair<std::string, Value>> variables;
  bool has_macro = false;  // which refers to it
  size_t bytes = 0;        // held by its variables

  Value* find(std::string_view name) {
    for (auto& [key, value] : variables) {
      if (key == name) return &value;
    }
    return nullptr;
  }
};

namespace {

enum class Flow : uint8_t { kOn, kBreak, kContinue };

constexpr std::array<std::pair<std::string_view, Builtin>, 5> kBuiltins = {{
    {"range", Builtin::kRange},
    {"namespace", Builtin::kNamespace},
    {"dict", Builtin::kDict},
    {"raise_exception", Builtin::kRaiseException},
    {"strftime_now", Builtin::kStrftimeNow},
}};

class Interpreter {
 public:
  Interpreter(const Dict& variables, Budget& budget, size_t output_bytes_max)
      : variables_(variables), budget_(budget), output_bytes_max_(output_bytes_max) {}

  std::string run(const Program& program) {
    TextBuilder out(budget_);
    out_ = &out;
    const ScopeGuard top(*this, nullptr);
    try {
      run_body(program.body);
      check_output();
    } catch (RenderError& error) {
      if (error.line == 0) {
        error.line = place_.line;
        error.column = place_.column;
      }
      throw;
    }
    return out.take();
  }

 private:
  using E = Expression::Kind;
  using S = Statement::Kind;

  // A scope that ends with the block, unless a macro refers to it.
  class ScopeGuard {
   public:
    ScopeGuard(Interpreter& in, Scope* outer)
        : in_(in), saved_(in.scope_), scope_(std::make_unique<Scope>()) {
      scope_->outer = outer;
      in.scope_ = scope_.get();
    }
    ~ScopeGuard() {
      in_.scope_ = saved_;
      if (scope_->has_macro) {
        in_.kept_scopes_.push_back(std::move(scope_));
      } else {
        in_.budget_.give_back(scope_->bytes);
      }
    }
    ScopeGuard(const ScopeGuard&) = delete;
    ScopeGuard& operator=(const ScopeGuard&) = delete;

   private:
    Interpreter& in_;
    Scope* const saved_;
    std::unique_ptr<Scope> scope_;
  };

  // What is written in the block goes to a text of its own.
  class Capture {
   public:
    explicit Capture(Interpreter& in) : in_(in), saved_(in.out_), out_(in.budget_) {
      in.out_ = &out_;
    }
    ~Capture() { in_.out_ = saved_; }
    Capture(const Capture&) = delete;
    Capture& operator=(const Capture&) = delete;
    Value value() { return out_.value(); }

   private:
    Interpreter& in_;
    TextBuilder* const saved_;
    TextBuilder out_;
  };

  // --- variables ---
  Value look_up(const std::string& name) {
    for (Scope* scope = scope_; scope != nullptr; scope = scope->outer) {
      budget_.step();
      if (const Value* found = scope->find(name)) return *found;
    }
    if (const Value* found = variables_.find(name)) return *found;
    for (const auto& [builtin_name, builtin] : kBuiltins) {
      if (name == builtin_name) return Function{builtin, nullptr, nullptr};
    }
    return Undefined{std::make_shared<const std::string>(name)};
  }

  void assign(const std::string& name, Value value) {
    if (Value* there = scope_->find(name)) {
      *there = std::move(value);
    } else {
      const size_t bytes = kGrowingTimes * (sizeof(Value) + sizeof(std::string)) + name.size();
      budget_.hold(bytes);
      scope_->bytes += bytes;
      scope_->variables.emplace_back(name, std::move(value));
    }
  }

  void assign_all(const std::vector<std::string>& names, const Value& value) {
    if (names.size() == 1) return assign(names[0], value);
    const List items = items_of(value, budget_);
    if (items.size() != names.size()) {
      refuse(fmt::format("{} values for {} names", items.size(), names.size()));
    }
    for (size_t i = 0; i < names.size(); ++i) assign(names[i], items[i]);
  }

  // --- statements ---
  Flow run_body(const Body& body) {
    for (const auto& statement : body) {
      const Flow flow = run_statement(*statement);
      if (flow != Flow::kOn) return flow;
    }
    return Flow::kOn;
  }

  Flow run_statement(const Statement& s) {
    const size_t passing = budget_.passing();
    const Flow flow = run_statement_within(s);
    budget_.end_statement(passing);
    return flow;
  }

  Flow run_statement_within(const Statement& s) {
    budget_.step();
    place_ = s.place;
    switch (s.kind) {
      case S::kText:
        write(s.text);
        break;
      case S::kOutput:
        run_output(s);
        break;
      case S::kIf:
        return run_if(s);
      case S::kFor:
        run_for(s);
        break;
      case S::kSet:
        run_set(s);
        break;
      case S::kSetBlock:
        run_set_block(s);
        break;
      case S::kWith:
        return run_with(s);
      case S::kMacro:
        define_macro(*s.macro);
        break;
      case S::kCall:
        run_call_block(s);
        break;
      case S::kFilter:
        run_filter_block(s);
        break;
      case S::kBody:
        return run_body(s.bodies[0]);
      case S::kBreak:
        return Flow::kBreak;
      case S::kContinue:
        return Flow::kContinue;
    }
    return Flow::kOn;
  }

  void write(std::string_view text) {
    *out_ << text;
    check_output();
  }

  void check_output() const {
    if (out_->text().size() > output_bytes_max_) {
      refuse(fmt::format("the text has more than {} bytes", output_bytes_max_));
    }
  }

  void run_output(const Statement& s) {
    const Value value = evaluate(*s.expressions[0]);
    write_str(value, *out_);
    check_output();
  }

  Flow run_if(const Statement& s) {
    for (size_t i = 0; i < s.bodies.size(); ++i) {
      const bool is_else = i == s.expressions.size();
      if (is_else || truthy(evaluate(*s.expressions[i]))) return run_body(s.bodies[i]);
    }
    return Flow::kOn;
  }

  // The items that the loop's `if` keeps; it sees the targets and not the variable `loop`.
  std::shared_ptr<const List> loop_items(const Statement& s) {
    List items = items_of(evaluate(*s.expressions[0]), budget_);
    if (s.expressions[1]) {
      List kept;
      for (Value& item : items) {
        budget_.use_bytes(kGrowingTimes * sizeof(Value));
        const ScopeGuard scope(*this, scope_);
        assign_all(s.targets, item);
        if (truthy(evaluate(*s.expressions[1]))) kept.push_back(std::move(item));
      }
      items = std::move(kept);
    }
    return std::make_shared<const List>(std::move(items));
  }

  void run_for(const Statement& s) {
    const auto items = loop_items(s);
    if (items->empty()) {
      if (s.bodies.size() > 1) {
        const ScopeGuard scope(*this, scope_);
        run_body(s.bodies[1]);
      }
      return;
    }
    for (size_t i = 0; i < items->size(); ++i) {
      budget_.step();
      const ScopeGuard scope(*this, scope_);
      assign("loop", std::make_shared<const Loop>(Loop{items, i, 1}));
      assign_all(s.targets, (*items)[i]);
      if (run_body(s.bodies[0]) == Flow::kBreak) break;
    }
  }

  void run_set(const Statement& s) {
    Value value = evaluate(*s.expressions[0]);
    place_ = s.place;
    if (!s.is_attribute) return assign_all(s.targets, value);
    set_attribute(s, std::move(value));
  }

  void set_attribute(const Statement& s, Value value) {
    const Value object = look_up(s.targets[0]);
    if (!object.is<Namespace*>()) {
      refuse(fmt::format("'{}' is no namespace, so its attributes can't be set", s.targets[0]));
    }
    set_member(**object.get<Namespace*>(), s.targets[1], std::move(value));
  }

  void set_member(Namespace& space, const std::string& name, Value value) {
    if (Value* there = space.find(name)) {
      *there = std::move(value);
    } else {
      budget_.hold(kGrowingTimes * (sizeof(Value) + sizeof(std::string)) + name.size());
      space.members.emplace_back(name, std::move(value));
    }
  }

  void run_set_block(const Statement& s) {
    Value value = captured(s.bodies[0]);
    if (s.expressions[0]) value = evaluate_filter_of(*s.expressions[0], value);
    if (s.is_attribute) return set_attribute(s, std::move(value));
    assign(s.targets[0], std::move(value));
  }

  Value captured(const Body& body) {
    Capture capture(*this);
    const ScopeGuard scope(*this, scope_);
    run_body(body);
    return capture.value();
  }

  Flow run_with(const Statement& s) {
    std::vector<Value> values;
    for (const auto& expression : s.expressions) values.push_back(evaluate(*expression));
    const ScopeGuard scope(*this, scope_);
    for (size_t i = 0; i < values.size(); ++i) assign(s.targets[i], std::move(values[i]));
    return run_body(s.bodies[0]);
  }

  Function macro_here(const Macro& macro) {
    scope_->has_macro = true;
    budget_.hold(2 * sizeof(Scope));  // for good
    // The scopes around it must live as long.
    for (Scope* scope = scope_; scope != nullptr; scope = scope->outer) scope->has_macro = true;
    return Function{Builtin::kRange, &macro, scope_};
  }

  void define_macro(const Macro& macro) { assign(macro.name, macro_here(macro)); }

  void run_call_block(const Statement& s) {
    const Expression& call = *s.expressions[0];
    const Value callee = evaluate(*call.operands[0]);
    const Value caller = macro_here(*s.macro);
    const Arguments arguments = evaluate_arguments(call, 1);
    place_ = s.place;
    write_str(call_value(callee, arguments, &caller), *out_);
    check_output();
  }

  void run_filter_block(const Statement& s) {
    const Value text = captured(s.bodies[0]);
    write_str(evaluate_filter_of(*s.expressions[0], text), *out_);
    check_output();
  }

  // A chain of filters whose innermost input is left out.
  Value evaluate_filter_of(const Expression& e, const Value& input) {
    const Value in = e.operands[0] ? evaluate_filter_of(*e.operands[0], input) : input;
    const Arguments arguments = evaluate_arguments(e, 1);
    place_ = e.place;
    return apply_filter(e.text, in, arguments, budget_);
  }

  // --- expressions ---
  Value evaluate(const Expression& e) {
    budget_.step();
    place_ = e.place;
    switch (e.kind) {
      case E::kLiteral:
        return e.value;
      case E::kName:
        return look_up(e.text);
      case E::kList:
        return budget_.list(evaluate_all(e.operands));
      case E::kTuple:
        return budget_.tuple(evaluate_all(e.operands));
      case E::kDict:
        return evaluate_dict(e);
      case E::kAttribute:
        return evaluate_attribute(e);
      case E::kSubscript:
        return evaluate_subscript(e);
      case E::kSlice:
        return evaluate_slice(e);
      case E::kCall:
        return evaluate_call(e);
      case E::kFilter:
        return evaluate_filter(e);
      case E::kTest:
        return evaluate_test(e);
      case E::kNot:
        return Value::of_bool(!truthy(evaluate(*e.operands[0])));
      case E::kNegative:
        return negative(evaluate(*e.operands[0]));
      case E::kPositive:
        return positive(evaluate(*e.operands[0]));
      case E::kBinary:
        return evaluate_binary(e);
      case E::kConcat:
        return evaluate_concat(e);
      case E::kCompare:
        return evaluate_compare(e);
      case E::kAnd:
        return evaluate_and_or(e, false);
      case E::kOr:
        return evaluate_and_or(e, true);
      case E::kConditional:
        return evaluate_conditional(e);
    }
    return {};
  }

  List evaluate_all(const std::vector<ExpressionPtr>& expressions) {
    List out;
    for (const auto& expression : expressions) out.push_back(evaluate(*expression));
    return out;
  }

  Value evaluate_dict(const Expression& e) {
    Dict dict;
    for (size_t i = 0; i < e.operands.size(); i += 2) {
      Value key = evaluate(*e.operands[i]);
      if (key.is_list() || key.is_dict()) refuse("a list or dict can't be a key");
      Value value = evaluate(*e.operands[i + 1]);
      dict.set(std::move(key), std::move(value));
    }
    return budget_.dict(std::move(dict));
  }

  Value evaluate_attribute(const Expression& e) {
    const Value object = evaluate(*e.operands[0]);
    place_ = e.place;
    if (const auto* loop = object.get<std::shared_ptr<const Loop>>()) {
      return loop_attribute(**loop, e.text);
    }
    return subscript(object, budget_.text(e.text), budget_);
  }

  Value loop_attribute(const Loop& loop, const std::string& name) const {
    const auto size = static_cast<int64_t>(loop.items->size());
    const auto index0 = static_cast<int64_t>(loop.index0);
    if (name == "index") return Value::of_int(index0 + 1);
    if (name == "index0") return Value::of_int(index0);
    if (name == "first") return Value::of_bool(index0 == 0);
    if (name == "last") return Value::of_bool(index0 + 1 == size);
    if (name == "length") return Value::of_int(size);
    if (name == "revindex") return Value::of_int(size - index0);
    if (name == "revindex0") return Value::of_int(size - index0 - 1);
    if (name == "previtem" && index0 > 0) return (*loop.items)[loop.index0 - 1];
    if (name == "nextitem" && index0 + 1 < size) return (*loop.items)[loop.index0 + 1];
    return Undefined{std::make_shared<const std::string>("loop." + name)};
  }

  Value evaluate_subscript(const Expression& e) {
    const Value object = evaluate(*e.operands[0]);
    const Value key = evaluate(*e.operands[1]);
    place_ = e.place;
    if (const auto* loop = object.get<std::shared_ptr<const Loop>>(); loop && key.is_string()) {
      return loop_attribute(**loop, key.string());
    }
    return subscript(object, key, budget_);
  }

  Value evaluate_slice(const Expression& e) {
    const auto part = [&](size_t i) { return e.operands[i] ? evaluate(*e.operands[i]) : Value(); };
    const Value object = evaluate(*e.operands[0]);
    const Value begin = part(1), end = part(2), step = part(3);
    place_ = e.place;
    return slice(object, begin, end, step, budget_);
  }

  Arguments evaluate_arguments(const Expression& e, size_t first) {
    Arguments out;
    for (size_t i = first; i < e.operands.size(); ++i) {
      out.positional.push_back(evaluate(*e.operands[i]));
    }
    for (const auto& [name, expression] : e.named) {
      out.named.emplace_back(name, evaluate(*expression));
    }
    budget_.use_bytes(e.operands.size() * sizeof(Value));
    return out;
  }

  Value evaluate_call(const Expression& e) {
    const Expression& callee = *e.operands[0];
    if (callee.kind == E::kAttribute) return evaluate_method(e, callee);
    const Value function = evaluate(callee);
    const Arguments arguments = evaluate_arguments(e, 1);
    place_ = e.place;
    if (function.is_undefined()) refuse(fmt::format("'{}' is undefined", callee.text));
    return call_value(function, arguments, nullptr);
  }

  Value evaluate_method(const Expression& e, const Expression& callee) {
    const Value object = evaluate(*callee.operands[0]);
    const Arguments arguments = evaluate_arguments(e, 1);
    place_ = e.place;
    if (const auto* loop = object.get<std::shared_ptr<const Loop>>()) {
      if (callee.text != "cycle" || arguments.positional.empty()) {
        refuse(fmt::format("loop has no method '{}'", callee.text));
      }
      return arguments.positional[(*loop)->index0 % arguments.positional.size()];
    }
    if (object.is<Namespace*>()) {
      return call_value(subscript(object, budget_.text(callee.text), budget_), arguments, nullptr);
    }
    return call_method(object, callee.text, arguments, budget_);
  }

  Value call_value(const Value& callee, const Arguments& arguments, const Value* caller) {
    const Function* function = callee.get<Function>();
    if (function == nullptr) {
      refuse(fmt::format("a value of type {} can't be called", type_name(callee)));
    }
    if (function->macro != nullptr) return call_macro(*function, arguments, caller);
    switch (function->builtin) {
      case Builtin::kRange:
        return call_range(arguments, budget_);
      case Builtin::kNamespace:
        return make_namespace(arguments);
      case Builtin::kDict:
        return make_dict(arguments);
      case Builtin::kRaiseException:
        raise(arguments);
      case Builtin::kStrftimeNow:
        return strftime_now(arguments);
    }
    return {};
  }

  Value call_macro(const Function& function, const Arguments& arguments, const Value* caller) {
    const Macro& macro = *function.macro;
    check_arguments(macro, arguments);
    if (call_depth_ >= kCallDepthMax) refuse("macros call each other too deep");
    ++call_depth_;
    Capture capture(*this);
    const ScopeGuard scope(*this, function.scope);
    if (caller) assign("caller", *caller);
    for (size_t i = 0; i < macro.parameters.size(); ++i) {
      const Value* given = arguments.find(i, macro.parameters[i]);
      Value value = given ? *given : macro.defaults[i] ? evaluate(*macro.defaults[i]) : Value();
      assign(macro.parameters[i], std::move(value));
    }
    run_body(macro.body);
    --call_depth_;
    return capture.value();
  }

  static void check_arguments(const Macro& macro, const Arguments& arguments) {
    const auto& known = macro.parameters;
    if (arguments.positional.size() > known.size()) {
      refuse(fmt::format("{}: {} arguments, expected at most {}", macro.name,
                         arguments.positional.size(), known.size()));
    }
    for (const auto& [name, value] : arguments.named) {
      if (std::find(known.begin(), known.end(), name) == known.end()) {
        refuse(fmt::format("{}: no argument '{}'", macro.name, name));
      }
    }
  }

  Value make_namespace(const Arguments& arguments) {
    budget_.use_bytes(sizeof(Namespace));
    namespaces_.push_back(std::make_unique<Namespace>());
    Namespace& space = *namespaces_.back();
    if (arguments.positional.size() > 1) refuse("namespace: expected at most one dict");
    for (const Value& start : arguments.positional) {
      if (!start.is_dict()) refuse("namespace: expected names with values, or a dict");
      for (const auto& [key, value] : start.dict().items) {
        if (key.is_string()) set_member(space, key.string(), value);
      }
    }
    for (const auto& [name, value] : arguments.named) set_member(space, name, value);
    return &space;
  }

  Value make_dict(const Arguments& arguments) {
    Dict dict;
    if (arguments.positional.size() > 1) refuse("dict: expected at most one dict");
    for (const Value& start : arguments.positional) {
      if (!start.is_dict()) refuse("dict: expected names with values, or a dict");
      for (const auto& [key, value] : start.dict().items) dict.set(key, value);
    }
    for (const auto& [name, value] : arguments.named) dict.set(budget_.text(name), value);
    return budget_.dict(std::move(dict));
  }

  [[noreturn]] void raise(const Arguments& arguments) {
    TextBuilder message(budget_);
    write_str(arguments.at(0, "message"), message);
    refuse(message.text());
  }

  Value strftime_now(const Arguments& arguments) {
    const Value& format = arguments.at(0, "format");
    if (!format.is_string()) refuse("strftime_now: expected a str");
    const std::time_t now = std::time(nullptr);
    std::tm local{};
    localtime_r(&now, &local);
    char buffer[512];
    return budget_.text(
        std::string(buffer, std::strftime(buffer, sizeof buffer, format.string().c_str(), &local)));
  }

  Value evaluate_filter(const Expression& e) {
    const Value input = evaluate(*e.operands[0]);
    const Arguments arguments = evaluate_arguments(e, 1);
    place_ = e.place;
    return apply_filter(e.text, input, arguments, budget_);
  }

  Value evaluate_test(const Expression& e) {
    const Value input = evaluate(*e.operands[0]);
    const Arguments arguments = evaluate_arguments(e, 1);
    place_ = e.place;
    return Value::of_bool(apply_test(e.text, input, arguments, budget_));
  }

  static Value positive(Value value) {
    if (!value.is_number()) {
      refuse(fmt::format("'+' before a value of type {}", type_name(value)));
    }
    return value.is<bool>() ? Value::of_int(value.integer()) : value;
  }

  Value evaluate_binary(const Expression& e) {
    const Value a = evaluate(*e.operands[0]);
    const Value b = evaluate(*e.operands[1]);
    place_ = e.place;
    return apply_binary(e.text, a, b, budget_);
  }

  Value evaluate_concat(const Expression& e) {
    TextBuilder out(budget_);
    for (const auto& operand : e.operands) write_str(evaluate(*operand), out);
    return out.value();
  }

  Value evaluate_compare(const Expression& e) {
    Value left = evaluate(*e.operands[0]);
    for (size_t i = 0; i < e.operators.size(); ++i) {
      Value right = evaluate(*e.operands[i + 1]);
      place_ = e.place;
      if (!compare(e.operators[i], left, right)) return Value::of_bool(false);
      left = std::move(right);
    }
    return Value::of_bool(true);
  }

  bool compare(std::string_view op, const Value& a, const Value& b) {
    if (op == "==") return equal(a, b, budget_);
    if (op == "!=") return !equal(a, b, budget_);
    if (op == "in") return contains(b, a, budget_);
    if (op == "not in") return !contains(b, a, budget_);
    // Not by negation of the other order: a NaN is neither.
    if (op == "<") return less(a, b, budget_);
    if (op == ">") return less(b, a, budget_);
    return (op == "<=" ? less(a, b, budget_) : less(b, a, budget_)) || equal(a, b, budget_);
  }

  Value evaluate_and_or(const Expression& e, bool stops_at) {
    Value left = evaluate(*e.operands[0]);
    return truthy(left) == stops_at ? left : evaluate(*e.operands[1]);
  }

  Value evaluate_conditional(const Expression& e) {
    if (truthy(evaluate(*e.operands[1]))) return evaluate(*e.operands[0]);
    return e.operands[2] ? evaluate(*e.operands[2]) : Value();
  }

  const Dict& variables_;
  Budget& budget_;
  const size_t output_bytes_max_;
  TextBuilder* out_ = nullptr;
  Scope* scope_ = nullptr;
  Place place_;
  int call_depth_ = 0;
  std::vector<std::unique_ptr<Scope>> kept_scopes_;
  std::vector<std::unique_ptr<Namespace>> namespaces_;
};

}  // namespace

std::string run(const Program& program, const Dict& variables, Budget& budget,
                size_t output_bytes_max) {
  return Interpreter(variables, budget, output_bytes_max).run(program);
}

}  // namespace atl::text::jinja
