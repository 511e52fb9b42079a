// Load for an OpenAI-compatible server: requests of exact length, and when their tokens came.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "http/http_client.h"

namespace atl::bench {

struct ServeLoadOptions {
  http::HttpUrl url;    // a path /v1 is left out
  std::string model;    // empty: the first that the server names
  std::string api_key;  // empty: none is sent
  int64_t prompt_tokens = 128, output_tokens = 64;
  int64_t shared_prefix = 0;  // tokens that all prompts begin with, of prompt_tokens
  int64_t vocab = 0;          // prompts are ids below it; 0: ids that /tokenize gives for text
  uint64_t seed = 1;
  double slo_ttft_ms = 0, slo_tpot_ms = 0;  // 0: any
  std::chrono::seconds request_timeout{600};
};

// A closed loop (so many requests under way) or an open one (so many per second, whatever comes
// back).
struct LoadCase {
  int64_t concurrency = 0;  // most under way; 0: any number
  double rate = 0;          // requests/s, at the times of a Poisson process; 0: a closed loop
  int64_t requests = 0;     // to start; 0: by time
  double seconds = 0;       // in which requests are started; 0: by number
};

struct LoadResult {
  int64_t ok = 0;
  int64_t refused = 0;  // 429 and 503
  int64_t failed = 0;
  int64_t other_length = 0;  // of ok: not output_tokens long
  int64_t within_slo = 0;    // of ok
  double seconds = 0;        // from the first start to the last end
  int64_t prompt_tokens = 0, cached_tokens = 0, output_tokens = 0;  // as the server counts them
  // Seconds. To the first event with text, from when the request was due; per further token of a
  // request; between two events of a request.
  std::vector<double> ttft, tpot, itl;
  std::string first_failure;
};

// Linear between the nearest two, as numpy does. q in [0, 1]; `values` is sorted and not empty.
double percentile(const std::vector<double>& values, double q);

class ServeLoad {
 public:
  // Asks the server for its model and for token ids, and sends one request that isn't counted.
  // LoadError says what the server answered.
  explicit ServeLoad(const ServeLoadOptions& options);
  ~ServeLoad();

  const std::string& model() const;
  LoadResult run(const LoadCase& load);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// Connections beside the load: idle ones, and such that ask for more than they read (GET /metrics,
// over and over) and take some bytes now and then. Kept until this is destroyed. LoadError.
class Bystanders {
 public:
  Bystanders(const http::HttpUrl& url, int idle_connections, int slow_readers);
  ~Bystanders();
  Bystanders(const Bystanders&) = delete;
  Bystanders& operator=(const Bystanders&) = delete;

  // Of both, those that the server has closed.
  int closed() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace atl::bench
