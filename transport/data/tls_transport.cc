// Transport over TLS connections. All state but the greeter's belongs to the thread that owns the
// transport.
//
// A connection's stream, in either direction, is messages one after the other (message_stream.h).
// The greeter (tls_greeter.h) has made it and knows whose it is.
#include <fmt/core.h>
#include <openssl/rand.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <deque>
#include <list>
#include <unordered_map>

#include "base/log.h"
#include "transport/data/end_address.h"
#include "transport/data/link_limits.h"
#include "transport/data/message_buffers.h"
#include "transport/data/message_stream.h"
#include "transport/data/tls_greeter.h"
#include "transport/data/tls_socket.h"
#include "transport/data/transport.h"
#include "transport/tls/tls_context.h"

namespace atl::transport {

namespace {

using Clock = std::chrono::steady_clock;

// Plaintext of a record (RFC 8446, sec. 5.1): what is encrypted, sent and decrypted at once.
constexpr size_t kRecordBytes = 16u << 10;
// Written or read of one connection before others have their turn; 1 MiB takes half a millisecond.
constexpr size_t kTurnBytes = 1u << 20;
constexpr size_t kTurnMessages = 16;
// An authenticated connection whose end nobody here connects to is dropped after it.
constexpr std::chrono::seconds kUnclaimedMax{60};
constexpr size_t kUnclaimedConnectionsMax = 64;

// A peer that is not who it should be, or says what is no message; all else is an end.
ErrorCode code_of(const Error& error) {
  return error.code == ErrorCode::kInvalid ? ErrorCode::kInvalid : ErrorCode::kUnavailable;
}

class TlsTransport final : public Transport {
 public:
  explicit TlsTransport(const TlsOptions& options);
  ~TlsTransport() override;

  std::vector<std::byte> address() const override;
  Result<PeerId> connect(std::span<const std::byte> address, const std::string& name) override;
  void close(PeerId id) override;
  Status send(PeerId id, std::span<const std::byte> header, SharedBuffer payload,
              size_t payload_bytes) override;
  std::optional<Event> poll() override;
  void wait(std::chrono::microseconds timeout) override;
  void wake() override;
  std::string selected_links(PeerId id) const override;

 private:
  struct Send {
    std::vector<std::byte> head;  // prefix and header
    SharedBuffer payload;
    size_t payload_bytes = 0;
    size_t done = 0;  // of head and payload together
    size_t bytes() const { return head.size() + payload_bytes; }
  };
  struct Peer {
    enum class State : uint8_t { kOpen, kLost, kClosed };
    PeerId id;
    std::string name;
    uint64_t end_id = 0;
    State state = State::kOpen;
    uint64_t connection = 0;  // 0: not there yet, or gone
    std::string links;        // of the connection, also when it is gone
    std::deque<Send> sends;
    Error failure;  // kLost
  };
  // Belongs to a peer, or to an end that nobody here has connected to: what it sends is dropped.
  struct Connection {
    std::unique_ptr<TlsSocket> socket;
    uint64_t end_id = 0;
    std::string name;
    Peer* peer = nullptr;
    Clock::time_point unclaimed_since;
    bool is_in_turn = false;  // stands in turns_
    bool watches_room = false;
    uint64_t records = 0;  // written with the present key
    std::unique_ptr<MessageReader> reader;
  };

  Peer* find(PeerId id) const {
    CHECK(id.value >= 1 && id.value < next_peer_);
    const auto found = peers_.find(id.value);
    return found == peers_.end() ? nullptr : found->second.get();
  }
  void forget_closed();

  size_t advance(bool* woken = nullptr);
  size_t handle_events(const epoll_event* events, int count, bool* woken);
  size_t take_turns();
  void give_turn(uint64_t id, Connection& connection);
  size_t take_connections();
  void take_connection(TlsGreeter::News news);
  void claim(Peer& peer, uint64_t id, Connection& connection);
  void drop_unclaimed();

  Status write_some(Connection& connection);
  Result<size_t> write_record(Connection& connection, const Send& send, bool is_last);
  Status read_some(Connection& connection);
  void watch_room(uint64_t id, Connection& connection);

  void end_connection(uint64_t id);
  void lose(Peer& peer, ErrorCode code, const std::string& reason);
  void lose_connection(uint64_t id, const Error& error);

  // What epoll tells of beside connections, whose numbers begin at 1.
  static constexpr uint64_t kWatchWake = 0;
  static constexpr uint64_t kWatchNews = UINT64_MAX;

  const bool listens_;
  const bool spin_;
  const size_t message_bytes_max_;
  const uint64_t records_per_key_;
  const uint64_t end_id_ = random_end_id();
  const ProcessName process_ = this_process();
  TlsAddress address_;
  int wake_fd_ = -1, news_fd_ = -1, epoll_fd_ = -1;
  std::unique_ptr<TlsGreeter> greeter_;

  uint32_t next_peer_ = 1;
  std::unordered_map<uint32_t, std::unique_ptr<Peer>> peers_;  // by PeerId
  std::unordered_map<uint64_t, Peer*> peer_by_end_;            // open ones
  uint64_t next_connection_ = 1;
  std::unordered_map<uint64_t, Connection> connections_;
  size_t num_unclaimed_ = 0;
  std::vector<uint64_t> turns_;  // connections with something to do that epoll won't tell
  std::deque<Event> ready_;
  std::shared_ptr<BufferPool> pool_ = std::make_shared<BufferPool>();
  std::vector<std::byte> record_ = std::vector<std::byte>(kRecordBytes);
};

TlsTransport::TlsTransport(const TlsOptions& options)
    : listens_(!options.listen.empty()),
      spin_(options.spin),
      message_bytes_max_(options.message_bytes_max ? options.message_bytes_max
                                                   : kMessageBytesDefault),
      records_per_key_(options.records_per_key) {
  CHECK(options.keys != nullptr);
  CHECK_GT(records_per_key_, 0u);
  CHECK(RAND_bytes(reinterpret_cast<unsigned char*>(address_.token.data()),
                   static_cast<int>(address_.token.size())) == 1);
  wake_fd_ = ::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
  news_fd_ = ::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
  epoll_fd_ = ::epoll_create1(EPOLL_CLOEXEC);
  try {
    if (wake_fd_ < 0 || news_fd_ < 0 || epoll_fd_ < 0)
      throw LoadError(fmt::format("cannot open event descriptors: {}", std::strerror(errno)));
    epoll_event event{};
    event.events = EPOLLIN;
    event.data.u64 = kWatchWake;
    CHECK(::epoll_ctl(epoll_fd_, EPOLL_CTL_ADD, wake_fd_, &event) == 0);
    event.data.u64 = kWatchNews;
    CHECK(::epoll_ctl(epoll_fd_, EPOLL_CTL_ADD, news_fd_, &event) == 0);
    TlsGreeterOptions greeter{options.keys,           options.listen, options.ports, options.peers,
                              options.handshake_time, end_id_,        address_.token};
    greeter_ = std::make_unique<TlsGreeter>(std::move(greeter), [fd = news_fd_] {
      const uint64_t one = 1;
      [[maybe_unused]] const ssize_t written = ::write(fd, &one, sizeof one);
    });
  } catch (...) {
    for (const int fd : {wake_fd_, news_fd_, epoll_fd_})
      if (fd >= 0) ::close(fd);
    throw;
  }
  address_.port = greeter_->port();
  address_.host = greeter_->host();
}

TlsTransport::~TlsTransport() {
  greeter_.reset();
  connections_.clear();
  for (const int fd : {wake_fd_, news_fd_, epoll_fd_}) ::close(fd);
}

std::vector<std::byte> TlsTransport::address() const {
  return encode_address({EndAddress::Kind::kTls, end_id_, process_, encode_tls_address(address_)});
}

Result<PeerId> TlsTransport::connect(std::span<const std::byte> bytes, const std::string& name) {
  auto address = decode_address(bytes, EndAddress::Kind::kTls);
  const auto invalid = [&](std::string_view what) {
    return Error{ErrorCode::kInvalid, fmt::format("{}: transport address: {}", name, what)};
  };
  if (!address) return Error{address.error().code, name + ": " + address.error().message};
  if (address->end_id == end_id_) return invalid("is this end's own");
  if (peer_by_end_.contains(address->end_id)) return invalid("is connected already");
  auto tls = decode_tls_address(address->native);
  if (!tls) return Error{tls.error().code, name + ": " + tls.error().message};
  if (listens_ && tls->port != 0) return invalid("both ends listen, expected one that dials");
  if (!listens_ && tls->port == 0) return invalid("neither end listens, expected one that does");
  const ProcessName& process = address->process;
  if (process.host != 0 && process.host == process_.host &&
      start_time_of(process.pid) != process.start_time)
    return Error{ErrorCode::kUnavailable,
                 fmt::format("connect {}: its process {} has ended", name, process.pid)};

  forget_closed();
  auto peer = std::make_unique<Peer>();
  Peer& p = *peer;
  p.id = PeerId{next_peer_++};
  p.name = name;
  p.end_id = address->end_id;
  peer_by_end_[p.end_id] = &p;
  peers_[p.id.value] = std::move(peer);
  if (!listens_) {
    greeter_->dial(p.id.value, *tls, p.end_id, name);
    return p.id;
  }
  // It may have dialled already; the newest such connection is the living one.
  uint64_t newest = 0;
  for (const auto& [id, connection] : connections_) {
    if (connection.peer == nullptr && connection.end_id == p.end_id && connection.name == name)
      newest = std::max(newest, id);
  }
  if (newest != 0) claim(p, newest, connections_.at(newest));
  return p.id;
}

void TlsTransport::forget_closed() {
  std::erase_if(peers_,
                [](const auto& entry) { return entry.second->state == Peer::State::kClosed; });
}

void TlsTransport::claim(Peer& peer, uint64_t id, Connection& connection) {
  CHECK(connection.peer == nullptr && peer.connection == 0);
  connection.peer = &peer;
  peer.connection = id;
  peer.links = "tls/" + cipher_of(connection.socket->ssl());
  --num_unclaimed_;
  log_debug("transport: {} is connected by {}", peer.name, peer.links);
  give_turn(id, connection);
}

void TlsTransport::take_connection(TlsGreeter::News news) {
  Peer* peer = nullptr;
  if (news.dial != 0) {
    peer = find(PeerId{news.dial});
    if (peer == nullptr || peer->state != Peer::State::kOpen) return;  // closed meanwhile
    if (!news.socket) return lose(*peer, code_of(news.error), news.error.message);
  } else if (const auto found = peer_by_end_.find(news.end_id);
             found != peer_by_end_.end() && found->second->connection == 0) {
    peer = found->second;
    if (peer->name != news.name) {
      log_warn("transport: dropped a connection of {}, whose end is {}'s", news.name, peer->name);
      return;
    }
  }
  if (peer == nullptr && num_unclaimed_ >= kUnclaimedConnectionsMax) {
    log_warn("transport: dropped a connection of {}: {} others wait for a session", news.name,
             num_unclaimed_);
    return;
  }
  const uint64_t id = next_connection_++;
  Connection& connection = connections_[id];
  connection.socket = std::move(news.socket);
  connection.reader = std::make_unique<MessageReader>(pool_, message_bytes_max_);
  connection.socket->set_readable();  // OpenSSL may hold what came behind the greeting
  connection.end_id = news.end_id;
  connection.name = news.name;
  connection.unclaimed_since = Clock::now();
  ++num_unclaimed_;
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.u64 = id;
  CHECK(::epoll_ctl(epoll_fd_, EPOLL_CTL_ADD, connection.socket->fd(), &event) == 0);
  if (peer) claim(*peer, id, connection);
  give_turn(id, connection);
}

size_t TlsTransport::take_connections() {
  uint64_t count = 0;
  [[maybe_unused]] const ssize_t got = ::read(news_fd_, &count, sizeof count);
  std::vector<TlsGreeter::News> news = greeter_->take_news();
  for (TlsGreeter::News& one : news) take_connection(std::move(one));
  drop_unclaimed();
  return news.size();
}

void TlsTransport::drop_unclaimed() {
  const auto now = Clock::now();
  std::vector<uint64_t> late;
  for (const auto& [id, connection] : connections_) {
    if (connection.peer == nullptr && now - connection.unclaimed_since > kUnclaimedMax)
      late.push_back(id);
  }
  for (const uint64_t id : late) {
    log_warn("transport: dropped a connection of {} without a session", connections_.at(id).name);
    end_connection(id);
  }
}

// ---- Sending

Status TlsTransport::send(PeerId id, std::span<const std::byte> header, SharedBuffer payload,
                          size_t payload_bytes) {
  CHECK_LE(header.size(), kHeaderBytesMax);
  CHECK_LE(payload_bytes, payload ? payload->size() : 0);
  Peer* found = find(id);
  if (found == nullptr || found->state == Peer::State::kClosed)
    return Error{ErrorCode::kUnavailable,
                 fmt::format("send to {}: it was closed", found ? found->name : "a peer")};
  Peer& peer = *found;
  if (peer.state != Peer::State::kOpen)
    return Error{ErrorCode::kUnavailable,
                 fmt::format("send to {}: it is lost: {}", peer.name, peer.failure.message)};
  if (peer.sends.size() >= kSendsPerPeerMax)
    return Error{ErrorCode::kOverloaded,
                 fmt::format("send to {}: {} sends are under way", peer.name, peer.sends.size())};

  Send send;
  const MessagePrefix prefix{kMessageMagic, static_cast<uint32_t>(header.size()), payload_bytes};
  send.head.resize(sizeof prefix + header.size());
  std::memcpy(send.head.data(), &prefix, sizeof prefix);
  if (!header.empty()) std::memcpy(send.head.data() + sizeof prefix, header.data(), header.size());
  send.payload = std::move(payload);
  send.payload_bytes = payload_bytes;
  peer.sends.push_back(std::move(send));
  // With others before it, its turn comes with theirs.
  if (peer.connection == 0 || peer.sends.size() > 1) return {};
  Connection& connection = connections_.at(peer.connection);
  if (const Status status = write_some(connection); !status) {
    lose(peer, ErrorCode::kUnavailable, status.error().message);
    return Error{ErrorCode::kUnavailable,
                 fmt::format("send to {}: it is lost: {}", peer.name, peer.failure.message)};
  }
  watch_room(peer.connection, connection);
  return {};
}

// Until nothing is left, the socket takes no more, or others have their turn.
Status TlsTransport::write_some(Connection& connection) {
  if (connection.peer == nullptr) return {};
  std::deque<Send>& sends = connection.peer->sends;
  for (size_t written = 0; !sends.empty() && written < kTurnBytes;) {
    const auto bytes = write_record(connection, sends.front(), sends.size() == 1);
    if (!bytes) return bytes.error();
    if (*bytes == 0) return {};
    written += *bytes;
    sends.front().done += *bytes;
    if (sends.front().done == sends.front().bytes()) sends.pop_front();
  }
  return {};
}

// One record's worth of a message: called again with the same arguments if it moved nothing. Head
// and payload go together, so that a message of up to 16 KiB is one record, one system call.
Result<size_t> TlsTransport::write_record(Connection& connection, const Send& send, bool is_last) {
  TlsSocket& socket = *connection.socket;
  if (!socket.wants_to_write() && ++connection.records >= records_per_key_) {
    connection.records = 0;
    CHECK(SSL_key_update(&socket.ssl(), SSL_KEY_UPDATE_NOT_REQUESTED) == 1);
  }
  const size_t left = send.bytes() - send.done;
  const bool more = left > kRecordBytes || !is_last;
  const size_t bytes = std::min(left, kRecordBytes);
  if (send.done >= send.head.size())
    return socket.write({send.payload->data() + (send.done - send.head.size()), bytes}, more);
  const size_t of_head = std::min(send.head.size() - send.done, bytes);
  std::memcpy(record_.data(), send.head.data() + send.done, of_head);
  if (bytes > of_head) std::memcpy(record_.data() + of_head, send.payload->data(), bytes - of_head);
  return socket.write(std::span(record_).first(bytes), more);
}

// Asks the kernel for a word when the socket takes more, or for another turn if it does already.
void TlsTransport::watch_room(uint64_t id, Connection& connection) {
  const bool is_blocked = connection.socket->wants_to_write();
  if (is_blocked != connection.watches_room) {
    connection.watches_room = is_blocked;
    epoll_event event{};
    event.events = EPOLLIN | (is_blocked ? EPOLLOUT : 0u);
    event.data.u64 = id;
    ::epoll_ctl(epoll_fd_, EPOLL_CTL_MOD, connection.socket->fd(), &event);
  }
  if (!is_blocked && connection.peer && !connection.peer->sends.empty()) give_turn(id, connection);
}

// ---- Receiving

// Until nothing is left or others have their turn. kInvalid for what is no message of ours.
Status TlsTransport::read_some(Connection& connection) {
  const size_t before = ready_.size();
  for (size_t bytes = 0; connection.socket->may_read() && bytes < kTurnBytes &&
                         ready_.size() - before < kTurnMessages;) {
    const bool keep = connection.peer != nullptr;
    const auto got = connection.socket->read(connection.reader->room(keep));
    if (!got) return got.error();
    if (*got == 0) return {};
    bytes += *got;
    auto message = connection.reader->filled(*got);
    if (!message) return message.error();
    if (*message && keep)
      ready_.push_back({Event::Kind::kMessage, connection.peer->id, std::move(*message), {}});
  }
  return {};
}

// ---- Progress

void TlsTransport::give_turn(uint64_t id, Connection& connection) {
  if (connection.is_in_turn) return;
  connection.is_in_turn = true;
  turns_.push_back(id);
}

// Writes and reads what can be; how many messages and ends came of it.
size_t TlsTransport::take_turns() {
  const size_t before = ready_.size();
  std::vector<uint64_t> turns;
  turns.swap(turns_);
  for (const uint64_t id : turns) {
    const auto found = connections_.find(id);
    if (found == connections_.end()) continue;
    Connection& connection = found->second;
    connection.is_in_turn = false;
    // What came before an end comes first.
    Status status = read_some(connection);
    if (status) status = write_some(connection);
    if (!status) {
      lose_connection(id, status.error());
      continue;
    }
    watch_room(id, connection);
    if (connection.socket->may_read()) give_turn(id, connection);
  }
  return ready_.size() - before;
}

size_t TlsTransport::handle_events(const epoll_event* events, int count, bool* woken) {
  bool has_news = false;
  for (int i = 0; i < count; ++i) {
    const uint64_t what = events[i].data.u64;
    if (what == kWatchWake) {
      if (woken) *woken = true;
    } else if (what == kWatchNews) {
      has_news = true;
    } else if (const auto found = connections_.find(what); found != connections_.end()) {
      found->second.socket->set_readable();
      give_turn(what, found->second);
    }
  }
  const size_t before = ready_.size();
  if (has_news) take_connections();
  take_turns();
  return ready_.size() - before;
}

// Looks at everything without waiting; how many events came of it. The wake is wait()'s.
size_t TlsTransport::advance(bool* woken) {
  epoll_event events[32];
  const int count = ::epoll_wait(epoll_fd_, events, std::size(events), 0);
  return handle_events(events, count, woken);
}

std::optional<Event> TlsTransport::poll() {
  if (ready_.empty()) advance();
  if (ready_.empty()) return std::nullopt;
  Event event = std::move(ready_.front());
  ready_.pop_front();
  return event;
}

void TlsTransport::wait(std::chrono::microseconds timeout) {
  const auto deadline = Clock::now() + timeout;
  const auto take_wake = [this] {
    uint64_t count = 0;
    return ::read(wake_fd_, &count, sizeof count) > 0;
  };
  bool woken = false;
  if (!ready_.empty() || advance(&woken) > 0 || woken) {
    if (woken) take_wake();
    return;
  }
  if (spin_) {
    const auto spin_end = std::min(deadline, Clock::now() + kSpinMax);
    while (Clock::now() < spin_end) {
      if (advance(&woken) > 0) return;
      if (woken) {
        take_wake();
        return;
      }
    }
  }
  for (;;) {
    const auto left = std::max<Clock::duration>(deadline - Clock::now(), {});
    timespec time{};
    if (turns_.empty()) {  // else it is known that there is more to do
      time.tv_sec = std::chrono::duration_cast<std::chrono::seconds>(left).count();
      time.tv_nsec = (left % std::chrono::seconds(1)).count();
    }
    epoll_event events[32];
    const int count = ::epoll_pwait2(epoll_fd_, events, std::size(events), &time, nullptr);
    const size_t came = handle_events(events, count, &woken);
    if (woken) take_wake();
    if (came > 0 || woken || Clock::now() >= deadline) return;
  }
}

void TlsTransport::wake() {
  const uint64_t one = 1;
  [[maybe_unused]] const ssize_t written = ::write(wake_fd_, &one, sizeof one);
}

// ---- Ends

void TlsTransport::end_connection(uint64_t id) {
  const auto found = connections_.find(id);
  CHECK(found != connections_.end());
  if (found->second.peer)
    found->second.peer->connection = 0;
  else
    --num_unclaimed_;
  connections_.erase(found);  // closing takes it out of the epoll set
}

void TlsTransport::lose(Peer& peer, ErrorCode code, const std::string& reason) {
  CHECK(peer.state == Peer::State::kOpen);
  peer.state = Peer::State::kLost;
  peer.failure = {code, reason};
  peer_by_end_.erase(peer.end_id);
  peer.sends.clear();
  if (peer.connection != 0) end_connection(peer.connection);
  ready_.push_back({Event::Kind::kPeerLost, peer.id, nullptr,
                    Error{code, fmt::format("lost {}: {}", peer.name, reason)}});
}

void TlsTransport::lose_connection(uint64_t id, const Error& error) {
  Connection& connection = connections_.at(id);
  if (connection.peer) {
    return lose(*connection.peer, code_of(error), error.message);
  }
  log_debug("transport: a connection of {} without a session ended: {}", connection.name,
            error.message);
  end_connection(id);
}

void TlsTransport::close(PeerId id) {
  Peer* peer = find(id);
  if (peer == nullptr || peer->state == Peer::State::kClosed) return;
  if (peer->state == Peer::State::kOpen) peer_by_end_.erase(peer->end_id);
  peer->state = Peer::State::kClosed;
  peer->sends.clear();
  if (peer->connection != 0) end_connection(peer->connection);
  std::erase_if(ready_, [id](const Event& event) { return event.peer == id; });
}

std::string TlsTransport::selected_links(PeerId id) const {
  const Peer* peer = find(id);
  if (peer == nullptr || peer->state == Peer::State::kClosed) return "closed";
  return peer->links.empty() ? "tls" : peer->links;
}

}  // namespace

std::unique_ptr<Transport> make_tls_transport(const TlsOptions& options) {
  return std::make_unique<TlsTransport>(options);
}

}  // namespace atl::transport
