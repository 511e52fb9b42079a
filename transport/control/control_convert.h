// Between the schema's structs and control.h's values, and between kj::Exception and Error: the one
// place where either is translated. Private to transport/.
#pragma once

#include <kj/exception.h>

#include "transport/control/control.capnp.h"
#include "transport/control/control.h"

namespace atl::transport {

// What went wrong with a connection or a call to `address` while doing `what`.
Error error_of(const kj::Exception& exception, const std::string& what, const std::string& address);

// The outcome in a call's results. The message is the other side's, cut to 4 KiB, one line.
void write_error(schema::Error::Builder out, const Error& error);
Error read_error(schema::Error::Reader in);

void write_hello(schema::Hello::Builder out, const Hello& hello);
void write_reply(schema::HelloReply::Builder out, const HelloReply& reply);
void write_plan(schema::Plan::Builder out, const Plan& plan);
void write_state(schema::State::Builder out, const NodeState& state);
void write_stats(schema::Stats::Builder out, const NodeStats& stats);
void write_trace(schema::Trace::Builder out, const NodeTrace& trace);

// kInvalid names the field, what was found and what was expected.
Result<Hello> read_hello(schema::Hello::Reader in);
Result<HelloReply> read_reply(schema::HelloReply::Reader in);
Result<Plan> read_plan(schema::Plan::Reader in);
Result<NodeState> read_state(schema::State::Reader in);
Result<NodeStats> read_stats(schema::Stats::Reader in);
Result<NodeTrace> read_trace(schema::Trace::Reader in);

}  // namespace atl::transport
