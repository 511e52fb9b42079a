// atoll experts: which experts a server's requests choose, kept in a file and drawn.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <memory>
#include <string>

#include "base/units.h"
#include "cli/commands.h"
#include "cli/experts_file.h"
#include "cli/output.h"
#include "cli/server_option.h"
#include "storage/io/file_io.h"

namespace atl::cli {
namespace {

struct ExpertsDumpOptions {
  ServerOption server;
  std::filesystem::path out;
};

void dump_experts(const ExpertsDumpOptions& options) {
  const ServerClient server(options.server);
  const std::string text = server.get_text("/experts");
  const ExpertsFile file = parse_experts_file(text, server.name() + "/experts");
  if (options.out.empty() || options.out == "-") return write_stdout(text);
  storage::write_file_atomically(options.out, text);
  write_stdout(fmt::format("{}: {} layers of {} experts, {} tokens in {:.0f} s, {}\n",
                           options.out.string(), file.layers.size(), file.experts, file.rows(),
                           file.seconds, format_bytes(text.size())));
}

struct ExpertsPlotOptions {
  std::filesystem::path file, out;
};

void plot_experts(const ExpertsPlotOptions& options) {
  const std::string page = experts_page(read_experts_file(options.file));
  if (options.out.empty() || options.out == "-") return write_stdout(page);
  storage::write_file_atomically(options.out, page);
  write_stdout(fmt::format("{}: {}\n", options.out.string(), format_bytes(page.size())));
}

}  // namespace

void add_experts_command(CLI::App& app, int* exit_code) {
  CLI::App* group =
      app.add_subcommand("experts", "Which experts a running server's requests choose");
  group->require_subcommand(1);
  group->footer(
      "Example:\n  atoll experts dump http://127.0.0.1:8080 --out experts.json\n"
      "  atoll experts plot experts.json --out experts.html");
  auto dump = std::make_shared<ExpertsDumpOptions>();
  CLI::App* command = group->add_subcommand(
      "dump", "Save the counts: for `plot`, for `atoll plan --usage` and for a node's --usage");
  dump->server.add(*command);
  command->add_option("--out", dump->out, "File (JSON); unless given, stdout")->type_name("FILE");
  command->footer("Example:\n  atoll experts dump http://127.0.0.1:8080 --out experts.json");
  command->callback([dump, exit_code] {
    dump_experts(*dump);
    *exit_code = 0;
  });
  auto plot = std::make_shared<ExpertsPlotOptions>();
  command = group->add_subcommand(
      "plot",
      "Draw a saved file: load, skew, hit rate against the cache's size, what follows what");
  command->add_option("FILE", plot->file, "Of `atoll experts dump`")->required()->type_name("");
  command->add_option("--out", plot->out, "Page (HTML, whole in itself); unless given, stdout")
      ->type_name("FILE");
  command->footer("Example:\n  atoll experts plot experts.json --out experts.html");
  command->callback([plot, exit_code] {
    plot_experts(*plot);
    *exit_code = 0;
  });
}

}  // namespace atl::cli
