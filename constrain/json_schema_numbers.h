// The keywords of a JSON Schema about numbers.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>

#include "constrain/json_text_grammar.h"

namespace atl::constrain {

// What minimum, maximum, their exclusive forms and multipleOf leave; nullopt: they are not there.
// `integer`: of integers only. Throws as json_schema_keywords.h says.
std::optional<NumberRange> number_range(bool integer, const nlohmann::ordered_json& schema,
                                        const std::string& place);

}  // namespace atl::constrain
