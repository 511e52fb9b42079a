#include "transport/control/control_loop.h"

#include <exception>
#include <future>

#include "base/log.h"
#include "base/threads.h"

namespace atl::transport {

ControlLoop::ControlLoop(Body body) {
  std::promise<void> started;
  std::future<void> start = started.get_future();
  thread_ = std::thread([this, &started, body = std::move(body)] {
    bool is_ready = false;
    prefer_this_thread();  // heartbeats are asked and answered here
    try {
      kj::AsyncIoContext io = kj::setupAsyncIo();
      auto stop = kj::newPromiseAndFulfiller<void>();
      executor_ = kj::getCurrentThreadExecutor().addRef();
      stop_ = kj::mv(stop.fulfiller);
      body(io, kj::mv(stop.promise), [&] {
        is_ready = true;
        started.set_value();
      });
      stop_ = nullptr;
    } catch (const kj::Exception& e) {
      if (is_ready)
        log_error("control thread ended: {}", e.getDescription().cStr());
      else
        started.set_exception(
            std::make_exception_ptr(std::runtime_error(std::string(e.getDescription().cStr()))));
    } catch (...) {
      if (is_ready)
        log_error("control thread ended");
      else
        started.set_exception(std::current_exception());
    }
  });
  try {
    start.get();
  } catch (...) {
    thread_.join();
    throw;
  }
}

ControlLoop::~ControlLoop() noexcept {
  try {
    executor_->executeSync([this] { stop_->fulfill(); });
  } catch (const kj::Exception&) {
    // The loop has ended already.
  }
  thread_.join();
}

}  // namespace atl::transport
