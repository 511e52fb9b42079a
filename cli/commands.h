// The subcommands of `atoll`, one file each.
//
// add_X_command describes subcommand X to the parser: its options with units and defaults, and an
// example. When the user chose it, its work runs inside the parse and stores the process's exit
// code in *exit_code. Exceptions pass through to main(), which prints them as one line.
#pragma once

namespace CLI {
class App;
}

namespace atl::cli {

// Both are borrowed for the life of the program.
void add_run_command(CLI::App& app, int* exit_code);
void add_serve_command(CLI::App& app, int* exit_code);
void add_chat_command(CLI::App& app, int* exit_code);
void add_eval_command(CLI::App& app, int* exit_code);
void add_node_command(CLI::App& app, int* exit_code);
void add_keys_command(CLI::App& app, int* exit_code);
void add_tokenize_command(CLI::App& app, int* exit_code);
void add_pack_command(CLI::App& app, int* exit_code);
void add_inspect_command(CLI::App& app, int* exit_code);
void add_topology_command(CLI::App& app, int* exit_code);
void add_synth_command(CLI::App& app, int* exit_code);
void add_cluster_command(CLI::App& app, int* exit_code);
void add_experts_command(CLI::App& app, int* exit_code);
void add_top_command(CLI::App& app, int* exit_code);
void add_trace_command(CLI::App& app, int* exit_code);
void add_explain_command(CLI::App& app, int* exit_code);
void add_plan_command(CLI::App& app, int* exit_code);
void add_probe_command(CLI::App& app, int* exit_code);
void add_doctor_command(CLI::App& app, int* exit_code);
void add_config_command(CLI::App& app, int* exit_code);
void add_bench_command(CLI::App& app, int* exit_code);  // a group, see bench_report.h

}  // namespace atl::cli
