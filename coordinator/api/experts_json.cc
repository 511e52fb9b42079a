#include "coordinator/api/experts_json.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <iterator>
#include <memory>
#include <nlohmann/json.hpp>
#include <utility>

namespace atl::coordinator {
namespace {

// By hand, number by number: a tree of a few hundred thousand values would take ten times as long.
class Writer {
 public:
  std::string take() { return std::move(text_); }
  template <typename... Args>
  void write(fmt::format_string<Args...> format, Args&&... args) {
    fmt::format_to(std::back_inserter(text_), format, std::forward<Args>(args)...);
  }
  static std::string quoted(const std::string& text) {
    return nlohmann::json(text).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
  }

  void layer(int64_t id, const LayerLoad& load, const std::vector<Followers>* followers) {
    write(R"({{"layer":{},"steps":{},"rows":{},"distinct":{},"small_steps":{},"small_rows":{},)"
          R"("small_distinct":{},"uses":[{}])",
          id, load.steps, load.rows, load.distinct, load.small_steps, load.small_rows,
          load.small_distinct, fmt::join(load.uses, ","));
    if (followers) {
      text_ += R"(,"followers":[)";
      for (size_t expert = 0; expert < followers->size(); ++expert) {
        write("{}[{}", expert == 0 ? "" : ",", (*followers)[expert].pairs);
        for (const auto& [next, rows] : (*followers)[expert].best) write(",{},{}", next, rows);
        text_ += ']';
      }
      text_ += ']';
    }
    text_ += '}';
  }
  void layers(const std::vector<int64_t>& ids, const std::vector<LayerLoad>& loads,
              const std::vector<std::vector<Followers>>& followers) {
    text_ += R"("layers":[)";
    for (size_t place = 0; place < loads.size(); ++place) {
      if (place > 0) text_ += ',';
      layer(ids[place], loads[place], place < followers.size() ? &followers[place] : nullptr);
    }
    text_ += ']';
  }

 private:
  std::string text_;
};

}  // namespace

std::string experts_json(const ExpertsAbout& about, const ExpertLoadSnapshot& load) {
  Writer writer;
  writer.write(R"({{"atoll_expert_usage":1,"checkpoint":{},"model":{},"experts":{},)"
               R"("experts_per_token":{},"seconds":{:.3f},)",
               Writer::quoted(about.checkpoint_fingerprint), Writer::quoted(about.model_name),
               about.n_routed_experts, about.num_experts_per_tok, load.seconds);
  writer.layers(load.layer_ids, load.layers, load.followers);
  writer.write(R"(,"windows":[)");
  for (size_t i = 0; i < load.windows.size(); ++i) {
    const ExpertLoadSnapshot::Window& window = load.windows[i];
    writer.write(R"({}{{"begin_seconds":{:.3f},"seconds":{:.3f},)", i == 0 ? "" : ",",
                 window.begin_seconds, window.seconds);
    writer.layers(load.layer_ids, window.layers, {});
    writer.write("}}");
  }
  writer.write("]}}\n");
  return writer.take();
}

void add_experts_route(http::HttpServer& server, ExpertsAbout about, const ExpertLoad& load) {
  const auto shared = std::make_shared<const ExpertsAbout>(std::move(about));
  server.route("GET", "/experts", [&server, shared, &load](auto exchange) {
    http::HttpWork work;
    work.client = exchange->request().remote;
    work.length = http::WorkLength::kLong;
    work.run = [&server, exchange, shared, &load](std::stop_token) {
      auto text = std::make_shared<std::string>(
          experts_json(*shared, load.snapshot(ExpertLoad::With::kAll)));
      server.post([exchange, text] { exchange->respond({.body = std::move(*text)}); });
    };
    work.refused = [exchange] {
      exchange->respond({.status = 503, .body = R"({"error": "too much is waiting"})"});
    };
    server.work(std::move(work));
  });
}

}  // namespace atl::coordinator
