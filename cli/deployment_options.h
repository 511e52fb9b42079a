// The options of all commands that run a model: `run`, `serve`, `eval`, `bench decode|prefill`.
#pragma once

#include "deployment/deployment.h"
#include "transport/data/transport.h"

namespace CLI {
class App;
}

namespace atl::cli {

// Describes those options to the parser, which takes from a cluster file what the command line does
// not say, and has bars drawn while loading. *options is borrowed for the life of the program.
void add_deployment_options(CLI::App& command, deployment::DeploymentOptions* options);

// --force into *force (borrowed likewise).
void add_force_option(CLI::App& command, bool* force);

// --cold-start of commands that wait_until_warm() unless it is given, into *cold.
void add_cold_start_option(CLI::App& command, bool* cold);

// --transport auto|shm|tcp into *kind (borrowed likewise).
void add_transport_option(CLI::App& command, transport::TransportKind* kind);

}  // namespace atl::cli
