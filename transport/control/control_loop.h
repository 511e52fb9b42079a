// A thread with a kj event loop. Private to transport/.
#pragma once

#include <kj/async-io.h>

#include <functional>
#include <thread>

namespace atl::transport {

// Runs `body` on a thread of its own with the loop's context and a promise that resolves when the
// owner calls stop() (or destroys this). The constructor returns when body calls its `ready`; what
// body throws before that is thrown by the constructor.
class ControlLoop {
 public:
  using Body = std::function<void(kj::AsyncIoContext& io, kj::Promise<void> stopped,
                                  const std::function<void()>& ready)>;
  explicit ControlLoop(Body body);
  ~ControlLoop() noexcept;
  ControlLoop(const ControlLoop&) = delete;
  ControlLoop& operator=(const ControlLoop&) = delete;

  // For executeSync() from other threads.
  const kj::Executor& executor() const { return *executor_; }

 private:
  kj::Own<const kj::Executor> executor_;
  kj::Own<kj::PromiseFulfiller<void>> stop_;  // used on the loop's thread only
  std::thread thread_;
};

}  // namespace atl::transport
