#include "coordinator/engine/routing_recorder.h"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <nlohmann/json.hpp>
#include <utility>

#include "base/log.h"
#include "base/result.h"
#include "base/units.h"

namespace atl::coordinator {
namespace {

template <typename T>
void put_little_endian(std::string& to, T value) {
  for (size_t byte = 0; byte < sizeof(T); ++byte) {
    to.push_back(static_cast<char>(static_cast<uint64_t>(value) >> (8 * byte)));
  }
}

uint16_t bounded_u16(size_t value) { return static_cast<uint16_t>(std::min<size_t>(value, 65535)); }

}  // namespace

RoutingRecorder::RoutingRecorder(RoutingRecorderOptions options, const model::ModelConfig& config)
    : options_(std::move(options)),
      top_k_(static_cast<size_t>(config.num_experts_per_tok)),
      out_(options_.file, std::ios::binary | std::ios::trunc),
      rows_of_(static_cast<size_t>(config.n_routed_experts), 0) {
  const nlohmann::ordered_json about = {{"atoll_routing", 1},
                                        {"checkpoint", options_.checkpoint_fingerprint},
                                        {"model", options_.model_name},
                                        {"layers", config.num_hidden_layers},
                                        {"experts", config.n_routed_experts},
                                        {"experts_per_token", config.num_experts_per_tok}};
  const std::string line =
      about.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
  out_ << line << std::flush;
  if (!out_) {
    throw LoadError(fmt::format("--record-routing {}: cannot be written: {}",
                                options_.file.string(), std::strerror(errno)));
  }
  bytes_ = line.size();
  writer_ = std::thread([this] { write(); });
}

RoutingRecorder::~RoutingRecorder() {
  hand_over();
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_all();
  writer_.join();
  if (lost_ > 0) log_warn("routing of {} steps was not recorded: the drive is too slow", lost_);
}

void RoutingRecorder::begin_step() {
  hand_over();
  ++step_;
}

void RoutingRecorder::on_layer(int64_t layer, std::span<const int32_t> ids) {
  if (full_) return;
  size_t distinct = 0;
  for (const int32_t id : ids) {
    if (id >= 0 && rows_of_[static_cast<size_t>(id)]++ == 0) ++distinct;
  }
  put_little_endian(of_step_, step_);
  put_little_endian(of_step_, static_cast<uint16_t>(layer));
  put_little_endian(of_step_, bounded_u16(ids.size() / top_k_));
  put_little_endian(of_step_, bounded_u16(distinct));
  for (size_t expert = 0; distinct > 0; ++expert) {
    if (rows_of_[expert] == 0) continue;
    put_little_endian(of_step_, static_cast<uint16_t>(expert));
    put_little_endian(of_step_, bounded_u16(std::exchange(rows_of_[expert], 0)));
    --distinct;
  }
}

// The step before is whole.
void RoutingRecorder::hand_over() {
  if (of_step_.empty() || full_) return;
  if (bytes_ + of_step_.size() > options_.bytes_max) {
    full_ = true;
    log_info("routing of {} steps recorded: {} has its {}", step_ - 1, options_.file.string(),
             format_bytes(options_.bytes_max));
    of_step_.clear();
    return;
  }
  {
    const std::lock_guard lock(mutex_);
    if (waiting_.size() + of_step_.size() > kWaitingBytesMax) {
      ++lost_;
    } else {
      waiting_ += of_step_;
      bytes_ += of_step_.size();
    }
  }
  of_step_.clear();
  changed_.notify_one();
}

void RoutingRecorder::write() {
  std::string taken;
  while (true) {
    bool last = false;
    {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [this] { return stopping_ || !waiting_.empty(); });
      taken.clear();
      taken.swap(waiting_);
      last = stopping_;
    }
    out_.write(taken.data(), static_cast<std::streamsize>(taken.size()));
    if (last) out_.flush();
    if (!out_) {
      log_warn("routing is not recorded any more: {}: {}", options_.file.string(),
               std::strerror(errno));
      return;
    }
    if (last) return;
  }
}

uint64_t RoutingRecorder::steps_lost() const {
  const std::lock_guard lock(mutex_);
  return lost_;
}

}  // namespace atl::coordinator
