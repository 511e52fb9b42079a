// The page of `atoll experts plot`: SVG drawn here, no script, nothing from elsewhere.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <iterator>
#include <numeric>
#include <string>
#include <vector>

#include "cli/experts_file.h"

namespace atl::cli {
namespace {

using Layer = ExpertsFile::Layer;

constexpr int kShades = 24;
constexpr double kHeatTop = 4;  // times the layer's mean: the darkest shade

std::string escaped(std::string_view text) {
  std::string out;
  for (const char c : text) {
    switch (c) {
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '&':
        out += "&amp;";
        break;
      case '"':
        out += "&quot;";
        break;
      default:
        out += static_cast<unsigned char>(c) < 0x20 ? ' ' : c;
    }
  }
  return out;
}

// From nearly white to dark blue.
std::string shade(int level) {
  constexpr std::array<std::array<double, 3>, 4> kStops = {
      {{240, 244, 248}, {158, 202, 233}, {33, 113, 181}, {4, 30, 74}}};
  const double at = 3.0 * level / (kShades - 1);
  const auto from = std::min<size_t>(2, static_cast<size_t>(at));
  const double part = at - static_cast<double>(from);
  std::array<int, 3> rgb{};
  for (size_t i = 0; i < 3; ++i) {
    rgb[i] = static_cast<int>(kStops[from][i] + part * (kStops[from + 1][i] - kStops[from][i]));
  }
  return fmt::format("#{:02x}{:02x}{:02x}", rgb[0], rgb[1], rgb[2]);
}

// A line for each row of values, a column for each value; values of 0 to 1. Cells of a shade are
// one path, so that 15 thousand cells stay 200 KB.
std::string heat_map(const std::vector<std::vector<double>>& rows,
                     const std::vector<int64_t>& names) {
  size_t columns = 1;
  for (const auto& row : rows) columns = std::max(columns, row.size());
  std::array<std::string, kShades> paths;
  for (size_t y = 0; y < rows.size(); ++y) {
    for (size_t x = 0; x < rows[y].size(); ++x) {
      const auto level = std::clamp(static_cast<int>(rows[y][x] * kShades), 0, kShades - 1);
      fmt::format_to(std::back_inserter(paths[static_cast<size_t>(level)]), "M{} {}h1v1h-1z", x, y);
    }
  }
  const double cell = std::clamp(960.0 / static_cast<double>(columns), 3.0, 18.0);
  const double height = std::max(8.0, cell);
  std::string svg = fmt::format(
      "<svg viewBox=\"-40 0 {:.0f} {:.0f}\" role=\"img\"><g transform=\"scale({:.3f} {:.3f})\">",
      cell * static_cast<double>(columns) + 44, height * static_cast<double>(rows.size()) + 4, cell,
      height);
  for (int level = 0; level < kShades; ++level) {
    const std::string& path = paths[static_cast<size_t>(level)];
    if (!path.empty()) svg += fmt::format("<path fill=\"{}\" d=\"{}\"/>", shade(level), path);
  }
  svg += "</g>";
  const size_t step = std::max<size_t>(1, (rows.size() + 19) / 20);
  for (size_t y = 0; y < rows.size(); y += step) {
    svg += fmt::format("<text x=\"-6\" y=\"{:.1f}\" text-anchor=\"end\">{}</text>",
                       (static_cast<double>(y) + 0.8) * height, names[y]);
  }
  return svg + "</svg>\n";
}

double sum(const std::vector<double>& values) {
  return std::accumulate(values.begin(), values.end(), 0.0);
}

// The tenth of the experts that is used most: their share of the layer's uses.
double share_of_top_tenth(const Layer& layer) {
  std::vector<double> uses = layer.uses;
  std::sort(uses.begin(), uses.end(), std::greater<>());
  const double all = sum(uses);
  uses.resize(std::max<size_t>(1, (uses.size() + 5) / 10));
  return all > 0 ? sum(uses) / all : 0;
}

double max_over_mean(const Layer& layer) {
  const double all = sum(layer.uses);
  if (all == 0) return 0;
  return *std::max_element(layer.uses.begin(), layer.uses.end()) *
         static_cast<double>(layer.uses.size()) / all;
}

double ratio(uint64_t a, uint64_t b) {
  return b == 0 ? 0 : static_cast<double>(a) / static_cast<double>(b);
}

std::string load_section(const ExpertsFile& file) {
  std::vector<std::vector<double>> rows;
  std::vector<int64_t> names;
  for (const Layer& layer : file.layers) {
    const double mean = sum(layer.uses) / static_cast<double>(layer.uses.size());
    std::vector<double>& row = rows.emplace_back();
    for (const double uses : layer.uses) row.push_back(mean > 0 ? uses / mean / kHeatTop : 0);
    names.push_back(layer.layer);
  }
  return fmt::format(
             "<h2>Load</h2><p>A line for each layer, a column for each expert: rows that chose it, "
             "from 0 (light) to {:.0f} times the layer's mean and more (dark).</p>\n",
             kHeatTop) +
         heat_map(rows, names);
}

std::string polyline(const std::vector<double>& ys, const char* style) {
  std::string points;
  for (size_t i = 0; i < ys.size(); ++i) {
    points += fmt::format("{:.1f},{:.1f} ", 600.0 * static_cast<double>(i) / (ys.size() - 1.0),
                          240 - 240 * ys[i]);
  }
  return fmt::format("<polyline fill=\"none\" {} points=\"{}\"/>", style, points);
}

std::string cache_section(const ExpertsFile& file) {
  constexpr int kPoints = 100;
  std::vector<double> all, last, alike;
  const bool has_last = file.windows.size() > 1;
  for (int i = 0; i <= kPoints; ++i) {
    const double share = static_cast<double>(i) / kPoints;
    alike.push_back(share);
    all.push_back(hit_rate(file.layers, file.layers, share));
    if (has_last) last.push_back(hit_rate(file.layers, file.windows.back().layers, share));
  }
  std::string text =
      "<h2>Hit rate against the size of the cache</h2><p>Share of all uses that find their expert "
      "in RAM, if RAM holds those used most: solid, over the whole time; dashed, the last window "
      "with what the whole time would keep; thin, if all experts were alike. What decays or is "
      "read ahead is not in it.</p>\n"
      "<svg viewBox=\"-50 -10 700 290\" role=\"img\">";
  for (int i = 0; i <= 4; ++i) {
    text += fmt::format(
        "<path stroke=\"#ccd2d8\" d=\"M0 {0}H600M{1} 0V240\"/><text x=\"-6\" y=\"{2}\" "
        "text-anchor=\"end\">{3} %</text><text x=\"{1}\" y=\"256\" text-anchor=\"middle\">{4} "
        "%</text>",
        60 * i, 150 * i, 60 * i + 4, 100 - 25 * i, 25 * i);
  }
  text += polyline(alike, "stroke=\"#98a4ae\"");
  text += polyline(all, "stroke=\"#1f6fb2\" stroke-width=\"2\"");
  if (has_last) text += polyline(last, "stroke=\"#b3261e\" stroke-dasharray=\"5 4\"");
  text += "<text x=\"300\" y=\"274\" text-anchor=\"middle\">experts in RAM</text></svg>\n<table>";
  text += "<tr><th>experts in RAM</th><th>hit rate</th><th>if all were alike</th></tr>";
  for (const int percent : {10, 25, 50, 75, 90}) {
    text += fmt::format("<tr><td>{} %</td><td>{:.1f} %</td><td>{} %</td></tr>", percent,
                        100 * all[static_cast<size_t>(percent)], percent);
  }
  return text + "</table>\n";
}

std::string layer_section(const ExpertsFile& file) {
  std::string text =
      "<h2>Skew</h2><table><tr><th>layer</th><th>busiest / mean</th><th>of the busiest tenth</th>"
      "<th>experts never used</th><th>rows a step</th><th>distinct experts a step</th>"
      "<th>of steps up to 16 rows: rows</th><th>distinct</th></tr>\n";
  for (const Layer& layer : file.layers) {
    text += fmt::format(
        "<tr><td>{}</td><td>{:.2f}</td><td>{:.1f} %</td><td>{}</td><td>{:.1f}</td><td>{:.1f}</td>"
        "<td>{:.1f}</td><td>{:.1f}</td></tr>\n",
        layer.layer, max_over_mean(layer), 100 * share_of_top_tenth(layer),
        std::count(layer.uses.begin(), layer.uses.end(), 0.0), ratio(layer.rows, layer.steps),
        ratio(layer.distinct, layer.steps), ratio(layer.small_rows, layer.small_steps),
        ratio(layer.small_distinct, layer.small_steps));
  }
  return text + "</table>\n";
}

std::string follower_section(const ExpertsFile& file) {
  std::vector<std::vector<double>> rows;
  std::vector<int64_t> names;
  double all = 0, weights = 0;
  for (const Layer& layer : file.layers) {
    if (layer.follows.empty()) continue;
    rows.push_back(layer.follows);
    names.push_back(layer.layer);
    for (size_t expert = 0; expert < std::min(layer.uses.size(), layer.follows.size()); ++expert) {
      all += layer.uses[expert] * layer.follows[expert];
      weights += layer.uses[expert];
    }
  }
  if (rows.empty()) return "";
  return fmt::format(
             "<h2>Neighbouring layers</h2><p>How likely a row of an expert chooses that expert's "
             "likeliest follower in the next layer: 0 (light) to 1 (dark). On average {:.1f} %; by "
             "chance it would be {:.1f} %.</p>\n",
             weights > 0 ? 100 * all / weights : 0,
             100.0 * static_cast<double>(file.experts_per_token) /
                 static_cast<double>(std::max<int64_t>(1, file.experts))) +
         heat_map(rows, names);
}

}  // namespace

std::string experts_page(const ExpertsFile& file) {
  const std::string title =
      fmt::format("Experts of {}", file.model.empty() ? "a model" : escaped(file.model));
  std::string page = fmt::format(
      "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{}</title>\n"
      "<style>body{{font:14px/1.5 system-ui,sans-serif;max-width:1040px;margin:20px auto;padding:0 "
      "16px;color:#1b2126;background:#fff}}svg{{width:100%;height:auto}}svg text{{font:11px "
      "system-ui,sans-serif;fill:#5c6770}}table{{border-collapse:collapse;"
      "font-variant-numeric:tabular-nums}}th,td{{text-align:right;padding:2px 14px 2px "
      "0}}th{{font-weight:500;color:#5c6770}}</style></head>\n<body><h1>{}</h1>\n",
      title, title);
  page += fmt::format(
      "<p>{} layers of {} experts, {} a token; {} tokens counted in {:.0f} s, {} windows; "
      "checkpoint {}.</p>\n",
      file.layers.size(), file.experts, file.experts_per_token, file.rows(), file.seconds,
      file.windows.size(), escaped(file.checkpoint));
  page += load_section(file) + cache_section(file) + layer_section(file) + follower_section(file);
  return page + "</body></html>\n";
}

}  // namespace atl::cli
