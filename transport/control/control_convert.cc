#include "transport/control/control_convert.h"

#include <fmt/core.h>

#include <cmath>

#include "base/check.h"
#include "transport/data/end_address.h"

namespace atl::transport {

namespace {

constexpr size_t kTextBytesMax = 4096;
constexpr size_t kTilesMax = 65536;
constexpr size_t kLayersMax = 65536;  // as check_limits() allows

std::string read_text(capnp::Text::Reader text) {
  std::string out(text.begin(), std::min(text.size(), kTextBytesMax));
  for (char& c : out)
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) c = ' ';
  return out;
}

std::vector<std::byte> read_data(capnp::Data::Reader data) {
  const auto* begin = reinterpret_cast<const std::byte*>(data.begin());
  return {begin, begin + data.size()};
}

capnp::Data::Reader data_of(const std::vector<std::byte>& bytes) {
  return {reinterpret_cast<const kj::byte*>(bytes.data()), bytes.size()};
}

Error invalid(std::string message) { return {ErrorCode::kInvalid, std::move(message)}; }

Status check_text_sizes(std::initializer_list<std::pair<const char*, capnp::Text::Reader>> texts) {
  for (const auto& [name, text] : texts)
    if (text.size() > kTextBytesMax)
      return invalid(
          fmt::format("{} has {} bytes, at most {} are allowed", name, text.size(), kTextBytesMax));
  return {};
}

Status check_address_size(size_t bytes) {
  if (bytes <= kAddressBytesMax) return {};
  return invalid(
      fmt::format("data address has {} bytes, at most {} are allowed", bytes, kAddressBytesMax));
}

// Zero or absurd limits would only show much later, as sizes.
Status check_limits(const WireLimits& limits) {
  struct Field {
    const char* name;
    uint32_t value, max;
  };
  for (const Field& field :
       {Field{"rows_max", limits.rows_max, 1u << 16},
        Field{"hidden_size", limits.hidden_size, 1u << 20}, Field{"top_k", limits.top_k, 1024},
        Field{"num_layers", limits.num_layers, 1u << 16},
        Field{"n_routed_experts", limits.n_routed_experts, UINT16_MAX},
        Field{"num_tiles", limits.num_tiles, UINT16_MAX}})
    if (field.value == 0 || field.value > field.max)
      return invalid(
          fmt::format("limit {} is {}, expected 1 to {}", field.name, field.value, field.max));
  if (limits.row_type != WireRowType::kBf16 && limits.row_type != WireRowType::kF32)
    return invalid(
        fmt::format("row type is {}, expected 1 or 2", static_cast<int>(limits.row_type)));
  return {};
}

void write_cache(schema::CacheStats::Builder out, const ExpertCacheStats& cache) {
  out.setSlotBytes(cache.slot_bytes);
  out.setSlots(cache.slots);
  out.setSlotsUsed(cache.slots_used);
  out.setHits(cache.hits);
  out.setMisses(cache.misses);
  out.setLate(cache.late);
  out.setEvictions(cache.evictions);
  out.setBytesRead(cache.bytes_read);
  out.setTilesReread(cache.tiles_reread);
  out.setTilesBad(cache.tiles_bad);
  out.setHinted(cache.hinted);
  out.setHintsUsed(cache.hints_used);
  out.setHintsWasted(cache.hints_wasted);
  auto latency = out.initReadLatency(ExpertCacheStats::kLatencyBuckets);
  for (unsigned i = 0; i < latency.size(); ++i) latency.set(i, cache.read_latency[i]);
  auto stall = out.initStallSeconds(static_cast<unsigned>(cache.stall_seconds.size()));
  for (unsigned i = 0; i < stall.size(); ++i) stall.set(i, cache.stall_seconds[i]);
}

Result<ExpertCacheStats> read_cache(schema::CacheStats::Reader in) {
  ExpertCacheStats cache;
  const auto latency = in.getReadLatency();
  const auto stall = in.getStallSeconds();
  if (latency.size() != cache.read_latency.size())
    return invalid(fmt::format("cache statistics have {} latency buckets, expected {}",
                               latency.size(), cache.read_latency.size()));
  if (stall.size() > kLayersMax)
    return invalid(fmt::format("cache statistics have stall times of {} layers, at most {}",
                               stall.size(), kLayersMax));
  cache.slot_bytes = in.getSlotBytes();
  cache.slots = in.getSlots();
  cache.slots_used = in.getSlotsUsed();
  cache.hits = in.getHits();
  cache.misses = in.getMisses();
  cache.late = in.getLate();
  cache.evictions = in.getEvictions();
  cache.bytes_read = in.getBytesRead();
  cache.tiles_reread = in.getTilesReread();
  cache.tiles_bad = in.getTilesBad();
  cache.hinted = in.getHinted();
  cache.hints_used = in.getHintsUsed();
  cache.hints_wasted = in.getHintsWasted();
  for (unsigned i = 0; i < latency.size(); ++i) cache.read_latency[i] = latency[i];
  for (unsigned i = 0; i < stall.size(); ++i) {
    if (!std::isfinite(stall[i]) || stall[i] < 0)
      return invalid(
          fmt::format("stall time of layer {} is {}, expected seconds of 0 or more", i, stall[i]));
    cache.stall_seconds.push_back(stall[i]);
  }
  return cache;
}

}  // namespace

Error error_of(const kj::Exception& exception, const std::string& what,
               const std::string& address) {
  ErrorCode code = ErrorCode::kUnavailable;
  if (exception.getType() == kj::Exception::Type::OVERLOADED) code = ErrorCode::kOverloaded;
  if (exception.getType() == kj::Exception::Type::UNIMPLEMENTED) code = ErrorCode::kUnsupported;
  return {code, fmt::format("{} {}: {}", what, address,
                            read_text(capnp::Text::Reader(exception.getDescription())))};
}

void write_error(schema::Error::Builder out, const Error& error) {
  out.setCode(static_cast<uint8_t>(error.code));
  out.setMessage(error.message.substr(0, kTextBytesMax).c_str());
}

Error read_error(schema::Error::Reader in) {
  const bool known = in.getCode() <= static_cast<uint8_t>(ErrorCode::kInternal);
  return {known ? static_cast<ErrorCode>(in.getCode()) : ErrorCode::kInternal,
          read_text(in.getMessage())};
}

void write_hello(schema::Hello::Builder out, const Hello& hello) {
  out.setVersion(hello.version);
  out.setCoordinator(hello.coordinator.c_str());
  out.setSession(hello.session.value);
  out.setDataAddress(data_of(hello.data_address));
  auto identity = out.initIdentity();
  identity.setModel(hello.identity.model.c_str());
  identity.setCheckpointFingerprint(hello.identity.checkpoint_fingerprint.c_str());
  identity.setProfile(hello.identity.profile.c_str());
  auto limits = out.initLimits();
  limits.setRowsMax(hello.limits.rows_max);
  limits.setHiddenSize(hello.limits.hidden_size);
  limits.setTopK(hello.limits.top_k);
  limits.setNumLayers(hello.limits.num_layers);
  limits.setNRoutedExperts(hello.limits.n_routed_experts);
  limits.setNumTiles(hello.limits.num_tiles);
  limits.setRowType(static_cast<uint8_t>(hello.limits.row_type));
}

Result<Hello> read_hello(schema::Hello::Reader in) {
  Hello hello;
  hello.version = in.getVersion();
  if (const Status status = check_control_version(hello.version); !status) return status.error();
  const auto identity = in.getIdentity();
  const Status sizes = check_text_sizes({{"coordinator name", in.getCoordinator()},
                                         {"model", identity.getModel()},
                                         {"fingerprint", identity.getCheckpointFingerprint()},
                                         {"profile", identity.getProfile()}});
  if (!sizes) return sizes.error();
  hello.coordinator = read_text(in.getCoordinator());
  hello.identity = {read_text(identity.getModel()), read_text(identity.getCheckpointFingerprint()),
                    read_text(identity.getProfile())};
  const auto limits = in.getLimits();
  hello.limits.rows_max = limits.getRowsMax();
  hello.limits.hidden_size = limits.getHiddenSize();
  hello.limits.top_k = limits.getTopK();
  hello.limits.num_layers = limits.getNumLayers();
  hello.limits.n_routed_experts = limits.getNRoutedExperts();
  hello.limits.num_tiles = limits.getNumTiles();
  hello.limits.row_type = static_cast<WireRowType>(limits.getRowType());
  if (const Status status = check_limits(hello.limits); !status) return status.error();
  hello.session = SessionId(in.getSession());
  if (const Status status = check_address_size(in.getDataAddress().size()); !status)
    return status.error();
  hello.data_address = read_data(in.getDataAddress());
  return hello;
}

void write_reply(schema::HelloReply::Builder out, const HelloReply& reply) {
  out.setNode(reply.node.c_str());
  out.setNumThreads(reply.num_threads);
  out.setMemoryTotalBytes(reply.memory_total_bytes);
  out.setDataAddress(data_of(reply.data_address));
}

Result<HelloReply> read_reply(schema::HelloReply::Reader in) {
  if (const Status status = check_address_size(in.getDataAddress().size()); !status)
    return status.error();
  return HelloReply{read_text(in.getNode()), in.getNumThreads(), in.getMemoryTotalBytes(),
                    read_data(in.getDataAddress())};
}

namespace {

void write_ranges(capnp::List<schema::TileRange>::Builder out,
                  const std::vector<TileRange>& ranges) {
  for (unsigned i = 0; i < out.size(); ++i) {
    out[i].setBegin(ranges[i].begin);
    out[i].setEnd(ranges[i].end);
  }
}

Status read_ranges(capnp::List<schema::TileRange>::Reader in, std::vector<TileRange>* ranges) {
  if (in.size() > kTilesMax) {
    return invalid(fmt::format("plan has {} tile ranges, at most {}", in.size(), kTilesMax));
  }
  uint32_t previous_end = 0;
  for (const auto tile : in) {
    if (tile.getBegin() >= tile.getEnd() || tile.getBegin() < previous_end) {
      return invalid(fmt::format(
          "plan's tile range [{}, {}), expected one that isn't empty and begins at {} or later",
          tile.getBegin(), tile.getEnd(), previous_end));
    }
    ranges->push_back({tile.getBegin(), tile.getEnd()});
    previous_end = tile.getEnd();
  }
  return {};
}

}  // namespace

void write_plan(schema::Plan::Builder out, const Plan& plan) {
  out.setEpoch(plan.epoch.value);
  write_ranges(out.initTiles(static_cast<unsigned>(plan.tiles.size())), plan.tiles);
  write_ranges(out.initStandby(static_cast<unsigned>(plan.standby.size())), plan.standby);
}

Result<Plan> read_plan(schema::Plan::Reader in) {
  Plan plan{Epoch(in.getEpoch()), {}, {}};
  if (const Status status = read_ranges(in.getTiles(), &plan.tiles); !status) return status.error();
  if (const Status status = read_ranges(in.getStandby(), &plan.standby); !status) {
    return status.error();
  }
  return plan;
}

void write_state(schema::State::Builder out, const NodeState& state) {
  out.setPhase(static_cast<uint8_t>(state.phase));
  out.setEpoch(state.epoch.value);
  out.setBytesLoaded(state.bytes_loaded);
  out.setBytesTotal(state.bytes_total);
  out.setResidentBytes(state.resident_bytes);
  out.setError(state.error.c_str());
  out.setStandbyLeftOut(state.standby_left_out);
}

Result<NodeState> read_state(schema::State::Reader in) {
  if (in.getPhase() > static_cast<uint8_t>(NodeState::Phase::kFailed))
    return invalid(fmt::format("phase is {}, expected 0 to 3", in.getPhase()));
  return NodeState{static_cast<NodeState::Phase>(in.getPhase()),
                   Epoch(in.getEpoch()),
                   in.getBytesLoaded(),
                   in.getBytesTotal(),
                   in.getResidentBytes(),
                   read_text(in.getError()),
                   in.getStandbyLeftOut()};
}

void write_stats(schema::Stats::Builder out, const NodeStats& stats) {
  out.setDispatches(stats.dispatches);
  out.setRows(stats.rows);
  out.setExpertRows(stats.expert_rows);
  out.setBytesIn(stats.bytes_in);
  out.setBytesOut(stats.bytes_out);
  out.setTilesComputed(stats.tiles_computed);
  out.setRefused(stats.refused);
  out.setComputeSeconds(stats.compute_seconds);
  out.setLinks(stats.links.c_str());
  write_cache(out.initCache(), stats.cache);
}

Result<NodeStats> read_stats(schema::Stats::Reader in) {
  NodeStats stats;
  stats.dispatches = in.getDispatches();
  stats.rows = in.getRows();
  stats.expert_rows = in.getExpertRows();
  stats.bytes_in = in.getBytesIn();
  stats.bytes_out = in.getBytesOut();
  stats.tiles_computed = in.getTilesComputed();
  stats.refused = in.getRefused();
  stats.compute_seconds = in.getComputeSeconds();
  stats.links = read_text(in.getLinks());
  auto cache = read_cache(in.getCache());
  if (!cache) return cache.error();
  stats.cache = std::move(*cache);
  return stats;
}

void write_trace(schema::Trace::Builder out, const NodeTrace& trace) {
  out.setNowNs(trace.now_ns);
  out.setLost(trace.lost);
  auto events = out.initEvents(static_cast<unsigned>(trace.events.size()));
  for (unsigned i = 0; i < events.size(); ++i) {
    const TraceEvent& event = trace.events[i];
    events[i].setBeginNs(event.begin_ns);
    events[i].setLengthNs(static_cast<uint64_t>(event.end_ns - event.begin_ns));
    events[i].setId(event.id);
    events[i].setLayer(event.layer);
    events[i].setRows(event.rows);
    events[i].setKind(event.kind);
  }
}

Result<NodeTrace> read_trace(schema::Trace::Reader in) {
  const auto events = in.getEvents();
  if (events.size() > kTraceEventsMax) {
    return invalid(
        fmt::format("trace has {} events, expected at most {}", events.size(), kTraceEventsMax));
  }
  NodeTrace trace;
  trace.now_ns = in.getNowNs();
  trace.lost = in.getLost();
  for (const auto event : events) {
    if (event.getKind() >= kNumNodeWorks || event.getLengthNs() > uint64_t{1} << 62 ||
        event.getBeginNs() < 0 || event.getBeginNs() > int64_t{1} << 62) {
      return invalid(
          fmt::format("trace has an event of kind {} at {} ns for {} ns, expected kinds "
                      "below {} and times from 0 on",
                      event.getKind(), event.getBeginNs(), event.getLengthNs(), kNumNodeWorks));
    }
    const auto length = static_cast<int64_t>(event.getLengthNs());
    trace.events.push_back({event.getBeginNs(), event.getBeginNs() + length, event.getId(),
                            event.getLayer(), event.getRows(), 0, event.getKind()});
  }
  return trace;
}

const char* node_work_name(NodeWork work) {
  switch (work) {
    case NodeWork::kQueue:
      return "queue";
    case NodeWork::kRead:
      return "read";
    case NodeWork::kGateUp:
      return "gate_up";
    case NodeWork::kDown:
      return "down";
    case NodeWork::kSend:
      return "send";
    case NodeWork::kDispatch:
      return "dispatch";
  }
  CHECK(false);
  return "";
}

Result<NodeTrace> NodeControl::trace(SessionId /*session*/, const TraceAsk& /*ask*/) {
  return Error{ErrorCode::kUnsupported, "this node knows no traces"};
}

Result<NodeTrace> NodeClient::trace(SessionId /*session*/, const TraceAsk& /*ask*/) {
  return Error{ErrorCode::kUnsupported, "this node knows no traces"};
}

Result<std::string> NodeControl::inspect(const std::string& what) {
  return Error{ErrorCode::kUnsupported, "this node tells nothing of \"" + what + "\""};
}

Result<std::string> NodeClient::inspect(const std::string& what) {
  return Error{ErrorCode::kUnsupported, "this node tells nothing of \"" + what + "\""};
}

Status check_control_version(uint32_t theirs) {
  if (theirs == kControlVersion) return {};
  return invalid(fmt::format(
      "control version: the coordinator speaks {}, this node {}; install the same Atoll on both",
      theirs, kControlVersion));
}

Status check_identity(const ModelIdentity& ours, const ModelIdentity& theirs) {
  const auto differs = [](const char* what, const std::string& ours, const std::string& theirs) {
    return invalid(
        fmt::format("{}: the coordinator has \"{}\", this node \"{}\"", what, theirs, ours));
  };
  if (ours.model != theirs.model) return differs("model", ours.model, theirs.model);
  if (ours.checkpoint_fingerprint != theirs.checkpoint_fingerprint)
    return differs("checkpoint fingerprint", ours.checkpoint_fingerprint,
                   theirs.checkpoint_fingerprint);
  if (ours.profile != theirs.profile)
    return differs("numerics profile", ours.profile, theirs.profile);
  return {};
}

}  // namespace atl::transport
