#include "tests/sim/requests.h"

#include <map>
#include <memory>

#include "coordinator/cluster/cluster.h"
#include "coordinator/cluster/dispatcher.h"
#include "coordinator/cluster/local_node.h"
#include "coordinator/engine/engine.h"
#include "coordinator/serving/scheduler.h"
#include "expert_node/serve.h"
#include "storage/tiles/tile_store.h"
#include "tests/sim/world.h"
#include "topology/placement.h"

namespace atl::sim {
namespace {

// As `atoll serve --nodes 0`, one request at a time.
std::vector<Text> compute_texts(const Model& model) {
  const SteadyClock clock;
  transport::InProcessPair pair = transport::make_in_process_pair();
  storage::TileStore tiles(model.pack(), model.catalog());
  expert_node::NodeOptions node_options;
  node_options.identity = model.identity();
  node_options.rows_max = kRowsMax;
  expert_node::ExpertNode node(node_options, model.team(), tiles, *pair.far_end);
  transport::set_in_process_pump(*pair.near_end, [&] { node.serve_some(); });

  coordinator::ClusterOptions options;
  options.identity = model.identity();
  options.limits = model.limits();
  options.session = SessionId{1};
  const auto placement = topology::equal_placement(model.num_tiles(), 1);
  coordinator::Cluster cluster(*pair.near_end, clock, options, placement,
                               std::make_unique<coordinator::LocalNode>("local", node));
  coordinator::DispatcherOptions dispatch;
  dispatch.session = options.session;
  dispatch.limits = options.limits;
  coordinator::Dispatcher dispatcher(*pair.near_end, model.team(), clock, dispatch, cluster.links(),
                                     &cluster);
  while (!cluster.load_state().ready) dispatcher.poll();
  cluster.watch();
  cluster.begin();
  coordinator::EngineOptions engine_options;
  engine_options.rows_max = kRowsMax;
  coordinator::Engine engine(model.config(), model.weights(), &dispatcher, model.team(), clock,
                             engine_options);
  std::vector<Text> texts;
  coordinator::SchedulerOptions settings;
  settings.sequences_max = 1;
  settings.vocab_limit = static_cast<int32_t>(model.config().vocab_size);
  settings.prefix_cache = false;
  bool ended = false;
  coordinator::Scheduler scheduler(engine, model.team(), clock, settings,
                                   [&](std::vector<coordinator::GenerationEvent> events) {
                                     for (const coordinator::GenerationEvent& event : events) {
                                       CHECK(!event.error);
                                       if (event.token) texts.back().tokens.push_back(*event.token);
                                       if (event.finish) texts.back().finish = *event.finish;
                                       ended = ended || event.finish;
                                     }
                                   });
  for (int64_t number = 0; number < kNumRequests; ++number) {
    texts.emplace_back();
    ended = false;
    CHECK(scheduler.submit(request_of(static_cast<size_t>(number), model)));
    while (!ended) scheduler.step();
  }
  cluster.close(coordinator::Cluster::Nodes::kKeep);
  return texts;
}

}  // namespace

coordinator::GenerationRequest request_of(size_t number, const Model& model) {
  Draw draw(1000 + number);
  coordinator::GenerationRequest request;
  // Some begin alike, so that they share blocks of the cache.
  const int64_t length = draw.one_of({1, 3, 10, 30, 70, 100});
  Draw common(draw.below(2));
  const int64_t vocabulary = model.config().vocab_size;
  for (int64_t i = 0; i < length; ++i) {
    Draw& from = i < 64 ? common : draw;
    request.prompt.push_back(static_cast<int32_t>(from.below(vocabulary)));
  }
  request.max_tokens = draw.between(1, 8);
  if (draw.chance(0.5)) {
    request.sampling.temperature = 1;
    request.sampling.seed = number;
  }
  request.stop_ids = model.config().eos_token_ids;
  return request;
}

const Text& expected_text(size_t number, const Model& model) {
  static std::map<const Model*, std::vector<Text>> texts;
  const auto found = texts.find(&model);
  if (found != texts.end()) return found->second[number];
  return texts.emplace(&model, compute_texts(model)).first->second[number];
}

}  // namespace atl::sim
