#include "http/helper_pool.h"

#include <sys/resource.h>

#include <utility>

#include "base/check.h"
#include "http/http_core.h"

namespace atl::http {
namespace {

constexpr int kLongWorkNice = 10;

}  // namespace

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
    TurnQueue<HttpWork>& queue = work.length == WorkLength::kLong ? long_ : short_;
    const std::string client = work.client;
    queue.push(client, std::move(work));
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
  // Linux: of this thread alone. Long work gives way to the engine's threads.
  if (!short_only) setpriority(PRIO_PROCESS, 0, kLongWorkNice);
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
