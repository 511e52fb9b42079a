#include "cli/plan_report.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "base/units.h"
#include "cli/table.h"

namespace atl::cli {
namespace {

using topology::NodePlan;
using topology::NodeTime;
using topology::Plan;
using topology::PlanRequest;
using topology::StepTime;
using Json = nlohmann::ordered_json;

constexpr size_t kColumns = 80;
constexpr int kBarColumns = 32;

// Breaks a line between words; what follows is indented.
std::string wrapped(const std::string& first, std::string_view text) {
  std::string result, line = first;
  const std::string indent(first.size(), ' ');
  bool has_word = false;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find(' ', begin), text.size());
    const std::string_view word = text.substr(begin, end - begin);
    if (has_word && line.size() + 1 + word.size() > kColumns) {
      result += line + "\n";
      line = indent;
      has_word = false;
    }
    if (has_word) line += ' ';
    line += word;
    has_word = true;
    begin = end + 1;
  }
  return result + line + "\n";
}

std::string ms(double seconds) { return fmt::format("{:.3g}", seconds * 1e3); }

std::string short_name(const std::string& name) {
  constexpr size_t kMax = 14;
  return name.size() <= kMax ? name : name.substr(0, kMax - 1) + "~";
}

std::string node_table(const PlanReport& report) {
  const Plan& plan = report.plan;
  Table table({{"node"},
               {"tiles", Align::kRight},
               {"standby", Align::kRight},
               {"RAM", Align::kRight},
               {"in RAM", Align::kRight},
               {"hits", Align::kRight},
               {"to load", Align::kRight},
               {"ms/layer", Align::kRight}});
  for (size_t n = 0; n < plan.nodes.size(); ++n) {
    const NodePlan& node = plan.nodes[n];
    const bool timed = n < plan.predicted.aim.nodes.size();
    table.add_row({short_name(node.name), std::to_string(node.share.tiles),
                   std::to_string(node.share.standby), format_bytes(node.ram_bytes),
                   fmt::format("{:.0f} %", 100 * node.share.resident),
                   fmt::format("{:.0f} %", 100 * node.hit_rate), format_bytes(node.read_bytes),
                   timed ? ms(plan.predicted.aim.nodes[n].all) : "-"});
  }
  return table.to_string("  ");
}

// How long each node takes for its part of a layer: reading, computing, waiting for the network.
std::string bars(const PlanReport& report) {
  const std::vector<NodeTime>& times = report.plan.predicted.aim.nodes;
  double longest = 0;
  for (const NodeTime& time : times) longest = std::max(longest, time.all);
  if (longest == 0) return "";
  std::string text =
      "\na layer's experts, slowest node = whole bar (r reads, # computes, . network)\n";
  for (size_t n = 0; n < times.size(); ++n) {
    const NodeTime& time = times[n];
    const auto columns = [&](double seconds) {
      return static_cast<int>(std::lround(kBarColumns * seconds / longest));
    };
    const int all = columns(time.all), network = std::min(all, columns(time.network));
    const char busy = time.drive > time.compute ? 'r' : '#';
    text += fmt::format("  {:<14} |{}{}{}| {} ms\n", short_name(report.plan.nodes[n].name),
                        std::string(static_cast<size_t>(all - network), busy),
                        std::string(static_cast<size_t>(network), '.'),
                        std::string(static_cast<size_t>(kBarColumns - all), ' '), ms(time.all));
  }
  return text;
}

std::string step_table(const PlanReport& report) {
  const StepTime& step = report.plan.predicted.aim;
  const topology::ModelShape& model = report.request.cluster.model;
  Table table({{"part of a step"},
               {"ms/layer", Align::kRight},
               {"ms/step", Align::kRight},
               {"share", Align::kRight}});
  const auto add = [&](const char* name, double seconds, int layers) {
    table.add_row({name, layers > 0 ? ms(seconds / layers) : "-", ms(seconds),
                   fmt::format("{:.0f} %", 100 * seconds / step.total)});
  };
  add("attention: projections", step.projections, model.layers());
  add("attention: kv_b by head", step.absorbed, model.layers());
  add("attention: core", step.core, model.layers());
  add("router", step.router, model.moe_layers);
  add("shared experts", step.shared, model.moe_layers);
  add("experts, waited for", step.experts, model.moe_layers);
  add("adding up", step.add_up, model.moe_layers);
  add("dense layers", step.dense, model.dense_layers);
  add("head", step.head, 0);
  add("around", step.overhead, model.layers());
  table.add_rule();
  add("step", step.total, 0);
  return table.to_string("  ");
}

std::string decode_lines(const Plan& plan, const Plan* base) {
  Table table({{"sequences", Align::kRight},
               {"tokens/s", Align::kRight},
               {"of each", Align::kRight},
               {base ? "without" : "", Align::kRight}});
  for (size_t i = 0; i < plan.predicted.decode.size(); ++i) {
    const topology::DecodeRate& rate = plan.predicted.decode[i];
    const bool compare = base && i < base->predicted.decode.size();
    table.add_row(
        {std::to_string(rate.sequences), fmt::format("{:.3g}", rate.tokens_per_second),
         fmt::format("{:.3g}", rate.tokens_per_second / rate.sequences),
         compare ? fmt::format("{:.3g}", base->predicted.decode[i].tokens_per_second) : ""});
  }
  return table.to_string("  ");
}

std::string verdict(const PlanReport& report) {
  const Plan& plan = report.plan;
  if (plan.fits) return "";
  std::string text = wrapped("does not fit: ", plan.why_not);
  if (plan.ways.empty()) return text + "nothing smaller makes it possible\n";
  for (size_t i = 0; i < plan.ways.size(); ++i) {
    text += wrapped(i == 0 ? "  what would do: " : "             or: ", plan.ways[i]);
  }
  return text;
}

Json step_json(const StepTime& step) {
  return {{"projections", step.projections},
          {"absorbed", step.absorbed},
          {"core", step.core},
          {"router", step.router},
          {"shared_experts", step.shared},
          {"experts", step.experts},
          {"add_up", step.add_up},
          {"dense_ffn", step.dense},
          {"head", step.head},
          {"overhead", step.overhead},
          {"total", step.total}};
}

// Of one layer; parts that it doesn't have are 0.
Json layer_json(const StepTime& step, const topology::ModelShape& model) {
  const auto per = [](double seconds, int layers) { return layers > 0 ? seconds / layers : 0; };
  const int all = model.layers(), moe = model.moe_layers;
  return {{"projections", per(step.projections, all)},
          {"absorbed", per(step.absorbed, all)},
          {"core", per(step.core, all)},
          {"router", per(step.router, moe)},
          {"shared_experts", per(step.shared, moe)},
          {"experts", per(step.experts, moe)},
          {"add_up", per(step.add_up, moe)},
          {"dense_ffn", per(step.dense, model.dense_layers)}};
}

Json predicted_json(const Plan& plan, const topology::ModelShape& model) {
  Json decode = Json::array();
  for (const topology::DecodeRate& rate : plan.predicted.decode) {
    decode.push_back(
        {{"sequences", rate.sequences}, {"tokens_per_second", rate.tokens_per_second}});
  }
  return {{"decode", decode},
          {"prefill_tokens_per_second", plan.predicted.prefill_tokens_per_second},
          {"first_token_seconds", plan.predicted.first_token_seconds},
          {"load_seconds", plan.predicted.load_seconds},
          {"hit_rate", plan.predicted.aim.hit_rate},
          {"step_seconds", step_json(plan.predicted.aim)},
          {"layer_seconds", layer_json(plan.predicted.aim, model)},
          {"prefill_seconds", step_json(plan.predicted.prefill)}};
}

Json nodes_json(const Plan& plan) {
  Json nodes = Json::array();
  for (size_t n = 0; n < plan.nodes.size(); ++n) {
    const NodePlan& node = plan.nodes[n];
    Json one = {{"name", node.name},
                {"tiles", node.share.tiles},
                {"standby", node.share.standby},
                {"ram_bytes", node.ram_bytes},
                {"resident", node.share.resident},
                {"hit_rate", node.hit_rate},
                {"read_bytes", node.read_bytes}};
    if (n < plan.predicted.aim.nodes.size()) {
      const NodeTime& time = plan.predicted.aim.nodes[n];
      one["layer_seconds"] = {{"compute", time.compute},
                              {"drive", time.drive},
                              {"network", time.network},
                              {"all", time.all}};
    }
    nodes.push_back(one);
  }
  return nodes;
}

}  // namespace

std::string plan_text(const PlanReport& report) {
  const Plan& plan = report.plan;
  const PlanRequest& request = report.request;
  std::string text = verdict(report);
  const topology::ModelShape& model = request.cluster.model;
  text += fmt::format("{}{} nodes, {} tiles of each expert, redundancy {}\n\n",
                      text.empty() ? "" : "\n", request.cluster.local_node ? 0 : plan.nodes.size(),
                      model.num_tiles, request.redundancy);
  text += node_table(report);
  text +=
      wrapped("\ncoordinator: ",
              fmt::format("{} of RAM{}", format_bytes(plan.coordinator_bytes),
                          plan.device_bytes > 0
                              ? fmt::format(", {} of {}'s memory", format_bytes(plan.device_bytes),
                                            request.cluster.coordinator.device_name)
                              : ", computes on its CPU"));
  if (!plan.device_note.empty()) text += wrapped("  ", plan.device_note);
  if (plan.fits) {
    text += bars(report);
    text += fmt::format("\na step of {:.0f} sequence{} of {:.0f} tokens\n\n",
                        topology::aim_rows(request).rows,
                        topology::aim_rows(request).rows == 1 ? "" : "s", request.context);
    text += step_table(report) + "\n";
    text += decode_lines(plan, report.base ? &*report.base : nullptr);
    text += fmt::format("\nprompt of {:.0f} tokens: {:.3g} tokens/s, first token after {}\n",
                        request.prompt, plan.predicted.prefill_tokens_per_second,
                        format_duration(plan.predicted.first_token_seconds));
    text += fmt::format("load: {}\n", format_duration(plan.predicted.load_seconds));
    text += wrapped("bottleneck: ", fmt::format("{}, {:.0f} % of a step", plan.bottleneck,
                                                100 * plan.bottleneck_share));
    for (const topology::Change& change : plan.changes) {
      text += wrapped("  helps: ", fmt::format("{}: {:.3g} -> {:.3g} tokens/s", change.what,
                                               change.before, change.after));
    }
  }
  for (const std::string& what : report.what_if) text += wrapped("what if: ", what);
  for (const std::string& what : report.assumed) text += wrapped("assumed: ", what);
  return text;
}

std::string plan_json(const PlanReport& report) {
  const Plan& plan = report.plan;
  const topology::ModelShape& model = report.request.cluster.model;
  Json changes = Json::array();
  for (const topology::Change& change : plan.changes) {
    changes.push_back({{"change", change.what},
                       {"tokens_per_second_before", change.before},
                       {"tokens_per_second_after", change.after}});
  }
  Json json = {
      {"fits", plan.fits},
      {"why_not", plan.fits ? Json(nullptr) : Json(plan.why_not)},
      {"ways", plan.ways},
      {"bottleneck", plan.fits ? Json(plan.bottleneck) : Json(nullptr)},
      {"bottleneck_share", plan.bottleneck_share},
      {"changes", changes},
      {"groups", plan.groups},
      {"chunk", plan.rows_max},
      {"redundancy", report.request.redundancy},
      {"tiles_per_expert", model.num_tiles},
      {"sequences", report.request.sequences},
      {"context", report.request.context},
      {"nodes", nodes_json(plan)},
      {"coordinator",
       {{"ram_bytes", plan.coordinator_bytes},
        {"device_bytes", plan.device_bytes},
        {"kv_cache_bytes", model.kv_cache_bytes},
        {"device_note", plan.device_note.empty() ? Json(nullptr) : Json(plan.device_note)}}},
      {"predicted", predicted_json(plan, model)},
      {"plan_seconds", report.plan_seconds},
      {"what_if", report.what_if},
      {"assumed", report.assumed}};
  if (report.base) {
    json["without_what_if"] = {{"fits", report.base->fits},
                               {"predicted", predicted_json(*report.base, model)}};
  }
  return json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

}  // namespace atl::cli
