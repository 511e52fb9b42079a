#include "bench/fio_rate.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "base/child_process.h"
#include "base/log.h"
#include "base/memory.h"

namespace atl::bench {
namespace {

// Besides the time that it measures for.
constexpr std::chrono::seconds kFioStartTimeout{20};

size_t free_huge_page_bytes() {
  std::ifstream in("/proc/meminfo");
  unsigned long long pages = 0, kib = 0;
  for (std::string line; std::getline(in, line);) {
    (void)std::sscanf(line.c_str(), "HugePages_Free: %llu", &pages);
    (void)std::sscanf(line.c_str(), "Hugepagesize: %llu kB", &kib);
  }
  return static_cast<size_t>(pages * kib * 1024);
}

// fio takes colons for the end of a name.
std::string names(const std::vector<std::filesystem::path>& files) {
  std::string joined;
  for (const std::filesystem::path& file : files) {
    if (!joined.empty()) joined += ':';
    for (const char c : file.string()) joined += c == ':' ? "\\:" : std::string(1, c);
  }
  return joined;
}

std::optional<double> parse_rate(const std::string& output) {
  const size_t begin = output.find('{');
  if (begin == output.npos) return std::nullopt;
  const auto report = nlohmann::json::parse(output.substr(begin), nullptr, false);
  if (report.is_discarded() || !report.contains("jobs") || report["jobs"].empty()) {
    return std::nullopt;
  }
  const auto& job = report["jobs"][0];
  if (job.value("error", 1) != 0 || !job.contains("read")) return std::nullopt;
  const double rate = job["read"].value("bw_bytes", 0.0);
  if (rate <= 0) return std::nullopt;
  return rate;
}

}  // namespace

std::string find_fio() {
  const char* path = std::getenv("PATH");
  std::istringstream directories(path == nullptr ? "" : path);
  for (std::string directory; std::getline(directories, directory, ':');) {
    const std::string program = directory + "/fio";
    if (::access(program.c_str(), X_OK) == 0) return program;
  }
  return "";
}

std::optional<FioRate> measure_fio(const std::string& fio,
                                   const std::vector<std::filesystem::path>& files,
                                   size_t block_bytes, int depth, double seconds) {
  FioRate rate;
  // fio asks for one page more than its buffers fill.
  const size_t memory = block_bytes * static_cast<size_t>(depth) + 2 * kHugePageBytes;
  rate.huge_pages = free_huge_page_bytes() >= memory;
  ChildOptions child{
      .argv = {fio, "--name=atoll", "--filename=" + names(files), "--readonly", "--direct=1",
               "--rw=randread", "--ioengine=io_uring", fmt::format("--bs={}", block_bytes),
               fmt::format("--iodepth={}", depth), fmt::format("--runtime={:.0f}ms", 1e3 * seconds),
               "--time_based", "--output-format=json",
               rate.huge_pages ? "--iomem=mmaphuge" : "--iomem=malloc"},
      .env = {},
      .name = "fio",
      .pipe_stdout = true};
  ChildProcess process = ChildProcess::start(child);
  const auto timeout =
      kFioStartTimeout + std::chrono::milliseconds(static_cast<int64_t>(1e3 * seconds));
  std::string output;
  for (;;) {
    const Result<std::string> line = process.read_line(timeout);
    if (!line) break;
    output += *line + "\n";
  }
  (void)process.wait(timeout);
  const std::optional<double> found = parse_rate(output);
  if (!found) {
    log_warn("fio gave no rate for blocks of {} bytes and depth {}: it is left out", block_bytes,
             depth);
    return std::nullopt;
  }
  rate.bytes_per_second = *found;
  return rate;
}

}  // namespace atl::bench
