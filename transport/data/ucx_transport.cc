// Transport over UCX active messages. All state belongs to the thread that owns the transport;
// UCX's callbacks run inside ucp_worker_progress() and only mark records, reap() decides.
#include <fmt/core.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <ucp/api/ucp.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <deque>
#include <sstream>
#include <unordered_map>

#include "base/log.h"
#include "base/units.h"
#include "transport/data/end_address.h"
#include "transport/data/link_limits.h"
#include "transport/data/message_buffers.h"
#include "transport/data/transport.h"
#include "transport/data/ucx_log.h"

namespace atl::transport {

namespace {

using Clock = std::chrono::steady_clock;

// UCX can't be told to wake us when it has sends that wait for room in a peer's queue, and its
// descriptor may stay readable although nothing comes of it. After so many looks that brought
// nothing wait() looks once in a while, without the descriptor, and after so many of those tries it
// with the descriptor again: most often it was readable because of a message that had been seen
// already.
constexpr int kFruitlessMax = 16, kNapsMax = 20;
constexpr std::chrono::microseconds kNap{50};
constexpr std::chrono::seconds kCloseTimeMax{1};
// Every how many idle poll() calls the watched processes are looked at (one system call).
constexpr uint32_t kPollsPerWatch = 256;

constexpr unsigned kMessageAmId = 0;
constexpr unsigned kGoodbyeAmId = 1;

// In front of every active message's header: who sent it.
struct Prefix {
  uint32_t magic;
  uint32_t header_bytes;  // of the message's own header behind this prefix
  uint64_t end_id;
};
static_assert(sizeof(Prefix) == 16);
constexpr uint32_t kPrefixMagic = 0x314c5441;  // "ATL1"

std::string text_of(ucs_status_t status) {
  const std::string detail = take_ucx_last_error();
  return fmt::format("{}{}{}", ucs_status_string(status), detail.empty() ? "" : ": ", detail);
}

[[noreturn]] void fail_start(const std::string& what, const std::string& reason) {
  throw LoadError(
      fmt::format("UCX: cannot {}: {}; check --transport and the UCX_* variables (UCX_TLS={}, "
                  "UCX_NET_DEVICES={})",
                  what, reason, std::getenv("UCX_TLS") ? std::getenv("UCX_TLS") : "not set",
                  std::getenv("UCX_NET_DEVICES") ? std::getenv("UCX_NET_DEVICES") : "not set"));
}

void check_start(ucs_status_t status, const std::string& what) {
  if (status != UCS_OK) fail_start(what, text_of(status));
}

// One setting of ours. `key` is what ucp_config_modify() of UCX 1.13 takes (transport settings by
// the name in their table, without the transport's prefix); `variables` are the environment
// variables by which a user sets the same.
struct Setting {
  const char* key;
  std::string value;
  std::vector<const char*> variables;
};

std::vector<Setting> settings_for(const UcxOptions& options) {
  const bool one_host = options.kind != TransportKind::kTcp && options.net_device.empty();
  std::vector<Setting> settings = {
      // Without a named device a connection on one host used two tcp lanes and was 10 times slower.
      {"NET_DEVICES", options.net_device.empty() ? "lo" : options.net_device, {"UCX_NET_DEVICES"}},
      // Dead peers without our own watch (another host, another pid namespace).
      {"KEEPALIVE_INTERVAL", "1s", {"UCX_KEEPALIVE_INTERVAL"}},
      // Above it the receiver fetches. Shared memory: one copy by cma instead of two beats the
      // extra round trip from some 50 KB on; tcp: from 128-256 KB on (shared figures of a 2-core
      // Zen 3 guest: 57 KB eager 12 us, rendezvous 45-117 us).
      {"RNDV_THRESH", one_host ? "64k" : "256k", {"UCX_RNDV_THRESH"}},
  };
  // Not sysv: its segments are open to the user's group, posix's to the user alone.
  if (options.kind == TransportKind::kShm) settings.push_back({"TLS", "posix,cma", {"UCX_TLS"}});
  if (options.kind == TransportKind::kTcp) settings.push_back({"TLS", "tcp", {"UCX_TLS"}});
  if (options.kind == TransportKind::kAuto) settings.push_back({"TLS", "^sysv", {"UCX_TLS"}});
  if (options.kind != TransportKind::kTcp) {
    // posix and sysv don't offer themselves to endpoints with peer error handling otherwise.
    settings.push_back(
        {"MM_ERROR_HANDLING",
         "y",
         {"UCX_MM_ERROR_HANDLING", "UCX_POSIX_ERROR_HANDLING", "UCX_SYSV_ERROR_HANDLING"}});
  }
  if (options.kind != TransportKind::kShm) {
    settings.push_back({"TX_SEG_SIZE", "64k", {"UCX_TCP_TX_SEG_SIZE"}});
    settings.push_back({"RX_SEG_SIZE", "128k", {"UCX_TCP_RX_SEG_SIZE"}});
    // A cut link on an idle connection is noticed in 4 s instead of 17.
    settings.push_back({"KEEPIDLE", "1s", {"UCX_TCP_KEEPIDLE"}});
    settings.push_back({"KEEPINTVL", "1s", {"UCX_TCP_KEEPINTVL"}});
    settings.push_back({"KEEPCNT", "3", {"UCX_TCP_KEEPCNT"}});
    if (options.ports.first > 0) {
      settings.push_back({"PORT_RANGE",
                          fmt::format("{}-{}", options.ports.first, options.ports.last),
                          {"UCX_TCP_PORT_RANGE"}});
    }
  }
  return settings;
}

ucp_context_h open_context(const UcxOptions& options) {
  ucp_config_t* config = nullptr;
  check_start(ucp_config_read(nullptr, nullptr, &config), "read its configuration");
  std::unique_ptr<ucp_config_t, void (*)(ucp_config_t*)> release(config, ucp_config_release);
  for (const Setting& setting : settings_for(options)) {
    const bool set_by_user = std::any_of(setting.variables.begin(), setting.variables.end(),
                                         [](const char* name) { return std::getenv(name); });
    if (set_by_user) continue;
    check_start(ucp_config_modify(config, setting.key, setting.value.c_str()),
                fmt::format("set {}={}", setting.key, setting.value));
  }
  ucp_params_t params{};
  params.field_mask = UCP_PARAM_FIELD_FEATURES | UCP_PARAM_FIELD_NAME;
  params.features = UCP_FEATURE_AM | UCP_FEATURE_WAKEUP;
  params.name = "atoll";
  ucp_context_h context = nullptr;
  check_start(ucp_init(&params, config, &context), "start");
  return context;
}

// "posix, cma" from the lanes that ucp_ep_print_info() lists, the active messages' lane first:
//   lane[0]:  1:posix/memory.0 md[1]  -> md[1]/posix/sysdev[255] am am_bw#0 keepalive
// (UCX 1.13's ucp_ep_query() doesn't name transports.)
std::string links_of(const std::string& info) {
  std::vector<std::string> links;
  std::istringstream lines(info);
  for (std::string line; std::getline(lines, line);) {
    std::istringstream words(line);
    std::string hash, lane, link, word;
    if (!(words >> hash >> lane >> link) || !lane.starts_with("lane[")) continue;
    bool is_am = false, carries_data = false;
    while (words >> word) {
      is_am |= word == "am";
      carries_data |= word == "am" || word.starts_with("am_bw") || word.starts_with("rma");
    }
    if (!carries_data) continue;
    link = link.substr(link.find(':') + 1);
    link = link.substr(0, link.rfind('.'));
    if (link.ends_with("/memory")) link.resize(link.size() - strlen("/memory"));
    if (std::find(links.begin(), links.end(), link) != links.end()) continue;
    links.insert(is_am ? links.begin() : links.end(), link);
  }
  std::string text;
  for (const std::string& link : links) text += (text.empty() ? "" : ", ") + link;
  return text;
}

class UcxTransport final : public Transport {
 public:
  explicit UcxTransport(const UcxOptions& options);
  ~UcxTransport() override;

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
  struct Peer {
    enum class State : uint8_t { kOpen, kFailing, kLost, kClosed };
    UcxTransport* owner = nullptr;
    PeerId id;
    std::string name;
    uint64_t end_id = 0;
    State state = State::kOpen;
    bool is_set_up = false;  // something has come from it or has gone to it
    ucp_ep_h ep = nullptr;
    int pidfd = -1;         // of the peer's process, if it is on this host
    size_t num_sends = 0;   // under way
    bool is_ended = false;  // UCX will not call back about it any more
    Error failure;          // kFailing, kLost
  };
  struct Send {
    Peer* peer = nullptr;
    std::vector<std::byte> header;  // prefix and header; UCX reads it until the send is done
    SharedBuffer payload;
  };
  struct Receive {  // a rendezvous under way
    Peer* peer = nullptr;
    std::unique_ptr<PooledMessage> message;
    ucs_status_t status = UCS_INPROGRESS;
  };

  static ucs_status_t on_message(void* self, const void* header, size_t header_bytes, void* data,
                                 size_t payload_bytes, const ucp_am_recv_param_t* param) noexcept;
  static ucs_status_t on_goodbye(void* self, const void* header, size_t header_bytes, void* data,
                                 size_t payload_bytes, const ucp_am_recv_param_t* param) noexcept;
  static void on_sent(void* request, ucs_status_t status, void* send) noexcept;
  static void on_received(void* request, ucs_status_t status, size_t bytes, void* receive) noexcept;
  static void on_peer_error(void* peer, ucp_ep_h ep, ucs_status_t status) noexcept;

  ucs_status_t take_message(const void* header, size_t header_bytes, void* data,
                            size_t payload_bytes, const ucp_am_recv_param_t* param);
  // The open peer that a message's prefix names; null (counted, logged once) for strangers.
  Peer* sender_of(const void* header, size_t header_bytes);
  void mark_failing(Peer& peer, ErrorCode code, std::string message);

  unsigned advance();  // progress and reap; how much happened
  unsigned reap();
  void deliver_received();
  void lose_failing();
  void end_connection(Peer& peer);
  void say_goodbye(Peer& peer);
  void release(Send* send);
  Send* free_send();
  bool sleep_until(Clock::time_point deadline);  // true if woken by wake()
  void nap(Clock::time_point deadline);          // ends early by wake() only
  bool take_events(int timeout_ms);
  bool handle_events(const epoll_event* events, int num_events);
  void watch(int fd, uint64_t what);
  void set_handler(unsigned id, ucp_am_recv_callback_t callback, uint32_t flags);

  // Null for one that was closed and forgotten.
  Peer* find(PeerId id) const {
    CHECK(id.value >= 1 && id.value < next_peer_);
    const auto found = peers_.find(id.value);
    return found == peers_.end() ? nullptr : found->second.get();
  }
  void forget_closed();

  static constexpr uint64_t kWatchUcx = 0;
  static constexpr uint64_t kWatchWake = UINT64_MAX;

  const bool spin_;
  const size_t message_bytes_max_;
  const uint64_t end_id_ = random_end_id();
  const Prefix goodbye_{kPrefixMagic, 0, end_id_};
  const ProcessName process_ = this_process();
  ucp_context_h context_ = nullptr;
  ucp_worker_h worker_ = nullptr;
  int wake_fd_ = -1;
  int epoll_fd_ = -1;  // UCX's event fd, wake_fd_ and the watched processes
  uint32_t idle_polls_ = 0;
  uint64_t num_strangers_ = 0;

  uint32_t next_peer_ = 1;
  std::unordered_map<uint32_t, std::unique_ptr<Peer>> peers_;  // by PeerId
  std::unordered_map<uint64_t, Peer*> peer_by_end_;
  std::vector<Peer*> failing_;
  std::deque<Event> ready_;
  std::shared_ptr<BufferPool> pool_ = std::make_shared<BufferPool>();
  std::vector<std::unique_ptr<Send>> sends_;
  std::vector<Send*> free_sends_;
  std::vector<Send*> done_sends_;
  std::vector<std::unique_ptr<Receive>> receives_;
};

UcxTransport::UcxTransport(const UcxOptions& options)
    : spin_(options.spin),
      message_bytes_max_(options.message_bytes_max ? options.message_bytes_max
                                                   : kMessageBytesDefault) {
  route_ucx_log();
  take_ucx_last_error();
  try {
    context_ = open_context(options);
    ucp_worker_params_t params{};
    params.field_mask = UCP_WORKER_PARAM_FIELD_THREAD_MODE;
    params.thread_mode = UCS_THREAD_MODE_SINGLE;
    check_start(ucp_worker_create(context_, &params, &worker_), "open its interfaces");
    ucp_worker_attr_t attributes{};
    attributes.field_mask = UCP_WORKER_ATTR_FIELD_MAX_AM_HEADER;
    check_start(ucp_worker_query(worker_, &attributes), "query its limits");
    if (attributes.max_am_header < sizeof(Prefix) + kHeaderBytesMax)
      fail_start("carry our headers",
                 fmt::format("at most {} bytes, {} needed", attributes.max_am_header,
                             sizeof(Prefix) + kHeaderBytesMax));
    set_handler(kMessageAmId, on_message, UCP_AM_FLAG_WHOLE_MSG);
    set_handler(kGoodbyeAmId, on_goodbye, UCP_AM_FLAG_WHOLE_MSG);
    int ucx_fd = -1;
    check_start(ucp_worker_get_efd(worker_, &ucx_fd), "get its event descriptor");
    wake_fd_ = ::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    epoll_fd_ = ::epoll_create1(EPOLL_CLOEXEC);
    if (wake_fd_ < 0 || epoll_fd_ < 0) fail_start("open event descriptors", strerror(errno));
    watch(ucx_fd, kWatchUcx);
    watch(wake_fd_, kWatchWake);
  } catch (...) {
    if (worker_) ucp_worker_destroy(worker_);
    if (context_) ucp_cleanup(context_);
    if (wake_fd_ >= 0) ::close(wake_fd_);
    if (epoll_fd_ >= 0) ::close(epoll_fd_);
    throw;
  }
}

UcxTransport::~UcxTransport() {
  for (auto& [id, peer] : peers_) close(peer->id);
  // Whatever UCX still held is let go by this; only then may buffers be freed.
  ucp_worker_destroy(worker_);
  ucp_cleanup(context_);
  ::close(epoll_fd_);
  ::close(wake_fd_);
}

void UcxTransport::set_handler(unsigned id, ucp_am_recv_callback_t callback, uint32_t flags) {
  ucp_am_handler_param_t param{};
  param.field_mask = UCP_AM_HANDLER_PARAM_FIELD_ID | UCP_AM_HANDLER_PARAM_FIELD_FLAGS |
                     UCP_AM_HANDLER_PARAM_FIELD_CB | UCP_AM_HANDLER_PARAM_FIELD_ARG;
  param.id = id;
  param.flags = flags;
  param.cb = callback;
  param.arg = this;
  check_start(ucp_worker_set_am_recv_handler(worker_, &param), "set the message handler");
}

void UcxTransport::watch(int fd, uint64_t what) {
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.u64 = what;
  if (::epoll_ctl(epoll_fd_, EPOLL_CTL_ADD, fd, &event) != 0)
    log_warn("transport: cannot watch descriptor {}: {}", fd, strerror(errno));
}

std::vector<std::byte> UcxTransport::address() const {
  ucp_address_t* native = nullptr;
  size_t bytes = 0;
  const ucs_status_t status = ucp_worker_get_address(worker_, &native, &bytes);
  if (status != UCS_OK) fail_start("tell its address", text_of(status));
  EndAddress address{EndAddress::Kind::kUcx, end_id_, process_, {}};
  const auto* data = reinterpret_cast<const std::byte*>(native);
  address.native.assign(data, data + bytes);
  ucp_worker_release_address(worker_, native);
  return encode_address(address);
}

Result<PeerId> UcxTransport::connect(std::span<const std::byte> bytes, const std::string& name) {
  auto address = decode_address(bytes, EndAddress::Kind::kUcx);
  if (!address) return Error{address.error().code, name + ": " + address.error().message};
  if (address->end_id == end_id_ || peer_by_end_.contains(address->end_id))
    return Error{
        ErrorCode::kInvalid,
        fmt::format("{}: transport address: {}", name,
                    address->end_id == end_id_ ? "is this end's own" : "is connected already")};
  forget_closed();
  auto peer = std::make_unique<Peer>();
  peer->owner = this;
  peer->id = PeerId{next_peer_};
  peer->name = name;
  peer->end_id = address->end_id;
  const ProcessName& process = address->process;
  const bool watchable =
      process.host != 0 && process.host == process_.host && process.pid != process_.pid;
  if (watchable) {
    peer->pidfd = static_cast<int>(::syscall(SYS_pidfd_open, static_cast<pid_t>(process.pid), 0));
    if (start_time_of(process.pid) != process.start_time) {
      if (peer->pidfd >= 0) ::close(peer->pidfd);
      return Error{ErrorCode::kUnavailable,
                   fmt::format("connect {}: its process {} has ended", name, process.pid)};
    }
  }

  ucp_ep_params_t params{};
  params.field_mask = UCP_EP_PARAM_FIELD_REMOTE_ADDRESS | UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE |
                      UCP_EP_PARAM_FIELD_ERR_HANDLER;
  params.address = reinterpret_cast<const ucp_address_t*>(address->native.data());
  params.err_mode = UCP_ERR_HANDLING_MODE_PEER;
  params.err_handler.cb = on_peer_error;
  params.err_handler.arg = peer.get();
  take_ucx_last_error();
  const ucs_status_t status = ucp_ep_create(worker_, &params, &peer->ep);
  if (status != UCS_OK) {
    if (peer->pidfd >= 0) ::close(peer->pidfd);
    return Error{ErrorCode::kUnavailable,
                 fmt::format("connect {}: UCX: {}; do both sides use the same transport?", name,
                             text_of(status))};
  }
  if (peer->pidfd >= 0) watch(peer->pidfd, peer->id.value);
  const PeerId id = peer->id;
  ++next_peer_;
  peer_by_end_[peer->end_id] = peer.get();
  peers_[id.value] = std::move(peer);
  failing_.reserve(peers_.size());
  log_debug("transport: connected {} by {}", name, selected_links(id));
  return id;
}

// A node that is started again and again is a new peer each time.
void UcxTransport::forget_closed() {
  std::erase_if(peers_, [this](const auto& entry) {
    const Peer& peer = *entry.second;
    return peer.state == Peer::State::kClosed && peer.is_ended && peer.num_sends == 0 &&
           std::none_of(receives_.begin(), receives_.end(),
                        [&](const auto& receive) { return receive->peer == &peer; }) &&
           std::find(failing_.begin(), failing_.end(), &peer) == failing_.end();
  });
}

std::string UcxTransport::selected_links(PeerId id) const {
  const Peer* found = find(id);
  if (found == nullptr || found->ep == nullptr) return "closed";
  const Peer& peer = *found;
  char* text = nullptr;
  size_t bytes = 0;
  FILE* stream = ::open_memstream(&text, &bytes);
  if (stream == nullptr) return "unknown";
  ucp_ep_print_info(peer.ep, stream);
  std::fclose(stream);
  const std::string info(text, bytes);
  std::free(text);
  return links_of(info);
}

UcxTransport::Send* UcxTransport::free_send() {
  if (free_sends_.empty()) {
    sends_.push_back(std::make_unique<Send>());
    free_sends_.reserve(sends_.size());
    done_sends_.reserve(sends_.size());
    return sends_.back().get();
  }
  Send* send = free_sends_.back();
  free_sends_.pop_back();
  return send;
}

void UcxTransport::release(Send* send) {
  --send->peer->num_sends;
  send->peer = nullptr;
  send->payload.reset();
  free_sends_.push_back(send);
}

Status UcxTransport::send(PeerId id, std::span<const std::byte> header, SharedBuffer payload,
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
  if (peer.num_sends >= kSendsPerPeerMax)
    return Error{ErrorCode::kOverloaded,
                 fmt::format("send to {}: {} sends are under way", peer.name, peer.num_sends)};

  Send* send = free_send();
  send->peer = &peer;
  send->header.resize(sizeof(Prefix) + header.size());
  const Prefix prefix{kPrefixMagic, static_cast<uint32_t>(header.size()), end_id_};
  std::memcpy(send->header.data(), &prefix, sizeof prefix);
  if (!header.empty())
    std::memcpy(send->header.data() + sizeof prefix, header.data(), header.size());
  send->payload = std::move(payload);
  ++peer.num_sends;

  ucp_request_param_t param{};
  param.op_attr_mask =
      UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA | UCP_OP_ATTR_FIELD_MEMORY_TYPE;
  param.cb.send = on_sent;
  param.user_data = send;
  param.memory_type = UCS_MEMORY_TYPE_HOST;
  const std::byte* data = payload_bytes > 0 ? send->payload->data() : nullptr;
  ucs_status_ptr_t request = ucp_am_send_nbx(peer.ep, kMessageAmId, send->header.data(),
                                             send->header.size(), data, payload_bytes, &param);
  if (request == nullptr) {
    peer.is_set_up = true;
    release(send);
    return {};
  }
  if (!UCS_PTR_IS_ERR(request)) return {};  // on_sent() will be called

  const ucs_status_t status = UCS_PTR_STATUS(request);
  release(send);
  if (status == UCS_ERR_NO_MEMORY || status == UCS_ERR_NO_RESOURCE)
    return Error{ErrorCode::kOverloaded,
                 fmt::format("send to {}: UCX: {}", peer.name, text_of(status))};
  mark_failing(peer, ErrorCode::kUnavailable, fmt::format("UCX: {}", text_of(status)));
  return Error{ErrorCode::kUnavailable,
               fmt::format("send to {}: it is lost: {}", peer.name, peer.failure.message)};
}

void UcxTransport::on_sent(void* request, ucs_status_t status, void* user_data) noexcept {
  // A failed send needs no word of its own: its peer's error handler is called as well.
  auto* send = static_cast<Send*>(user_data);
  ucp_request_free(request);
  if (status == UCS_OK) send->peer->is_set_up = true;
  send->peer->owner->done_sends_.push_back(send);  // reserved: doesn't allocate
}

void UcxTransport::on_peer_error(void* arg, ucp_ep_h, ucs_status_t status) noexcept {
  auto* peer = static_cast<Peer*>(arg);
  try {
    peer->owner->mark_failing(*peer, ErrorCode::kUnavailable,
                              fmt::format("UCX: {}", ucs_status_string(status)));
  } catch (...) {
    std::terminate();  // no memory for one line
  }
}

void UcxTransport::mark_failing(Peer& peer, ErrorCode code, std::string message) {
  if (peer.state != Peer::State::kOpen) return;
  peer.state = Peer::State::kFailing;
  peer.failure = {code, std::move(message)};
  failing_.push_back(&peer);
}

UcxTransport::Peer* UcxTransport::sender_of(const void* header, size_t header_bytes) {
  Prefix prefix{};
  if (header_bytes >= sizeof prefix) std::memcpy(&prefix, header, sizeof prefix);
  if (prefix.magic == kPrefixMagic && prefix.header_bytes == header_bytes - sizeof prefix &&
      prefix.header_bytes <= kHeaderBytesMax) {
    const auto found = peer_by_end_.find(prefix.end_id);
    if (found != peer_by_end_.end() && found->second->state == Peer::State::kOpen)
      return found->second;
  }
  if (++num_strangers_ == 1)
    log_info("transport: dropped a message of {} header bytes from end {:016x}, no peer of ours",
             header_bytes, prefix.end_id);
  return nullptr;
}

ucs_status_t UcxTransport::on_message(void* self, const void* header, size_t header_bytes,
                                      void* data, size_t payload_bytes,
                                      const ucp_am_recv_param_t* param) noexcept {
  try {
    return static_cast<UcxTransport*>(self)->take_message(header, header_bytes, data, payload_bytes,
                                                          param);
  } catch (const std::exception& e) {
    try {
      log_error("transport: dropped a message of {} bytes: {}", payload_bytes, e.what());
    } catch (...) {
    }
    return UCS_OK;
  }
}

ucs_status_t UcxTransport::take_message(const void* header, size_t header_bytes, void* data,
                                        size_t payload_bytes, const ucp_am_recv_param_t* param) {
  Peer* peer = sender_of(header, header_bytes);
  if (peer == nullptr) return UCS_OK;
  peer->is_set_up = true;
  if (payload_bytes > message_bytes_max_) {
    mark_failing(*peer, ErrorCode::kInvalid,
                 fmt::format("it sent a message of {} bytes, at most {} are allowed", payload_bytes,
                             message_bytes_max_));
    return UCS_OK;
  }
  const std::span own_header(static_cast<const std::byte*>(header) + sizeof(Prefix),
                             header_bytes - sizeof(Prefix));
  auto message = std::make_unique<PooledMessage>(pool_, own_header, payload_bytes);
  if (!(param->recv_attr & UCP_AM_RECV_ATTR_FLAG_RNDV)) {
    if (payload_bytes > 0) std::memcpy(message->payload_data(), data, payload_bytes);
    ready_.push_back({Event::Kind::kMessage, peer->id, std::move(message), {}});
    return UCS_OK;
  }

  receives_.push_back(std::make_unique<Receive>());
  Receive* receive = receives_.back().get();
  receive->peer = peer;
  receive->message = std::move(message);
  ucp_request_param_t receive_param{};
  receive_param.op_attr_mask =
      UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA | UCP_OP_ATTR_FIELD_MEMORY_TYPE;
  receive_param.cb.recv_am = on_received;
  receive_param.user_data = receive;
  receive_param.memory_type = UCS_MEMORY_TYPE_HOST;
  ucs_status_ptr_t request = ucp_am_recv_data_nbx(worker_, data, receive->message->payload_data(),
                                                  payload_bytes, &receive_param);
  if (request != nullptr && UCS_PTR_IS_ERR(request)) {
    receives_.pop_back();
    log_error("transport: dropped a message of {} bytes from {}: UCX: {}", payload_bytes,
              peer->name, text_of(UCS_PTR_STATUS(request)));
    return UCS_OK;
  }
  if (request == nullptr) receive->status = UCS_OK;
  return UCS_INPROGRESS;
}

void UcxTransport::on_received(void* request, ucs_status_t status, size_t,
                               void* user_data) noexcept {
  ucp_request_free(request);
  static_cast<Receive*>(user_data)->status = status;
}

ucs_status_t UcxTransport::on_goodbye(void* self, const void* header, size_t header_bytes, void*,
                                      size_t, const ucp_am_recv_param_t*) noexcept {
  try {
    auto* transport = static_cast<UcxTransport*>(self);
    if (Peer* peer = transport->sender_of(header, header_bytes))
      transport->mark_failing(*peer, ErrorCode::kUnavailable, "it closed the connection");
  } catch (...) {
  }
  return UCS_OK;
}

unsigned UcxTransport::advance() {
  unsigned done = ucp_worker_progress(worker_);
  return done + reap();
}

unsigned UcxTransport::reap() {
  if (done_sends_.empty() && receives_.empty() && failing_.empty()) return 0;
  const size_t done = done_sends_.size() + failing_.size();
  for (Send* send : done_sends_) release(send);
  done_sends_.clear();
  const size_t num_ready = ready_.size();
  deliver_received();
  lose_failing();
  return static_cast<unsigned>(done + ready_.size() - num_ready);
}

void UcxTransport::deliver_received() {
  std::erase_if(receives_, [this](std::unique_ptr<Receive>& receive) {
    if (receive->status == UCS_INPROGRESS) return false;
    const bool wanted = receive->status == UCS_OK && receive->peer->state != Peer::State::kClosed;
    if (wanted)
      ready_.push_back({Event::Kind::kMessage, receive->peer->id, std::move(receive->message), {}});
    return true;
  });
}

void UcxTransport::lose_failing() {
  while (!failing_.empty()) {
    Peer& peer = *failing_.back();
    failing_.pop_back();
    if (peer.state != Peer::State::kFailing) continue;  // closed meanwhile
    peer.state = Peer::State::kLost;
    // Our refusal of its message: tell it.
    if (peer.failure.code == ErrorCode::kInvalid) say_goodbye(peer);
    end_connection(peer);
    Error error{peer.failure.code, fmt::format("lost {}: {}", peer.name, peer.failure.message)};
    ready_.push_back({Event::Kind::kPeerLost, peer.id, nullptr, std::move(error)});
  }
}

// Best effort, so that a peer can tell leaving from dying; small enough to go out at once. Not on a
// connection that may still be being set up: UCX 1.13 aborts the process ("pending_count == 0",
// wireup_ep.c) if a tcp peer resets it while something waits for the set-up.
void UcxTransport::say_goodbye(Peer& peer) {
  if (!peer.is_set_up) return;
  ucp_request_param_t param{};
  param.op_attr_mask = UCP_OP_ATTR_FIELD_FLAGS;
  param.flags = UCP_AM_SEND_FLAG_EAGER;
  ucs_status_ptr_t request =
      ucp_am_send_nbx(peer.ep, kGoodbyeAmId, &goodbye_, sizeof goodbye_, nullptr, 0, &param);
  if (request != nullptr && !UCS_PTR_IS_ERR(request)) ucp_request_free(request);
}

void UcxTransport::end_connection(Peer& peer) {
  if (peer.ep == nullptr) return;
  peer_by_end_.erase(peer.end_id);
  if (peer.pidfd >= 0) ::close(peer.pidfd);  // leaves the epoll set with it
  peer.pidfd = -1;
  ucp_request_param_t param{};
  param.op_attr_mask = UCP_OP_ATTR_FIELD_FLAGS;
  param.flags = UCP_EP_CLOSE_FLAG_FORCE;
  ucs_status_ptr_t request = ucp_ep_close_nbx(peer.ep, &param);
  peer.ep = nullptr;
  const auto deadline = Clock::now() + kCloseTimeMax;
  const auto is_closing = [&] {
    return request != nullptr && !UCS_PTR_IS_ERR(request) &&
           ucp_request_check_status(request) == UCS_INPROGRESS;
  };
  while ((is_closing() || peer.num_sends > 0) && Clock::now() < deadline) {
    ucp_worker_progress(worker_);
    for (Send* send : done_sends_) release(send);
    done_sends_.clear();
  }
  peer.is_ended = !is_closing();
  if (request != nullptr && !UCS_PTR_IS_ERR(request)) ucp_request_free(request);
  if (peer.num_sends > 0)
    log_warn("transport: {} sends to {} are still under way after its end", peer.num_sends,
             peer.name);
}

void UcxTransport::close(PeerId id) {
  Peer* found = find(id);
  if (found == nullptr || found->state == Peer::State::kClosed) return;
  Peer& peer = *found;
  const bool was_open = peer.state == Peer::State::kOpen;
  peer.state = Peer::State::kClosed;
  if (was_open) say_goodbye(peer);
  end_connection(peer);
  std::erase_if(ready_, [id](const Event& event) { return event.peer == id; });
}

std::optional<Event> UcxTransport::poll() {
  if (ready_.empty() && advance() == 0 && ++idle_polls_ % kPollsPerWatch == 0) take_events(0);
  if (ready_.empty()) return std::nullopt;
  Event event = std::move(ready_.front());
  ready_.pop_front();
  return event;
}

bool UcxTransport::handle_events(const epoll_event* events, int num_events) {
  bool woken = false;
  for (int i = 0; i < num_events; ++i) {
    const uint64_t what = events[i].data.u64;
    if (what == kWatchUcx) continue;
    if (what == kWatchWake) {
      woken = true;
      continue;
    }
    // The process has ended; what it sent before is still in our queues and comes first.
    while (ucp_worker_progress(worker_) > 0) {
    }
    if (Peer* peer = find(PeerId{static_cast<uint32_t>(what)})) {
      mark_failing(*peer, ErrorCode::kUnavailable, "its process has ended");
    }
  }
  reap();
  return woken;
}

// Looks at the watched descriptors; true if wake() was called. Leaves the wake for wait().
bool UcxTransport::take_events(int timeout_ms) {
  epoll_event events[16];
  const int num_events = ::epoll_wait(epoll_fd_, events, std::size(events), timeout_ms);
  return handle_events(events, num_events);
}

bool UcxTransport::sleep_until(Clock::time_point deadline) {
  const auto left = std::max<Clock::duration>(deadline - Clock::now(), {});
  timespec timeout{};
  timeout.tv_sec = std::chrono::duration_cast<std::chrono::seconds>(left).count();
  timeout.tv_nsec = (left % std::chrono::seconds(1)).count();
  epoll_event events[16];
  const int num_events = ::epoll_pwait2(epoll_fd_, events, std::size(events), &timeout, nullptr);
  return handle_events(events, num_events);
}

void UcxTransport::wait(std::chrono::microseconds timeout) {
  const auto deadline = Clock::now() + timeout;
  const auto take_wake = [this] {
    uint64_t count = 0;
    return ::read(wake_fd_, &count, sizeof count) > 0;
  };
  if (take_wake() || !ready_.empty() || advance() > 0) return;
  if (spin_) {
    const auto spin_end = std::min(deadline, Clock::now() + kSpinMax);
    while (Clock::now() < spin_end) {
      for (int i = 0; i < 16; ++i)
        if (advance() > 0) return;
      if (take_wake()) return;
    }
  }
  for (int fruitless = 0, naps = 0; Clock::now() < deadline;) {
    if (ucp_worker_arm(worker_) == UCS_OK && fruitless < kFruitlessMax) {
      if (sleep_until(deadline)) {
        take_wake();
        return;
      }
    } else if (fruitless >= kFruitlessMax) {
      nap(deadline);
      take_events(0);  // processes that have ended
      if (take_wake()) return;
      if (++naps == kNapsMax) fruitless = naps = 0;
    }
    ucp_worker_progress(worker_);
    if (reap() > 0 || !ready_.empty()) return;
    ++fruitless;
  }
}

void UcxTransport::nap(Clock::time_point deadline) {
  const auto left = std::min<Clock::duration>(kNap, deadline - Clock::now());
  const timespec time{0, std::max<long>(0, std::chrono::nanoseconds(left).count())};
  pollfd wake{wake_fd_, POLLIN, 0};
  ::ppoll(&wake, 1, &time, nullptr);
}

void UcxTransport::wake() {
  const uint64_t one = 1;
  [[maybe_unused]] const ssize_t written = ::write(wake_fd_, &one, sizeof one);
}

}  // namespace

std::unique_ptr<Transport> make_ucx_transport(const UcxOptions& options) {
  return std::make_unique<UcxTransport>(options);
}

}  // namespace atl::transport
