// atoll bench disk: what bench/disk_bench.h measures, as options and text.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <CLI/CLI.hpp>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "base/units.h"
#include "bench/disk_bench.h"
#include "cli/bench_report.h"
#include "cli/memory_options.h"
#include "cli/output.h"
#include "cli/table.h"

namespace atl::cli {
namespace {

using bench::DiskBenchOptions;
using bench::DiskCase;
using bench::DiskContender;
using bench::DiskReport;
using bench::kDiskExpertsAtOnce;
using Json = nlohmann::ordered_json;

std::string giga_text(const std::vector<double>& values) {
  return median_text(in_giga(values), "{:.2f}");
}

std::string case_table(const DiskReport& report) {
  Table table({{"block", Align::kRight},
               {"depth", Align::kRight},
               {"GB/s", Align::kRight},
               {"spread", Align::kRight},
               {"same memory GB/s", Align::kRight},
               {"spread", Align::kRight},
               {"fio GB/s", Align::kRight}});
  for (const DiskCase& one : report.cases) {
    table.add_row({format_bytes(one.block_bytes), std::to_string(one.depth), giga_text(one.in_turn),
                   spread_text(one.in_turn), giga_text(one.same), spread_text(one.same),
                   one.fio ? fmt::format("{:.2f}", one.fio->bytes_per_second * 1e-9) : "-"});
  }
  return table.to_string("");
}

std::string comparison_table(const DiskReport& report) {
  Table table({{"in turns"}, {"GB/s", Align::kRight}, {"spread", Align::kRight}});
  const auto add = [&](const std::string& name, const std::vector<double>& rates) {
    if (!rates.empty()) table.add_row({name, giga_text(rates), spread_text(rates)});
  };
  const auto add_best = [&](const char* name, const DiskContender& best) {
    add(fmt::format("{}, {} x {}", name, format_bytes(best.block_bytes), best.depth), best.rates);
  };
  add_best("drive", report.in_turn);
  add_best("drive into the same memory", report.same);
  add_best("fio", report.fio);
  add("reader, whole experts, checked", report.reader_rates);
  return table.to_string("");
}

std::string to_text(const DiskBenchOptions& options, const DiskReport& report) {
  std::string text = fmt::format(
      "{}: {}, random O_DIRECT reads by {} into {} on huge pages in turn\n", options.dir.string(),
      report.files, report.io_uring ? "io_uring" : "threads", format_bytes(report.memory_bytes));
  if (!report.no_fio.empty()) {
    text += fmt::format("fio: {}\n", report.no_fio);
  } else if (!report.fio_huge_pages) {
    text += "fio: into pages of 4 KiB: too few huge pages are set aside (sysctl vm.nr_hugepages)\n";
  }
  text += "\n" + case_table(report) + "\n" + comparison_table(report);
  if (report.reader.empty()) {
    return text + "\nno pack is here: the reader was not measured\n";
  }
  text += fmt::format("\nreader: {} experts of {} at a time by {}\n", kDiskExpertsAtOnce,
                      format_bytes(report.expert_bytes), report.reader);
  text += fmt::format("reader / drive: {} {}\n", median_text(report.of_in_turn, "{:.3f}"),
                      spread_text(report.of_in_turn));
  text += fmt::format("reader / best of all: {} {}\n", median_text(report.of_best, "{:.3f}"),
                      spread_text(report.of_best));
  return text;
}

Json contender_json(const DiskContender& contender) {
  if (contender.rates.empty()) return nullptr;
  return {{"block_bytes", contender.block_bytes},
          {"depth", contender.depth},
          {"bytes_per_second", summary_json<Json>(contender.rates)}};
}

Json to_json(const DiskBenchOptions& options, const DiskReport& report) {
  Json cases = Json::array();
  for (const DiskCase& one : report.cases) {
    cases.push_back(
        {{"block_bytes", one.block_bytes},
         {"depth", one.depth},
         {"bytes_per_second", summary_json<Json>(one.in_turn)},
         {"same_memory_bytes_per_second", summary_json<Json>(one.same)},
         {"fio_bytes_per_second", one.fio ? Json(one.fio->bytes_per_second) : Json(nullptr)}});
  }
  Json reader = nullptr;
  if (!report.reader.empty()) {
    reader = {{"how", report.reader},
              {"experts_at_once", kDiskExpertsAtOnce},
              {"expert_bytes", report.expert_bytes},
              {"bytes_per_second", summary_json<Json>(report.reader_rates)},
              {"of_drive", summary_json<Json>(report.of_in_turn)},
              {"of_best", summary_json<Json>(report.of_best)}};
  }
  return {{"directory", options.dir.string()},
          {"files", report.files},
          {"io_uring", report.io_uring},
          {"memory_bytes", report.memory_bytes},
          {"fio", report.no_fio.empty() ? "used" : report.no_fio},
          {"fio_huge_pages", report.fio_huge_pages},
          {"cases", cases},
          {"drive", contender_json(report.in_turn)},
          {"drive_same_memory", contender_json(report.same)},
          {"fio_best", contender_json(report.fio)},
          {"reader", reader}};
}

// "" for a size that direct reads can have, else why not.
std::string refuse_size(const std::string& text) {
  const Result<uint64_t> bytes = parse_bytes(text);
  if (!bytes) return bytes.error().message;
  if (*bytes > 0 && *bytes % storage::kExtentAlign == 0 && *bytes < (uint64_t{1} << 50)) return "";
  return fmt::format("'{}' is no multiple of 4 KiB", text);
}

}  // namespace

void add_bench_disk_command(CLI::App& bench, int* exit_code) {
  auto options = std::make_shared<DiskBenchOptions>();
  CLI::App* command = bench.add_subcommand(
      "disk", "A drive's O_DIRECT rate, and what reading experts of a pack makes of it");
  command
      ->add_option("DIR", options->dir,
                   "An expert pack, or any directory, where a scratch file is then made")
      ->required()
      ->check(CLI::ExistingDirectory);
  command->add_option("--block", options->blocks, "Sizes of a read")
      ->delimiter(',')
      ->check(CLI::Validator(refuse_size, "", "size"))
      ->type_name("SIZE,SIZE,...")
      ->default_str(fmt::format("{}", fmt::join(options->blocks, ",")));
  add_list_option(*command, "--depth", "Reads under way at the same time", 1, 256,
                  &options->depths);
  command->add_option("--file-bytes", options->file_bytes, "Of the scratch file")
      ->check(CLI::Validator(refuse_size, "", "size"))
      ->type_name("SIZE")
      ->capture_default_str();
  command
      ->add_option("--seconds-per-case", options->seconds_per_case,
                   "Of each repeat; four times that in the comparison at the end")
      ->check(CLI::Range(0.001, 3600.0))
      ->capture_default_str();
  command->add_option("--repeats", options->repeats, "Repeats of each case, taken in turns")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  command->add_flag("!--no-fio", options->use_fio, "Don't ask fio, even if it is installed");
  add_io_option(*command, &options->io);
  command->add_flag("--json", options->json, "One JSON object in place of the tables");
  command->footer("Example:\n  atoll bench disk /nvme0/pack --block 1MiB,4MiB --depth 1,4");
  command->callback([options, exit_code] {
    const DiskReport report = bench::measure_disk(*options);
    write_stdout(options->json ? to_json(*options, report).dump(2) + "\n"
                               : to_text(*options, report));
    *exit_code = 0;
  });
}

}  // namespace atl::cli
