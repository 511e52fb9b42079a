// Makes the connections of the encrypted link, on a thread of its own: accepts and dials, shakes
// hands, exchanges greetings, and hands over what is authenticated. Whoever has no certificate
// costs the data plane's thread nothing. Private to transport/.
//
// Greetings, little-endian, drawn in docs/wire.md: the dialling end says who it is and shows the
// token that it got over the control connection, the listening end answers with its id. A listening
// end answers no one without the token.
#pragma once

#include <sys/socket.h>

#include <array>
#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "base/result.h"
#include "transport/data/end_address.h"
#include "transport/data/tls_socket.h"
#include "transport/data/transport.h"
#include "transport/tls/stranger_log.h"
#include "transport/tls/tls_keys.h"

namespace atl::transport {

struct TlsGreeterOptions {
  std::shared_ptr<const TlsKeys> keys;
  std::string listen;  // "": doesn't
  PortRange ports;     // where `listen` leaves the port open
  std::vector<std::string> peers;
  std::chrono::milliseconds handshake_time{};
  uint64_t end_id = 0;
  std::array<std::byte, 16> token{};  // of this end, if it listens
};

class TlsGreeter {
 public:
  // A connection to use, or why there is none.
  struct News {
    uint32_t dial = 0;    // the number given to dial(); 0: this end was dialled
    uint64_t end_id = 0;  // of the end at the other side, which knew our token
    std::string name;     // in its certificate
    std::unique_ptr<TlsSocket> socket;
    Error error;  // of a dial, without a socket
  };

  // LoadError if it can't listen. on_news is called by the greeter's thread when there is some.
  TlsGreeter(TlsGreeterOptions options, std::function<void()> on_news);
  ~TlsGreeter();
  TlsGreeter(const TlsGreeter&) = delete;
  TlsGreeter& operator=(const TlsGreeter&) = delete;

  uint16_t port() const { return port_; }            // 0: doesn't listen
  const std::string& host() const { return host_; }  // numeric; "" for all of this machine's

  // Any thread. The news comes once for each dial, within the time for a handshake and some.
  void dial(uint32_t number, TlsAddress address, uint64_t end_id, std::string name);
  std::vector<News> take_news();

 private:
  struct Dial {
    uint32_t number = 0;
    TlsAddress address;
    uint64_t end_id = 0;
    std::string name;
  };
  // A connection on its way; the state says what it waits for.
  struct Guest {
    enum class State : uint8_t { kConnecting, kHandshake, kSayHello, kHearHello };
    State state = State::kHandshake;
    uint32_t dial = 0;  // as News
    std::string who;    // for the log
    Dial wanted;
    std::string name;
    std::unique_ptr<TlsSocket> socket;
    std::vector<std::byte> out, in;  // greetings
    size_t out_done = 0, in_done = 0;
    std::chrono::steady_clock::time_point deadline;
    uint32_t watched = 0;  // epoll's events
  };
  enum class Step : uint8_t { kWaits, kDone, kFailed };

  void open_listener();
  // Whether it could be had; errno says why not.
  bool listen_on(const sockaddr* address, socklen_t bytes);
  size_t num_news();
  void run();
  void accept_all();
  void begin(const Dial& dial);
  void add(Guest guest);
  void advance(uint64_t id);
  Step step(Guest& guest, Error* error);
  Result<bool> hear(Guest& guest);
  void say(Guest& guest);
  void watch(uint64_t id, Guest& guest);
  void drop_late();
  void finish(uint64_t id, const Error* error);
  void refuse(const Guest& guest, const std::string& why);
  int wait_ms() const;

  const TlsGreeterOptions options_;
  const std::function<void()> on_news_;
  std::string host_;
  uint16_t port_ = 0;
  int listen_fd_ = -1, epoll_fd_ = -1, wake_fd_ = -1;

  // The greeter's thread.
  std::map<uint64_t, Guest> guests_;  // oldest first
  uint64_t next_guest_ = 1;
  StrangerLog strangers_{"data"};

  std::mutex mutex_;
  bool stopping_ = false;
  std::vector<Dial> dials_;
  std::vector<News> news_;
  std::thread thread_;
};

}  // namespace atl::transport
