// A small JSON Schema validator for tests: the keywords that structured output covers, and nothing
// else. Patterns by PCRE2.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

namespace atl::constrain {

// Empty: `value` fulfils `schema`. Otherwise what it breaks.
std::string schema_violation(const nlohmann::ordered_json& schema,
                             const nlohmann::ordered_json& value,
                             const nlohmann::ordered_json& root);

}  // namespace atl::constrain
