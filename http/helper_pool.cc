#include "http/helper_pool.h"

#include <algorithm>
#include <utility>

#include "base/check.h"
#include "http/http_core.h"

namespace atl::http {

void TurnQueue::push(HttpWork work) {
  std::deque<HttpWork>& waiting = by_client_[work.client];
  if (waiting.empty()) turns_.push_back(work.client);
  waiting.push_back(std::move(work));
  ++size_;
}

std::optional<HttpWork> TurnQueue::pop() {
  if (turns_.empty()) return std::nullopt;
  const auto at = by_client_.find(turns_.front());
  CHECK(at != by_client_.end());
  HttpWork work = std::move(at->second.front());
  at->second.pop_front();
  if (at->second.empty()) {
    by_client_.erase(at);
  } else {
    turns_.push_back(turns_.front());
  }
  turns_.pop_front();
  --size_;
  return work;
}

HttpWork TurnQueue::drop_from_longest() {
  const auto at = std::max_element(
      by_client_.begin(), by_client_.end(),
      [](const auto& a, const auto& b) { return a.second.size() < b.second.size(); });
  CHECK(at != by_client_.end());
  HttpWork work = std::move(at->second.back());
  at->second.pop_back();
  if (at->second.empty()) {
    std::erase(turns_, at->first);
    by_client_.erase(at);
  }
  --size_;
  return work;
}

HelperPool::HelperPool(size_t num_threads, size_t waiting_max)
    : num_threads_(num_threads), waiting_max_(waiting_max) {
  CHECK_GE(num_threads, size_t{2});
}

void HelperPool::start() {
  for (size_t i = 0; i < num_threads_; ++i) {
    threads_.emplace_back([this, i] { loop(i == 0); });
  }
}

void HelperPool::stop() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
    for (auto& [thread, stop] : running_) stop.request_stop();
  }
  changed_.notify_all();
  for (std::thread& thread : threads_) thread.join();
  threads_.clear();
}

std::optional<HttpWork> HelperPool::add(HttpWork work) {
  std::optional<HttpWork> left_out;
  {
    const std::lock_guard lock(mutex_);
    TurnQueue& queue = work.length == WorkLength::kLong ? long_ : short_;
    queue.push(std::move(work));
    if (queue.size() > waiting_max_) left_out = queue.drop_from_longest();
  }
  changed_.notify_all();
  return left_out;
}

std::optional<HttpWork> HelperPool::next(bool short_only) {
  if (short_only) return short_.pop();
  if (auto work = long_.pop()) return work;
  return short_.pop();
}

void HelperPool::loop(bool short_only) {
  std::unique_lock lock(mutex_);
  for (;;) {
    std::optional<HttpWork> work;
    changed_.wait(lock, [&] { return stopping_ || (work = next(short_only)).has_value(); });
    if (stopping_) return;
    running_[&work] = work->stop;
    lock.unlock();
    guarded("a task of HttpServer::work", [&] { work->run(work->stop.get_token()); });
    work.reset();  // what it holds may take a while to give back
    lock.lock();
    running_.erase(&work);
  }
}

}  // namespace atl::http
