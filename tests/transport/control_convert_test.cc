// Statistics through the schema and back; what a peer could send instead.
#include "transport/control/control_convert.h"

#include <capnp/message.h>
#include <gtest/gtest.h>

#include <functional>
#include <limits>

namespace atl::transport {
namespace {

// Every field differs from its neighbours and from its default.
NodeStats test_stats() {
  NodeStats stats;
  stats.dispatches = 1;
  stats.rows = 2;
  stats.expert_rows = 3;
  stats.bytes_in = 4;
  stats.bytes_out = 5;
  stats.tiles_computed = 6;
  stats.refused = 8;
  stats.compute_seconds = 0.125;
  stats.links = "posix";
  ExpertCacheStats& cache = stats.cache;
  cache.slot_bytes = 2'772'992;
  cache.slots = 20;
  cache.slots_used = 21;
  cache.hits = 22;
  cache.misses = 23;
  cache.late = 24;
  cache.evictions = 25;
  cache.bytes_read = uint64_t{26} << 40;
  cache.tiles_reread = 27;
  cache.tiles_bad = 28;
  cache.hinted = 29;
  cache.hints_used = 30;
  cache.hints_wasted = 31;
  for (size_t i = 0; i < cache.read_latency.size(); ++i) cache.read_latency[i] = 100 + i;
  cache.stall_seconds = {0, 0.5, 1e-6, 3600};
  return stats;
}

TEST(ControlConvert, statistics_come_back_as_they_were) {
  const NodeStats stats = test_stats();
  capnp::MallocMessageBuilder message;
  auto built = message.initRoot<schema::Stats>();
  write_stats(built, stats);
  auto read = read_stats(built.asReader());
  ASSERT_TRUE(read.has_value()) << read.error().message;
  EXPECT_EQ(read->dispatches, stats.dispatches);
  EXPECT_EQ(read->rows, stats.rows);
  EXPECT_EQ(read->expert_rows, stats.expert_rows);
  EXPECT_EQ(read->bytes_in, stats.bytes_in);
  EXPECT_EQ(read->bytes_out, stats.bytes_out);
  EXPECT_EQ(read->tiles_computed, stats.tiles_computed);
  EXPECT_EQ(read->refused, stats.refused);
  EXPECT_EQ(read->compute_seconds, stats.compute_seconds);
  EXPECT_EQ(read->links, stats.links);
  EXPECT_EQ(read->cache, stats.cache);
}

TEST(ControlConvert, the_longest_statistics_are_taken) {
  NodeStats stats;
  stats.cache.stall_seconds.assign(65536, 1.0);
  capnp::MallocMessageBuilder message;
  auto built = message.initRoot<schema::Stats>();
  write_stats(built, stats);
  auto read = read_stats(built.asReader());
  ASSERT_TRUE(read.has_value()) << read.error().message;
  EXPECT_EQ(read->cache.stall_seconds.size(), 65536u);
}

TEST(ControlConvert, a_peers_impossible_statistics_are_refused_by_name) {
  const struct {
    std::function<void(schema::CacheStats::Builder)> spoil;
    std::string says;
  } kCases[] = {
      {[](auto cache) { cache.initReadLatency(23); },
       "cache statistics have 23 latency buckets, expected 24"},
      {[](auto cache) { cache.initReadLatency(25); }, "25 latency buckets"},
      {[](auto cache) { cache.disownReadLatency(); }, "0 latency buckets"},
      {[](auto cache) { cache.initStallSeconds(65537); },
       "cache statistics have stall times of 65537 layers, at most 65536"},
      {[](auto cache) {
         cache.initStallSeconds(3).set(1, std::numeric_limits<double>::quiet_NaN());
       },
       "stall time of layer 1 is nan, expected seconds of 0 or more"},
      {[](auto cache) { cache.initStallSeconds(1).set(0, -0.5); }, "stall time of layer 0 is -0.5"},
      {[](auto cache) {
         cache.initStallSeconds(1).set(0, std::numeric_limits<double>::infinity());
       },
       "stall time of layer 0 is inf"},
  };
  for (const auto& one : kCases) {
    capnp::MallocMessageBuilder message;
    auto built = message.initRoot<schema::Stats>();
    write_stats(built, test_stats());
    one.spoil(built.getCache());
    auto read = read_stats(built.asReader());
    ASSERT_FALSE(read.has_value()) << "taken: " << one.says;
    EXPECT_EQ(read.error().code, ErrorCode::kInvalid);
    EXPECT_NE(read.error().message.find(one.says), std::string::npos)
        << read.error().message << "\n  should say: " << one.says;
  }
}

TEST(ControlConvert, a_trace_with_times_or_kinds_that_cannot_be_is_refused) {
  const auto read_with = [](const std::function<void(schema::TraceEvent::Builder)>& change) {
    capnp::MallocMessageBuilder message;
    auto built = message.initRoot<schema::Trace>();
    write_trace(built, {5, {{1, 2, 3, 4, 5, 0, 0}}, 6});
    change(built.getEvents()[0]);
    return read_trace(built.asReader());
  };
  EXPECT_TRUE(read_with([](auto) {}).has_value());
  EXPECT_FALSE(read_with([](auto event) { event.setKind(kNumNodeWorks); }).has_value());
  EXPECT_FALSE(read_with([](auto event) { event.setLengthNs(~uint64_t{0}); }).has_value());
  EXPECT_FALSE(read_with([](auto event) { event.setBeginNs(-1); }).has_value());
}

}  // namespace
}  // namespace atl::transport
