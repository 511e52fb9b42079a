// atoll bench serve: load for a running server, and how fast its tokens come. atoll bench compare:
// the same for two servers in turns.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdlib>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "base/one_line.h"
#include "bench/serve_load.h"
#include "cli/bench_report.h"
#include "cli/output.h"
#include "cli/table.h"

namespace atl::cli {
namespace {

using bench::Bystanders;
using bench::LoadCase;
using bench::LoadResult;
using bench::percentile;
using bench::ServeLoad;
using bench::ServeLoadOptions;
using Json = nlohmann::ordered_json;

constexpr double kSecondsOfRate = 30;  // unless the user says how long or how many

struct BenchServeOptions {
  ServeLoadOptions load;
  std::string url;
  std::vector<int64_t> concurrency;
  std::vector<double> rates;
  int64_t requests = 0;
  double seconds = 0;
  int idle_connections = 0, slow_readers = 0;
  bool json = false;
};

struct MeasuredCase {
  LoadCase load;
  LoadResult result;
};

// A row for each concurrency, or for each rate (of which the concurrency is the bound, if given).
std::vector<LoadCase> cases_of(const BenchServeOptions& options) {
  std::vector<LoadCase> cases;
  for (const double rate : options.rates) {
    const int64_t bound = options.concurrency.empty() ? 0 : options.concurrency.front();
    cases.push_back({.concurrency = bound, .rate = rate});
  }
  if (cases.empty()) {
    std::vector<int64_t> concurrency = options.concurrency;
    if (concurrency.empty()) concurrency = {1, 4, 16};
    for (const int64_t n : concurrency) cases.push_back({.concurrency = n});
  }
  for (LoadCase& load : cases) {
    load.requests = options.requests;
    load.seconds = options.seconds;
    if (load.requests > 0 || load.seconds > 0) continue;
    load.requests = load.rate > 0 ? std::max<int64_t>(1, std::llround(load.rate * kSecondsOfRate))
                                  : std::max<int64_t>(8, 4 * load.concurrency);
  }
  return cases;
}

double per_second(int64_t count, const LoadResult& result) {
  return result.seconds > 0 ? static_cast<double>(count) / result.seconds : 0;
}

std::string percentiles_text(const std::vector<double>& seconds) {
  if (seconds.empty()) return "-";
  return fmt::format("{:.1f} / {:.1f} / {:.1f}", percentile(seconds, 0.5) * 1e3,
                     percentile(seconds, 0.9) * 1e3, percentile(seconds, 0.99) * 1e3);
}

Json percentiles_json(const std::vector<double>& seconds) {
  if (seconds.empty()) return nullptr;
  double sum = 0;
  for (const double s : seconds) sum += s;
  return {{"p50", percentile(seconds, 0.5) * 1e3},
          {"p90", percentile(seconds, 0.9) * 1e3},
          {"p99", percentile(seconds, 0.99) * 1e3},
          {"mean", sum * 1e3 / static_cast<double>(seconds.size())},
          {"max", seconds.back() * 1e3}};
}

std::string load_text(const LoadCase& load) {
  if (load.rate <= 0) return fmt::format("{}", load.concurrency);
  const std::string bound =
      load.concurrency > 0 ? fmt::format(", at most {}", load.concurrency) : "";
  return fmt::format("{:g} req/s{}", load.rate, bound);
}

std::string to_text(const BenchServeOptions& options, const std::string& model,
                    const std::vector<MeasuredCase>& cases) {
  Table table({{options.rates.empty() ? "concurrency" : "rate", Align::kRight},
               {"ok", Align::kRight},
               {"refused", Align::kRight},
               {"failed", Align::kRight},
               {"s", Align::kRight},
               {"req/s", Align::kRight},
               {"tokens/s", Align::kRight},
               {"TTFT ms", Align::kRight},
               {"TPOT ms", Align::kRight},
               {"ITL ms", Align::kRight},
               {"goodput/s", Align::kRight}});
  std::string notes;
  for (const auto& [load, result] : cases) {
    table.add_row({load_text(load), std::to_string(result.ok), std::to_string(result.refused),
                   std::to_string(result.failed), fmt::format("{:.2f}", result.seconds),
                   fmt::format("{:.2f}", per_second(result.ok, result)),
                   fmt::format("{:.1f}", per_second(result.output_tokens, result)),
                   percentiles_text(result.ttft), percentiles_text(result.tpot),
                   percentiles_text(result.itl),
                   fmt::format("{:.2f}", per_second(result.within_slo, result))});
    if (!result.first_failure.empty()) {
      notes +=
          fmt::format("{}: first failure: {}\n", load_text(load), one_line(result.first_failure));
    }
    if (result.other_length > 0) {
      notes += fmt::format("{}: {} answers are not {} tokens long\n", load_text(load),
                           result.other_length, options.load.output_tokens);
    }
  }
  return fmt::format("{}, {} prompt tokens{}, {} output tokens; times p50 / p90 / p99\n",
                     one_line(model), options.load.prompt_tokens,
                     options.load.shared_prefix > 0
                         ? fmt::format(" ({} of them shared)", options.load.shared_prefix)
                         : "",
                     options.load.output_tokens) +
         table.to_string("") + notes;
}

Json case_json(const MeasuredCase& measured) {
  const LoadResult& result = measured.result;
  Json json = {{"concurrency", nullptr}, {"rate", nullptr}};
  if (measured.load.concurrency > 0) json["concurrency"] = measured.load.concurrency;
  if (measured.load.rate > 0) json["rate"] = measured.load.rate;
  json.update({{"ok", result.ok},
               {"refused", result.refused},
               {"failed", result.failed},
               {"other_length", result.other_length},
               {"seconds", result.seconds},
               {"requests_per_second", per_second(result.ok, result)},
               {"output_tokens_per_second", per_second(result.output_tokens, result)},
               {"prompt_tokens", result.prompt_tokens},
               {"cached_tokens", result.cached_tokens},
               {"output_tokens", result.output_tokens},
               {"ttft_ms", percentiles_json(result.ttft)},
               {"tpot_ms", percentiles_json(result.tpot)},
               {"itl_ms", percentiles_json(result.itl)},
               {"goodput_per_second", per_second(result.within_slo, result)}});
  if (!result.first_failure.empty()) json["first_failure"] = result.first_failure;
  return json;
}

Json to_json(const BenchServeOptions& options, const std::string& model,
             const std::vector<MeasuredCase>& cases, int bystanders_closed) {
  Json list = Json::array();
  for (const MeasuredCase& measured : cases) list.push_back(case_json(measured));
  return {{"url", options.url},
          {"model", model},
          {"prompt_tokens", options.load.prompt_tokens},
          {"shared_prefix", options.load.shared_prefix},
          {"output_tokens", options.load.output_tokens},
          {"seed", options.load.seed},
          {"slo", {{"ttft_ms", options.load.slo_ttft_ms}, {"tpot_ms", options.load.slo_tpot_ms}}},
          {"idle_connections", options.idle_connections},
          {"slow_readers", options.slow_readers},
          {"bystanders_closed", bystanders_closed},
          {"cases", list}};
}

http::HttpUrl parsed_url(const std::string& text) {
  auto url = http::parse_http_url(text);
  if (!url) throw LoadError(url.error().message);
  return *url;
}

// 1 if nothing was answered: a script should notice.
int run_bench_serve(BenchServeOptions options) {
  options.load.url = parsed_url(options.url);
  if (options.load.shared_prefix > options.load.prompt_tokens) {
    throw LoadError(fmt::format("--shared-prefix {} is more than --prompt-tokens {}",
                                options.load.shared_prefix, options.load.prompt_tokens));
  }
  if (const char* key = std::getenv("ATOLL_API_KEY"); key && options.load.api_key.empty()) {
    options.load.api_key = key;
  }
  std::optional<Bystanders> bystanders;
  if (options.idle_connections + options.slow_readers > 0) {
    bystanders.emplace(options.load.url, options.idle_connections, options.slow_readers);
  }
  ServeLoad load(options.load);
  std::vector<MeasuredCase> cases;
  int64_t ok = 0;
  for (const LoadCase& one : cases_of(options)) {
    cases.push_back({one, load.run(one)});
    ok += cases.back().result.ok;
  }
  const int closed = bystanders ? bystanders->closed() : 0;
  std::string text = options.json ? to_json(options, load.model(), cases, closed).dump(2) + "\n"
                                  : to_text(options, load.model(), cases);
  if (!options.json && bystanders) {
    text += fmt::format("beside: {} idle connections, {} slow readers; closed by the server: {}\n",
                        options.idle_connections, options.slow_readers, closed);
  }
  write_stdout(text);
  return ok > 0 ? 0 : 1;
}

void add_load_options(CLI::App& command, BenchServeOptions* options) {
  add_list_option(command, "--concurrency", "Requests under way at once; 1,4,16 unless given", 1,
                  10000, &options->concurrency);
  command
      .add_option("--rate", options->rates,
                  "Instead: requests/s that come at random times, whatever the server does; "
                  "--concurrency bounds them if given")
      ->delimiter(',')
      ->check(CLI::Range(1e-3, 1e5));
  command
      .add_option("--requests", options->requests,
                  "Of each row; 4 for each of the concurrency and at least 8, or 30 s of the rate")
      ->check(CLI::Range(int64_t{1}, int64_t{10'000'000}));
  command.add_option("--seconds", options->seconds, "Instead: start requests for this long")
      ->check(CLI::Range(0.1, 1e6))
      ->excludes("--requests");
  command.add_option("--idle-connections", options->idle_connections, "Beside the load")
      ->check(CLI::Range(0, 100'000));
  command
      .add_option("--slow-readers", options->slow_readers,
                  "Beside the load: connections that ask for /metrics and hardly read it")
      ->check(CLI::Range(0, 100'000));
}

void add_request_options(CLI::App& command, ServeLoadOptions* load) {
  const CLI::Range tokens(int64_t{1}, int64_t{1} << 24);
  command.add_option("--prompt-tokens", load->prompt_tokens, "Of each request")
      ->check(tokens)
      ->capture_default_str();
  command.add_option("--output-tokens", load->output_tokens, "Of each request")
      ->check(tokens)
      ->capture_default_str();
  command
      .add_option("--shared-prefix", load->shared_prefix,
                  "Tokens that all prompts begin with; the others are random")
      ->check(CLI::Range(int64_t{0}, int64_t{1} << 24));
  command
      .add_option("--vocab", load->vocab,
                  "Prompts are of ids below this; unless given, of ids from /tokenize")
      ->check(CLI::Range(8, 1 << 24));
  command.add_option("--model", load->model, "Unless given, the first of /v1/models");
  command.add_option("--api-key", load->api_key, "Unless given, ATOLL_API_KEY's value, if any");
  command.add_option("--slo-ttft", load->slo_ttft_ms, "Goodput counts first tokens within this")
      ->check(CLI::PositiveNumber)
      ->type_name("MS");
  command
      .add_option("--slo-tpot", load->slo_tpot_ms,
                  "Goodput counts requests with at most this per further token")
      ->check(CLI::PositiveNumber)
      ->type_name("MS");
  command.add_option("--seed", load->seed, "Of prompts and arrival times")->capture_default_str();
}

struct CompareOptions {
  ServeLoadOptions load;
  std::string first, second;
  std::string second_model, second_key;
  std::vector<int64_t> concurrency{1, 4, 16};
  int64_t requests = 0;
  int rounds = 3;
  bool json = false;
};

// What is compared: a figure of each round, the larger or the smaller the better.
struct Figure {
  const char* name;
  const char* key;
  bool larger_is_better;
  std::optional<double> (*of)(const LoadResult&);
};
template <std::vector<double> LoadResult::*times, int percent>
std::optional<double> milliseconds(const LoadResult& result) {
  if ((result.*times).empty()) return std::nullopt;
  return percentile(result.*times, percent / 100.0) * 1e3;
}
constexpr std::array<Figure, 5> kFigures = {{
    {"tokens/s", "output_tokens_per_second", true,
     [](const LoadResult& r) -> std::optional<double> {
       if (r.ok == 0) return std::nullopt;
       return per_second(r.output_tokens, r);
     }},
    {"TTFT p50 ms", "ttft_ms_p50", false, milliseconds<&LoadResult::ttft, 50>},
    {"TTFT p99 ms", "ttft_ms_p99", false, milliseconds<&LoadResult::ttft, 99>},
    {"ITL p50 ms", "itl_ms_p50", false, milliseconds<&LoadResult::itl, 50>},
    {"ITL p99 ms", "itl_ms_p99", false, milliseconds<&LoadResult::itl, 99>},
}};

// One concurrency: the rounds of both servers.
struct ComparedCase {
  int64_t concurrency = 0;
  std::vector<LoadResult> first, second;
};

// How many times as good the first server was, of the rounds in which both have the figure: each
// round's ratio, so that a slow minute of the machine is in both.
struct Comparison {
  std::vector<double> first, second, ratio;
};
Comparison compare(const Figure& figure, const ComparedCase& one) {
  Comparison result;
  for (size_t round = 0; round < one.first.size(); ++round) {
    const auto a = figure.of(one.first[round]), b = figure.of(one.second[round]);
    if (a) result.first.push_back(*a);
    if (b) result.second.push_back(*b);
    if (a && b && *a > 0 && *b > 0) {
      result.ratio.push_back(figure.larger_is_better ? *a / *b : *b / *a);
    }
  }
  return result;
}

std::string compare_text(const std::vector<ComparedCase>& cases) {
  Table table({{"concurrency", Align::kRight},
               {"figure"},
               {"first", Align::kRight},
               {"second", Align::kRight},
               {"first better by", Align::kRight},
               {"spread", Align::kRight}});
  std::string notes;
  for (const ComparedCase& one : cases) {
    for (const Figure& figure : kFigures) {
      const Comparison c = compare(figure, one);
      table.add_row({std::to_string(one.concurrency), figure.name, median_text(c.first, "{:.4g}"),
                     median_text(c.second, "{:.4g}"), median_text(c.ratio, "{:.2f}"),
                     spread_text(c.ratio)});
    }
    for (const auto* results : {&one.first, &one.second}) {
      for (const LoadResult& result : *results) {
        if (result.first_failure.empty()) continue;
        notes += fmt::format("{}, {} server: {} failed, first: {}\n", one.concurrency,
                             results == &one.first ? "first" : "second",
                             result.failed + result.refused, one_line(result.first_failure));
        break;
      }
    }
  }
  return table.to_string("") + notes;
}

Json compare_json(const std::vector<ComparedCase>& cases) {
  Json list = Json::array();
  for (const ComparedCase& one : cases) {
    Json json = {{"concurrency", one.concurrency}};
    for (const Figure& figure : kFigures) {
      const Comparison c = compare(figure, one);
      json[figure.key] = {{"first", summary_json<Json>(c.first)},
                          {"second", summary_json<Json>(c.second)},
                          {"first_better_by", summary_json<Json>(c.ratio)}};
    }
    const auto failed = [](const std::vector<LoadResult>& results) {
      int64_t count = 0;
      for (const LoadResult& result : results) count += result.failed + result.refused;
      return count;
    };
    json["failed"] = {{"first", failed(one.first)}, {"second", failed(one.second)}};
    list.push_back(std::move(json));
  }
  return list;
}

// 1 if one of the servers answered nothing.
int run_bench_compare(CompareOptions options) {
  if (const char* key = std::getenv("ATOLL_API_KEY"); key && options.load.api_key.empty()) {
    options.load.api_key = key;
  }
  ServeLoadOptions peer = options.load;
  options.load.url = parsed_url(options.first);
  peer.url = parsed_url(options.second);
  peer.model = options.second_model;
  if (!options.second_key.empty()) peer.api_key = options.second_key;
  ServeLoad first(options.load), second(peer);
  std::vector<ComparedCase> cases;
  int64_t first_ok = 0, second_ok = 0;
  for (const int64_t concurrency : options.concurrency) {
    const int64_t requests =
        options.requests > 0 ? options.requests : std::max<int64_t>(8, 4 * concurrency);
    const LoadCase load{.concurrency = concurrency, .requests = requests};
    ComparedCase one{concurrency, {}, {}};
    for (int round = 0; round < options.rounds; ++round) {
      one.first.push_back(first.run(load));
      one.second.push_back(second.run(load));
      first_ok += one.first.back().ok;
      second_ok += one.second.back().ok;
    }
    cases.push_back(std::move(one));
  }
  if (options.json) {
    const Json json = {{"first", {{"url", options.first}, {"model", first.model()}}},
                       {"second", {{"url", options.second}, {"model", second.model()}}},
                       {"prompt_tokens", options.load.prompt_tokens},
                       {"output_tokens", options.load.output_tokens},
                       {"rounds", options.rounds},
                       {"cases", compare_json(cases)}};
    write_stdout(json.dump(2) + "\n");
  } else {
    write_stdout(
        fmt::format(
            "first: {} at {}\nsecond: {} at {}\n{} prompt tokens, {} output tokens; medians "
            "of {} rounds in turns\n",
            one_line(first.model()), options.first, one_line(second.model()), options.second,
            options.load.prompt_tokens, options.load.output_tokens, options.rounds) +
        compare_text(cases));
  }
  return first_ok > 0 && second_ok > 0 ? 0 : 1;
}

}  // namespace

void add_bench_serve_command(CLI::App& bench, int* exit_code) {
  auto options = std::make_shared<BenchServeOptions>();
  CLI::App* command = bench.add_subcommand(
      "serve", "Load for a running server: tokens/s, time to first token, time per token, goodput");
  command->add_option("URL", options->url, "http://HOST:PORT of any OpenAI-compatible server")
      ->required();
  add_load_options(*command, options.get());
  add_request_options(*command, &options->load);
  command->add_flag("--json", options->json, "One JSON object in place of the table");
  command->footer(
      "TTFT: time to the first token. TPOT: time per further token of a request. ITL: time\n"
      "between two events of a stream. Goodput: requests per second within --slo-ttft and "
      "--slo-tpot.\n\n"
      "Example:\n  atoll bench serve http://127.0.0.1:8080 --concurrency 1,16 --output-tokens 32");
  command->callback([options, exit_code] { *exit_code = run_bench_serve(*options); });
}

void add_bench_compare_command(CLI::App& bench, int* exit_code) {
  auto options = std::make_shared<CompareOptions>();
  CLI::App* command =
      bench.add_subcommand("compare", "The same load for two running servers, in turns: ratios");
  command->add_option("FIRST", options->first, "http://HOST:PORT of any OpenAI-compatible server")
      ->required();
  command->add_option("SECOND", options->second, "Likewise: what it is compared with")->required();
  add_list_option(*command, "--concurrency", "Requests under way at once", 1, 10000,
                  &options->concurrency);
  command
      ->add_option("--requests", options->requests,
                   "Of each row and round; 4 for each of the concurrency and at least 8")
      ->check(CLI::Range(int64_t{1}, int64_t{10'000'000}));
  command->add_option("--rounds", options->rounds, "Of each row, first and second in turns")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  add_request_options(*command, &options->load);
  command->add_option("--second-model", options->second_model,
                      "Of the second server; unless given, the first of its /v1/models");
  command->add_option("--second-api-key", options->second_key,
                      "Of the second server, if it is another");
  command->add_flag("--json", options->json, "One JSON object in place of the table");
  command->footer(
      "\"First better by\" is more than 1 where the first server is better: more tokens per "
      "second, or\nless time. The medians are of each round's ratio.\n\n"
      "Example:\n  atoll bench compare http://127.0.0.1:8080 http://127.0.0.1:8081 --vocab 3000 "
      "--rounds 5");
  command->callback([options, exit_code] { *exit_code = run_bench_compare(*options); });
}

}  // namespace atl::cli
