# The control protocol between coordinator and expert nodes; the sequence of a session is drawn in
# docs/wire.md.
#
# Evolution: within a version fields and methods are only added, with new numbers, so that older
# readers skip them and newer ones see the default. A change that an older side would misread raises
# kControlVersion (control.h), which Hello carries in its first field: the two sides refuse each
# other by name then. Numbers and types that are here never change.
@0x916b889b743e5e2b;

using Cxx = import "/capnp/c++.capnp";
$Cxx.namespace("atl::transport::schema");

struct Error {
  code @0 :UInt8;      # atl::ErrorCode
  message @1 :Text;    # one line, at most 4 KiB
}

struct Identity {
  model @0 :Text;
  checkpointFingerprint @1 :Text;
  profile @2 :Text;
}

struct Limits {        # atl::transport::WireLimits
  rowsMax @0 :UInt32;
  hiddenSize @1 :UInt32;
  topK @2 :UInt32;
  numLayers @3 :UInt32;
  nRoutedExperts @4 :UInt32;
  numTiles @5 :UInt32;
  rowType @6 :UInt8;   # 1 BF16, 2 F32
}

struct Hello {
  version @0 :UInt32;  # always the first field, of every version
  coordinator @1 :Text;
  identity @2 :Identity;
  limits @3 :Limits;
  session @4 :UInt64;
  dataAddress @5 :Data;
  secret @6 :Text;     # of a node that listens: whoever doesn't know it is told nothing
}

struct HelloReply {
  node @0 :Text;
  numThreads @1 :UInt32;
  memoryTotalBytes @2 :UInt64;
  dataAddress @3 :Data;
}

struct TileRange {
  begin @0 :UInt16;
  end @1 :UInt16;
}

struct Plan {
  epoch @0 :UInt32;
  tiles @1 :List(TileRange);
  standby @2 :List(TileRange);  # some of them: left out where there is no memory for all
}

struct State {
  phase @0 :UInt8;     # 0 idle, 1 loading, 2 ready, 3 failed; a ready node may go on loading
  epoch @1 :UInt32;
  bytesLoaded @2 :UInt64;
  bytesTotal @3 :UInt64;
  residentBytes @4 :UInt64;
  error @5 :Text;
  standbyLeftOut @6 :Bool;
}

# atl::ExpertCacheStats (base/cache_stats.h), of the node's life.
struct CacheStats {
  slotBytes @0 :UInt64;
  slots @1 :UInt64;
  slotsUsed @2 :UInt64;
  hits @3 :UInt64;
  misses @4 :UInt64;
  late @5 :UInt64;
  evictions @6 :UInt64;
  bytesRead @7 :UInt64;
  tilesReread @8 :UInt64;
  tilesBad @9 :UInt64;
  hinted @10 :UInt64;
  hintsUsed @11 :UInt64;
  hintsWasted @12 :UInt64;
  readLatency @13 :List(UInt64);    # exactly 24 buckets
  stallSeconds @14 :List(Float64);  # by layer, at most 65536
}

struct Stats {
  dispatches @0 :UInt64;
  rows @1 :UInt64;
  expertRows @2 :UInt64;
  bytesIn @3 :UInt64;
  bytesOut @4 :UInt64;
  tilesComputed @5 :UInt64;
  unused6 @6 :UInt64;  # version 2 has the counts in cache
  refused @7 :UInt64;
  computeSeconds @8 :Float64;
  links @9 :Text;
  cache @10 :CacheStats;
}

struct TraceEvent {    # atl::TraceEvent (base/trace_ring.h); times of the node's clock
  beginNs @0 :Int64;
  lengthNs @1 :UInt64;
  id @2 :UInt64;
  layer @3 :Int32;
  rows @4 :UInt32;
  kind @5 :UInt8;      # atl::transport::NodeWork
}

struct Trace {
  nowNs @0 :Int64;
  events @1 :List(TraceEvent);
  lost @2 :UInt64;
}

# What the called side says is in the results; exceptions of the RPC system mean a broken connection.
# A session belongs to the connection that opened it and ends with it.
interface Node {
  hello @0 (hello :Hello) -> (error :Error, reply :HelloReply);
  applyPlan @1 (session :UInt64, plan :Plan) -> (error :Error);
  state @2 (session :UInt64) -> (error :Error, state :State);
  stats @3 (session :UInt64) -> (error :Error, stats :Stats);
  closeSession @4 (session :UInt64) -> (error :Error);
  stop @5 () -> (error :Error);
  ping @6 () -> ();    # a heartbeat: answered by the thread of control, however busy the node is
  # Switches the trace of the data plane on or off and takes at most so many of its events.
  trace @7 (session :UInt64, on :Bool, eventsMax :UInt32) -> (error :Error, trace :Trace);
  # Before or after a hello, of whoever has a certificate or the secret: what the node's machine is
  # ("probe") or what is wrong with it ("doctor"), as JSON.
  inspect @8 (secret :Text, what :Text) -> (error :Error, answer :Text);
}
