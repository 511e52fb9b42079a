// One client's connection to the HTTP server. Private to the server.
#pragma once

#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/steady_timer.hpp>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "http/http_core.h"
#include "http/request_parser.h"

namespace atl::http {

using asio::ip::tcp;
using boost::system::error_code;
using TimePoint = std::chrono::steady_clock::time_point;

constexpr TimePoint kNever = TimePoint::max();

// One client. A read is always pending (unless the client is far ahead with requests), so that its
// going away is noticed at once, also while an answer is made. One request is answered at a time;
// what the client sends ahead waits in `in_`.
//
//   kIdle -> kHeader -> kBody -> kAnswering -> kIdle ...        keep-alive
//                                kAnswering -> kStreaming -> kIdle ...
//   any of them -> kDraining (the last bytes are being sent) -> kLingering -> kClosed
class Connection : public std::enable_shared_from_this<Connection> {
 public:
  Connection(Core& core, tcp::socket socket, std::string remote)
      : core_(core), socket_(std::move(socket)), timer_(core.io), remote_(std::move(remote)) {}

  void start() {
    enter(Phase::kIdle);
    schedule_turn();
  }
  // Too many connections: an answer without a request.
  void start_refused() { refuse(503, "too many connections; try again later"); }
  // The server ends: what is being answered is finished, who has no answer yet is told.
  void stop();
  void close();

  // Of the exchange; they do nothing if it isn't the current one any more.
  void respond(ExchangeId id, const HttpResponse& response);
  void begin_events(ExchangeId id);
  bool send_event(ExchangeId id, std::string_view data, std::string_view name);
  void end(ExchangeId id);
  bool on_gone(ExchangeId id, std::function<void()> callback);
  void abandoned(ExchangeId id);

 private:
  enum class Phase {
    kIdle,
    kHeader,
    kBody,
    kAnswering,
    kStreaming,
    kDraining,
    kLingering,
    kClosed
  };

  bool in_request() const { return phase_ == Phase::kHeader || phase_ == Phase::kBody; }
  bool is_current(ExchangeId id, Phase phase) const { return id == current_ && phase == phase_; }
  bool is_last() const { return input_ended_ && unparsed().empty(); }  // of the client's requests
  std::string_view unparsed() const { return std::string_view(in_).substr(in_taken_); }
  size_t unsent() const { return out_.size() + sending_.size() - sent_; }

  void enter(Phase phase);
  void schedule_turn();
  void turn();

  void wait_readable();
  void on_readable(const error_code& error);
  void on_read(size_t bytes);
  void on_end_of_input();
  void watch_for_reset();
  void probe();
  void process();
  bool can_parse() const;
  bool parse_some();
  void drop_parsed();
  void on_header();
  void on_request();
  void next_request();

  void refuse(int status, const std::string& message);
  void answer_error(const HttpResponse& response, bool keep);
  void append_response(const HttpResponse& response);
  void append_head(int status, const HttpResponse& response, std::string_view framing);
  void append_event_chunk(std::string_view text, std::string_view tail);
  void finish_answer();
  void linger();

  void flush();
  void on_written(const error_code& error, size_t bytes);
  void drop_slow();

  void arm_timer();
  TimePoint next_deadline() const;
  void on_timer();

  Core& core_;
  tcp::socket socket_;
  asio::steady_timer timer_;
  const std::string remote_;
  Phase phase_ = Phase::kIdle;
  bool turn_scheduled_ = false, in_process_ = false, waiting_readable_ = false,
       sending_now_ = false;
  bool input_ended_ = false;  // the client sends no more, and may still read

  std::string in_;  // read and, from in_taken_ on, not yet parsed
  size_t in_taken_ = 0;
  size_t lingered_bytes_ = 0;
  std::unique_ptr<RequestParser> parser_;  // of the request being read
  std::optional<BodyLease> lease_;
  bool has_answered_ = false, has_said_goodbye_ = false;
  bool discard_body_ = false;  // the request was refused; its body is read to keep the connection
  TimePoint arrived_{};

  ExchangeId current_ = 0;
  std::string request_id_;
  std::vector<std::pair<std::string, std::string>> added_headers_;  // of its answer
  bool head_only_ = false, keep_alive_ = true, http_1_1_ = true;
  std::function<void()> on_gone_;

  std::string out_, sending_;  // waiting, and in the kernel's hands from sent_ on
  size_t sent_ = 0;
  TimePoint read_deadline_ = kNever, write_deadline_ = kNever, comment_at_ = kNever,
            probe_at_ = kNever;
  TimePoint armed_for_ = kNever;
};

}  // namespace atl::http
