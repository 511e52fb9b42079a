// Schemas put together: what allOf, anyOf, if, not and their like make of the keywords beside them.
#pragma once

#include <cstddef>
#include <map>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "constrain/char_automaton.h"
#include "constrain/compile_work.h"
#include "constrain/json_schema_document.h"

namespace atl::constrain {

// Whether the schema is more than keywords that each constrain a type: then alternatives() makes it
// that.
bool is_combined(const nlohmann::ordered_json& schema);

// A plain schema is an object of keywords that each constrain a type, and `not` with nothing but an
// enum. The schemas of its parts are as they were, or allOf of several.
//
// Throws as json_schema_keywords.h says. All that it makes counts as work.
class SchemaAlgebra {
 public:
  using Json = nlohmann::ordered_json;

  // Borrows both.
  SchemaAlgebra(SchemaDocument& document, CompileWork& work)
      : document_(document), work_(work), held_(work) {}
  ~SchemaAlgebra();

  // Plain schemas of which a value fulfils one at least if it fulfils `schema`; none: no value
  // does.
  std::vector<Json> alternatives(const Json& schema, const std::string& place);
  // What a plain schema and {"type": type} have in common: as above.
  std::vector<Json> with_type(std::vector<Json> plain, const char* type, const std::string& place);
  // Whether a value fulfils a schema. Formats are not looked at.
  bool fulfils(const Json& value, const Json& schema, const std::string& place);
  bool fulfils_plain(const Json& value, const Json& plain, const std::string& place);

  const CharAutomaton& pattern(const std::string& text, const std::string& place);
  bool matches(const std::string& pattern, const std::string& text, const std::string& place) {
    return this->pattern(pattern, place).accepts(text);
  }
  // The strings that a plain schema leaves. Formats only if they are `asserted` and fit.
  CharAutomaton strings(const Json& plain, const std::string& place, bool asserted);

 private:
  const std::vector<Json>& of_ref(const std::string& ref, const std::string& place);
  std::vector<Json> own(const Json& schema, const std::string& place);
  std::vector<Json> negated(const Json& schema, const std::string& place);
  std::vector<Json> negated_keyword(const std::string& keyword, const Json& schema,
                                    const std::string& place);
  std::vector<Json> negated_properties(const Json& schema, const std::string& place);
  std::vector<Json> conditional(const Json& schema, const std::string& place);
  std::vector<Json> dependent(const Json& schema, const std::string& place);
  std::vector<Json> one_of(const Json& schema, const std::string& place);
  std::vector<Json> cross(const std::vector<Json>& a, const std::vector<Json>& b,
                          const std::string& place);
  bool conjoin(Json& to, const Json& other, const std::string& place);
  void conjoin_objects(Json& to, const Json& other, const std::string& place);
  void conjoin_arrays(Json& to, const Json& other);
  bool fulfils_object(const Json& value, const Json& plain, const std::string& place);
  bool fulfils_array(const Json& value, const Json& plain, const std::string& place);
  void spend(const Json& json, const std::string& place);

  SchemaDocument& document_;
  CompileWork& work_;
  HeldMemory held_;
  int depth_ = 0;
  // By $ref; nullopt: it is being made.
  std::map<std::string, std::optional<std::vector<Json>>> of_refs_;
  std::map<std::string, CharAutomaton> patterns_;
};

}  // namespace atl::constrain
