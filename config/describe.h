// What people and editors read about the keys, made from their table.
#pragma once

#include <string>

#include "config/settings.h"

namespace atl::config {

// JSON Schema, draft 2020-12, of the file.
std::string json_schema();
// The table of docs/cluster.md.
std::string markdown_table();
// All values, a line each, and where each came from if `origin`. Unset ones are left out.
std::string show_text(const Settings& settings, bool origin);
// {"coordinator.listen": {"value", "origin", "where"}, ...}; without `origin`: the value alone.
std::string show_json(const Settings& settings, bool origin);

}  // namespace atl::config
