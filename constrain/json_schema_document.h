// A JSON Schema as a whole: what its parts say about each other. Nothing of it is grammar.
#pragma once

#include <cstddef>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>

#include "constrain/compile_work.h"
#include "constrain/json_schema_keywords.h"

namespace atl::constrain {

// How many values it is, itself and those in it: what looking at all of it costs.
size_t num_values(const nlohmann::ordered_json& json);

// Throws as json_schema_keywords.h says. Schemas come from strangers, and what they make to be
// compared or merged may grow far faster than their text: all of it counts as work of compiling.
class SchemaDocument {
 public:
  // kInvalid, thrown, if the text is no JSON, too long, or nested too deep. Borrows the work.
  SchemaDocument(std::string_view text, CompileWork& work);
  ~SchemaDocument();

  const nlohmann::ordered_json& root() const { return *root_; }
  // What stands under "$ref", and what it leads to.
  static std::string ref_of(const nlohmann::ordered_json& schema, const std::string& place);
  const nlohmann::ordered_json& target(const std::string& ref, const std::string& place) const;

  // That no value can fulfil both, as far as types and values of required properties tell.
  bool disjoint(const nlohmann::ordered_json& a, const nlohmann::ordered_json& b,
                const std::string& place);

 private:
  const nlohmann::ordered_json& resolved(const nlohmann::ordered_json& schema,
                                         const std::string& place);
  bool are_disjoint(const nlohmann::ordered_json& a, const nlohmann::ordered_json& b,
                    const std::string& place);
  bool share_no_value(const nlohmann::ordered_json& a, const nlohmann::ordered_json& b,
                      const std::string& place);
  void spend(size_t comparisons, const std::string& place);

  CompileWork& work_;
  HeldMemory held_;
  std::unique_ptr<const nlohmann::ordered_json> root_;
};

}  // namespace atl::constrain
