#include "transport/data/tls_greeter.h"

#include <fmt/format.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/crypto.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "base/log.h"
#include "transport/tls/tls_context.h"

namespace atl::transport {

namespace {

using Clock = std::chrono::steady_clock;

// Dialled ends that are not authenticated yet; more than coordinators ever are at once.
constexpr size_t kGuestsMax = 32;
// Connections that the data plane's thread has not asked for, because it computes.
constexpr size_t kNewsMax = 64;
// Watched beside guests, whose numbers begin at 1.
constexpr uint64_t kWatchListener = UINT64_MAX;
constexpr uint64_t kWatchWake = 0;

constexpr uint32_t kGreetingMagic = 0x314b4c41;  // "ALK1": raised with any change of the stream

// The dialling end's greeting.
struct Greeting {
  uint32_t magic;
  uint32_t zero;
  uint64_t end_id;  // of who dials
  std::byte token[16];
};
static_assert(sizeof(Greeting) == 32);
// The answer.
struct Answer {
  uint32_t magic;
  uint32_t zero;
  uint64_t end_id;
};
static_assert(sizeof(Answer) == 16);

template <typename T>
std::vector<std::byte> bytes_of(const T& value) {
  const auto* begin = reinterpret_cast<const std::byte*>(&value);
  return {begin, begin + sizeof value};
}

// TLS ends are told of at once; keepalive as UCX has it, for a link that is cut while it is idle.
void set_options(int fd) {
  const auto set = [fd](int level, int option, int value) {
    ::setsockopt(fd, level, option, &value, sizeof value);
  };
  set(IPPROTO_TCP, TCP_NODELAY, 1);
  set(SOL_SOCKET, SO_KEEPALIVE, 1);
  set(IPPROTO_TCP, TCP_KEEPIDLE, 1);
  set(IPPROTO_TCP, TCP_KEEPINTVL, 1);
  set(IPPROTO_TCP, TCP_KEEPCNT, 3);
}

using Addresses = std::unique_ptr<addrinfo, void (*)(addrinfo*)>;
Addresses resolve(const std::string& host, const std::string& port, int flags,
                  std::string* problem) {
  addrinfo hints{}, *found = nullptr;
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = flags | AI_NUMERICSERV;
  const int outcome =
      ::getaddrinfo(host.empty() ? nullptr : host.c_str(), port.c_str(), &hints, &found);
  if (outcome != 0) *problem = ::gai_strerror(outcome);
  return {outcome == 0 ? found : nullptr, ::freeaddrinfo};
}

}  // namespace

TlsGreeter::TlsGreeter(TlsGreeterOptions options, std::function<void()> on_news)
    : options_(std::move(options)), on_news_(std::move(on_news)) {
  epoll_fd_ = ::epoll_create1(EPOLL_CLOEXEC);
  wake_fd_ = ::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
  try {
    if (epoll_fd_ < 0 || wake_fd_ < 0)
      throw LoadError(fmt::format("cannot open event descriptors: {}", std::strerror(errno)));
    if (!options_.listen.empty()) open_listener();
  } catch (...) {
    for (const int fd : {epoll_fd_, wake_fd_, listen_fd_})
      if (fd >= 0) ::close(fd);
    throw;
  }
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.u64 = kWatchWake;
  CHECK(::epoll_ctl(epoll_fd_, EPOLL_CTL_ADD, wake_fd_, &event) == 0);
  event.data.u64 = kWatchListener;
  if (listen_fd_ >= 0) CHECK(::epoll_ctl(epoll_fd_, EPOLL_CTL_ADD, listen_fd_, &event) == 0);
  thread_ = std::thread([this] { run(); });
}

TlsGreeter::~TlsGreeter() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  const uint64_t one = 1;
  [[maybe_unused]] const ssize_t written = ::write(wake_fd_, &one, sizeof one);
  thread_.join();
  guests_.clear();
  for (const int fd : {epoll_fd_, wake_fd_, listen_fd_})
    if (fd >= 0) ::close(fd);
}

void TlsGreeter::open_listener() {
  const auto fail = [this](const std::string& why) {
    throw LoadError(fmt::format("cannot listen for data on {}: {}; choose another address or port",
                                options_.listen, why));
  };
  const size_t colon = options_.listen.rfind(':');
  if (colon == std::string::npos) fail("expected HOST:PORT");
  std::string host = options_.listen.substr(0, colon);
  if (host.size() > 2 && host.front() == '[' && host.back() == ']')
    host = host.substr(1, host.size() - 2);
  std::string problem;
  const std::string port = options_.listen.substr(colon + 1);
  const bool any_of_range = port == "0" && options_.ports.first > 0;
  int next = any_of_range ? options_.ports.first : 0;
  for (;; ++next) {
    const std::string tried = any_of_range ? std::to_string(next) : port;
    const Addresses found = resolve(host, tried, AI_PASSIVE, &problem);
    if (!found) fail(problem);
    if (listen_on(found->ai_addr, found->ai_addrlen)) break;
    const bool is_taken = errno == EADDRINUSE;
    if (!any_of_range || !is_taken) fail(std::strerror(errno));
    if (next == options_.ports.last) {
      fail(fmt::format("all ports of {} to {} are in use", options_.ports.first,
                       options_.ports.last));
    }
  }
  sockaddr_storage bound{};
  socklen_t bytes = sizeof bound;
  CHECK(::getsockname(listen_fd_, reinterpret_cast<sockaddr*>(&bound), &bytes) == 0);
  port_ = ntohs(bound.ss_family == AF_INET6 ? reinterpret_cast<sockaddr_in6&>(bound).sin6_port
                                            : reinterpret_cast<sockaddr_in&>(bound).sin_port);
  char text[NI_MAXHOST];
  CHECK(::getnameinfo(reinterpret_cast<sockaddr*>(&bound), bytes, text, sizeof text, nullptr, 0,
                      NI_NUMERICHOST) == 0);
  host_ = text;
  if (host_ == "0.0.0.0" || host_ == "::") host_.clear();
}

bool TlsGreeter::listen_on(const sockaddr* address, socklen_t bytes) {
  listen_fd_ = ::socket(address->sa_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (listen_fd_ < 0) return false;
  const int one = 1;
  ::setsockopt(listen_fd_, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
  if (::bind(listen_fd_, address, bytes) == 0 && ::listen(listen_fd_, 64) == 0) return true;
  const int why = errno;
  ::close(std::exchange(listen_fd_, -1));
  errno = why;
  return false;
}

void TlsGreeter::dial(uint32_t number, TlsAddress address, uint64_t end_id, std::string name) {
  CHECK_GT(number, 0u);
  {
    const std::lock_guard lock(mutex_);
    dials_.push_back({number, std::move(address), end_id, std::move(name)});
  }
  const uint64_t one = 1;
  [[maybe_unused]] const ssize_t written = ::write(wake_fd_, &one, sizeof one);
}

std::vector<TlsGreeter::News> TlsGreeter::take_news() {
  const std::lock_guard lock(mutex_);
  return std::exchange(news_, {});
}

size_t TlsGreeter::num_news() {
  const std::lock_guard lock(mutex_);
  return news_.size();
}

void TlsGreeter::run() {
  for (;;) {
    std::vector<Dial> dials;
    {
      const std::lock_guard lock(mutex_);
      if (stopping_) return;
      dials.swap(dials_);
    }
    for (const Dial& dial : dials) begin(dial);
    epoll_event events[64];
    const int count = ::epoll_wait(epoll_fd_, events, std::size(events), wait_ms());
    for (int i = 0; i < count; ++i) {
      const uint64_t what = events[i].data.u64;
      if (what == kWatchWake) {
        uint64_t times = 0;
        [[maybe_unused]] const ssize_t got = ::read(wake_fd_, &times, sizeof times);
      } else if (what == kWatchListener) {
        accept_all();
      } else {
        advance(what);
      }
    }
    drop_late();
  }
}

int TlsGreeter::wait_ms() const {
  auto first = Clock::time_point::max();
  for (const auto& [id, guest] : guests_) first = std::min(first, guest.deadline);
  if (first == Clock::time_point::max()) return -1;
  const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(first - Clock::now());
  return static_cast<int>(std::clamp<int64_t>(left.count() + 1, 0, 60'000));
}

void TlsGreeter::accept_all() {
  // What is left is told again; others' turns come in between.
  for (int i = 0; i < 16; ++i) {
    sockaddr_storage from{};
    socklen_t bytes = sizeof from;
    const int fd = ::accept4(listen_fd_, reinterpret_cast<sockaddr*>(&from), &bytes,
                             SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd < 0) {
      if (errno == EAGAIN || errno == EWOULDBLOCK) return;
      if (errno == EINTR || errno == ECONNABORTED) continue;
      strangers_.tell("somebody", fmt::format("accept: {}", std::strerror(errno)));
      // Out of descriptors, say: the listener stays readable.
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
      return;
    }
    set_options(fd);
    Guest guest;
    guest.who = text_of_address(&from, bytes);
    guest.socket = std::make_unique<TlsSocket>(
        fd, options_.keys->context()->new_server(TlsUse::kData, options_.peers));
    add(std::move(guest));
  }
}

void TlsGreeter::begin(const Dial& dial) {
  Guest guest;
  guest.state = Guest::State::kConnecting;
  guest.dial = dial.number;
  guest.wanted = dial;
  guest.who = fmt::format("{} at {}:{}", dial.name, dial.address.host, dial.address.port);
  std::string problem;
  const Addresses found =
      resolve(dial.address.host, std::to_string(dial.address.port), AI_NUMERICHOST, &problem);
  int fd = -1;
  if (found) fd = ::socket(found->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (found && fd < 0) problem = std::strerror(errno);
  if (fd >= 0) {
    set_options(fd);
    if (::connect(fd, found->ai_addr, found->ai_addrlen) != 0 && errno != EINPROGRESS) {
      problem = std::strerror(errno);
      ::close(fd);
      fd = -1;
    }
  }
  if (fd < 0) {
    const std::lock_guard lock(mutex_);
    news_.push_back({dial.number,
                     dial.end_id,
                     dial.name,
                     nullptr,
                     {ErrorCode::kUnavailable, fmt::format("dial {}:{}: {}", dial.address.host,
                                                           dial.address.port, problem)}});
    on_news_();
    return;
  }
  guest.socket = std::make_unique<TlsSocket>(
      fd, options_.keys->context()->new_client(TlsUse::kData, {dial.name}));
  add(std::move(guest));
}

void TlsGreeter::add(Guest guest) {
  const auto is_guest = [](const auto& entry) { return entry.second.dial == 0; };
  if (guest.dial == 0 &&
      static_cast<size_t>(std::count_if(guests_.begin(), guests_.end(), is_guest)) >= kGuestsMax) {
    const auto oldest = std::find_if(guests_.begin(), guests_.end(), is_guest);
    refuse(oldest->second, "too many are in their handshake, this was the oldest");
    guests_.erase(oldest);
  }
  guest.deadline = Clock::now() + options_.handshake_time;
  const uint64_t id = next_guest_++;
  Guest& added = guests_.emplace(id, std::move(guest)).first->second;
  epoll_event event{};
  event.events = added.watched = EPOLLIN | EPOLLOUT;
  event.data.u64 = id;
  if (::epoll_ctl(epoll_fd_, EPOLL_CTL_ADD, added.socket->fd(), &event) != 0) {
    const Error error{ErrorCode::kUnavailable, std::strerror(errno)};
    finish(id, &error);
  }
}

void TlsGreeter::advance(uint64_t id) {
  const auto found = guests_.find(id);
  if (found == guests_.end()) return;  // dropped since the kernel told of it
  Guest& guest = found->second;
  guest.socket->set_readable();
  Error error;
  switch (step(guest, &error)) {
    case Step::kWaits:
      return watch(id, guest);
    case Step::kDone:
      return finish(id, nullptr);
    case Step::kFailed:
      return finish(id, &error);
  }
}

// As far as it goes without waiting.
TlsGreeter::Step TlsGreeter::step(Guest& guest, Error* error) {
  const auto fail = [error](Error why) {
    *error = std::move(why);
    return Step::kFailed;
  };
  if (guest.state == Guest::State::kConnecting) {
    int problem = 0;
    socklen_t bytes = sizeof problem;
    ::getsockopt(guest.socket->fd(), SOL_SOCKET, SO_ERROR, &problem, &bytes);
    if (problem != 0) return fail({ErrorCode::kUnavailable, std::strerror(problem)});
    sockaddr_storage peer{};
    bytes = sizeof peer;
    if (::getpeername(guest.socket->fd(), reinterpret_cast<sockaddr*>(&peer), &bytes) != 0)
      return Step::kWaits;
    guest.state = Guest::State::kHandshake;
  }
  if (guest.state == Guest::State::kHandshake) {
    const auto done = guest.socket->shake_hands();
    if (!done) return fail(done.error());
    if (!*done) return Step::kWaits;
    auto name = peer_of(guest.socket->ssl(), TlsUse::kData);
    if (!name) return fail(name.error());
    guest.name = *name;
    guest.in.resize(guest.dial ? sizeof(Answer) : sizeof(Greeting));
    guest.state = guest.dial ? Guest::State::kSayHello : Guest::State::kHearHello;
    if (guest.dial) say(guest);
  }
  // Who dials says and hears, who was dialled hears and says.
  for (;;) {
    if (guest.state == Guest::State::kSayHello) {
      const auto sent =
          guest.socket->write(std::span(guest.out).subspan(guest.out_done), /*more=*/false);
      if (!sent) return fail(sent.error());
      if (*sent == 0) return Step::kWaits;
      guest.out_done += *sent;
      if (guest.out_done < guest.out.size()) continue;
      if (guest.dial == 0) return Step::kDone;
      guest.state = Guest::State::kHearHello;
    }
    const auto got = guest.socket->read(std::span(guest.in).subspan(guest.in_done));
    if (!got) return fail(got.error());
    if (*got == 0) return Step::kWaits;
    guest.in_done += *got;
    if (guest.in_done < guest.in.size()) continue;
    const auto heard = hear(guest);
    if (!heard) return fail(heard.error());
    if (guest.dial) return Step::kDone;
    say(guest);
    guest.state = Guest::State::kSayHello;
  }
}

void TlsGreeter::say(Guest& guest) {
  if (guest.dial) {
    Greeting greeting{kGreetingMagic, 0, options_.end_id, {}};
    std::memcpy(greeting.token, guest.wanted.address.token.data(), sizeof greeting.token);
    guest.out = bytes_of(greeting);
  } else {
    guest.out = bytes_of(Answer{kGreetingMagic, 0, options_.end_id});
  }
}

Result<bool> TlsGreeter::hear(Guest& guest) {
  const auto other_stream = [](uint32_t magic) {
    return Error{ErrorCode::kInvalid,
                 fmt::format("its stream begins with {:08x}, expected {:08x}: are both of the same "
                             "version?",
                             magic, kGreetingMagic)};
  };
  if (guest.dial) {
    Answer answer;
    std::memcpy(&answer, guest.in.data(), sizeof answer);
    if (answer.magic != kGreetingMagic) return other_stream(answer.magic);
    if (answer.end_id != guest.wanted.end_id)
      return Error{ErrorCode::kUnavailable,
                   "another process listens there than the one whose address it was"};
    return true;
  }
  Greeting greeting;
  std::memcpy(&greeting, guest.in.data(), sizeof greeting);
  if (greeting.magic != kGreetingMagic) return other_stream(greeting.magic);
  if (CRYPTO_memcmp(greeting.token, options_.token.data(), sizeof greeting.token) != 0)
    return Error{ErrorCode::kInvalid, "it shows another token than the one given to it"};
  if (greeting.end_id == 0) return Error{ErrorCode::kInvalid, "its end id is 0"};
  guest.wanted.end_id = greeting.end_id;
  return true;
}

void TlsGreeter::watch(uint64_t id, Guest& guest) {
  const bool writes = guest.state == Guest::State::kConnecting || guest.socket->wants_to_write();
  const uint32_t events = EPOLLIN | (writes ? EPOLLOUT : 0u);
  if (events == guest.watched) return;
  epoll_event event{};
  event.events = guest.watched = events;
  event.data.u64 = id;
  ::epoll_ctl(epoll_fd_, EPOLL_CTL_MOD, guest.socket->fd(), &event);
}

void TlsGreeter::drop_late() {
  const auto now = Clock::now();
  const Error late{ErrorCode::kTimeout,
                   fmt::format("no handshake within {} ms", options_.handshake_time.count())};
  for (auto it = guests_.begin(); it != guests_.end();) {
    const auto next = std::next(it);
    if (it->second.deadline <= now) finish(it->first, &late);
    it = next;
  }
}

// With a connection if there is no error. Only dials have news of failures.
void TlsGreeter::finish(uint64_t id, const Error* error) {
  const auto found = guests_.find(id);
  Guest& guest = found->second;
  ::epoll_ctl(epoll_fd_, EPOLL_CTL_DEL, guest.socket->fd(), nullptr);
  if (error && guest.dial == 0) {
    refuse(guest, error->message);
  } else if (guest.dial == 0 && num_news() >= kNewsMax) {
    refuse(guest, "too many connections are not taken up yet");
  } else {
    News news{guest.dial, guest.wanted.end_id, guest.name, nullptr, {}};
    if (error)
      news.error = {error->code, fmt::format("dial {}:{}: {}", guest.wanted.address.host,
                                             guest.wanted.address.port, error->message)};
    else
      news.socket = std::move(guest.socket);
    const std::lock_guard lock(mutex_);
    news_.push_back(std::move(news));
    on_news_();
  }
  guests_.erase(found);
}

void TlsGreeter::refuse(const Guest& guest, const std::string& why) {
  strangers_.tell(guest.name.empty() ? guest.who : fmt::format("{} ({})", guest.name, guest.who),
                  why);
}

}  // namespace atl::transport
