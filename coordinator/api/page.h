// The page at `/`: one HTML file without anything from outside. Its text is page.html, put into the
// program at build time; it asks for `stats` (see coordinator/api/stats_json.h) every second.
#pragma once

#include <string_view>

namespace atl::coordinator {

// text/html; charset=utf-8. Valid for the life of the program.
std::string_view status_page();

}  // namespace atl::coordinator
