// GET /trace?seconds=N: what coordinator and nodes do meanwhile, as server-sent events of one line
// of JSON each (docs/profiling.md). What `atoll trace` and `atoll explain` read.
#pragma once

#include "coordinator/cluster/trace_collector.h"
#include "http/http_server.h"

namespace atl::coordinator {

// The longest trace, and one if the query doesn't say.
inline constexpr double kTraceSecondsMax = 60, kTraceSecondsDefault = 5;

// Adds the path. Server's thread, as HttpServer::route(); all is borrowed and outlives the server.
// One trace at a time: another is 429. A client that goes ends its trace.
void add_trace_route(http::HttpServer& server, TraceCollector& collector);

}  // namespace atl::coordinator
