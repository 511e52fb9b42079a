// JSON Schema to grammar. What is covered: docs/structured-output.md.
#pragma once

#include <string_view>

#include "base/result.h"
#include "constrain/grammar.h"
#include "constrain/json_text_grammar.h"

namespace atl::constrain {

// The rule of JSON texts that the schema describes. kInvalid names the keyword and its place.
//   arguments  of a tool: objects only, and {} alone where the schema says nothing of properties
Result<int32_t> add_json_schema(GrammarBuilder& grammar, const JsonRules& rules,
                                std::string_view schema_json, bool arguments = false);

}  // namespace atl::constrain
