// What encryption costs a link: round trips of 14 KiB (a row of DeepSeek-V3) and the rate of 1 MiB
// messages, over the encrypted link and over UCX's tcp, in turns, with the machine's own floors.
//
//   atoll_link_bench [rounds]
//
// Both ends are threads of this process. "spin": each end has a core of its own and may poll;
// "sleep": each sleeps until the kernel says that something came, as on a busy machine.
#include <arpa/inet.h>
#include <fmt/format.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/evp.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "base/check.h"
#include "base/log.h"
#include "base/memory.h"
#include "base/result.h"
#include "transport/data/transport.h"
#include "transport/tls/make_keys.h"
#include "transport/tls/tls_keys.h"

namespace {

using namespace atl;
using namespace atl::transport;
using namespace std::chrono_literals;
using Clock = std::chrono::steady_clock;

constexpr size_t kRowBytes = 14u << 10;
constexpr size_t kLargeBytes = 1u << 20;
constexpr size_t kHeaderBytes = 64;
constexpr int kRoundTrips = 2000, kWarmUp = 200;
constexpr int kLargeMessages = 400, kWindow = 8;

double us_since(Clock::time_point start) {
  return std::chrono::duration<double, std::micro>(Clock::now() - start).count();
}
double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

// ---- Floors

// Bytes per second of one core that encrypts records.
double gcm_rate(const EVP_CIPHER* cipher) {
  std::vector<unsigned char> data(16384), out(16384 + 16);
  const unsigned char key[32] = {1}, iv[12] = {2};
  EVP_CIPHER_CTX* context = EVP_CIPHER_CTX_new();
  int bytes = 0;
  double best = 0;
  for (int round = 0; round < 20; ++round) {
    const auto start = Clock::now();
    constexpr int kRecords = 200;
    for (int i = 0; i < kRecords; ++i) {
      EVP_EncryptInit_ex(context, cipher, nullptr, key, iv);
      EVP_EncryptUpdate(context, out.data(), &bytes, data.data(), static_cast<int>(data.size()));
      EVP_EncryptFinal_ex(context, out.data() + bytes, &bytes);
    }
    best = std::max(best, kRecords * 16384 / us_since(start) * 1e6);
  }
  EVP_CIPHER_CTX_free(context);
  return best;
}

double memcpy_rate() {
  std::vector<char> from(kLargeBytes, 1), to(kLargeBytes, 2);
  double best = 0;
  for (int round = 0; round < 50; ++round) {
    const auto start = Clock::now();
    for (int i = 0; i < 20; ++i) {
      std::memcpy(to.data(), from.data(), kLargeBytes);
      asm volatile("" : : "r"(to.data()) : "memory");
    }
    best = std::max(best, 20 * kLargeBytes / us_since(start) * 1e6);
  }
  return best;
}

struct SocketPair {
  int fds[2] = {-1, -1};
  SocketPair() {
    const int listener = ::socket(AF_INET, SOCK_STREAM, 0);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof address;
    CHECK(::bind(listener, reinterpret_cast<sockaddr*>(&address), size) == 0);
    CHECK(::listen(listener, 1) == 0);
    CHECK(::getsockname(listener, reinterpret_cast<sockaddr*>(&address), &size) == 0);
    fds[0] = ::socket(AF_INET, SOCK_STREAM, 0);
    CHECK(::connect(fds[0], reinterpret_cast<sockaddr*>(&address), size) == 0);
    fds[1] = ::accept(listener, nullptr, nullptr);
    ::close(listener);
    const int one = 1;
    for (const int fd : fds) ::setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  }
  ~SocketPair() {
    for (const int fd : fds) ::close(fd);
  }
};

void receive_all(int fd, char* out, size_t bytes) {
  for (size_t done = 0; done < bytes;) {
    const ssize_t got = ::recv(fd, out + done, bytes - done, 0);
    if (got <= 0) return;
    done += static_cast<size_t>(got);
  }
}

// Blocking sockets, no messages, no encryption: what the kernel takes. Median of round trips, us.
double socket_round_trip() {
  SocketPair pair;
  std::thread echo([&] {
    std::vector<char> data(kRowBytes);
    for (int i = 0; i < kRoundTrips + kWarmUp; ++i) {
      receive_all(pair.fds[1], data.data(), data.size());
      (void)!::send(pair.fds[1], data.data(), data.size(), MSG_NOSIGNAL);
    }
  });
  std::vector<char> data(kRowBytes);
  std::vector<double> times;
  for (int i = 0; i < kRoundTrips + kWarmUp; ++i) {
    const auto start = Clock::now();
    (void)!::send(pair.fds[0], data.data(), data.size(), MSG_NOSIGNAL);
    receive_all(pair.fds[0], data.data(), data.size());
    if (i >= kWarmUp) times.push_back(us_since(start));
  }
  echo.join();
  return median(times);
}

double socket_rate() {
  SocketPair pair;
  std::thread sink([&] {
    std::vector<char> data(kLargeBytes);
    for (int i = 0; i < kLargeMessages; ++i) receive_all(pair.fds[1], data.data(), data.size());
    (void)!::send(pair.fds[1], data.data(), 1, MSG_NOSIGNAL);
  });
  std::vector<char> data(kLargeBytes);
  const auto start = Clock::now();
  for (int i = 0; i < kLargeMessages; ++i)
    for (size_t done = 0; done < kLargeBytes;)
      done += static_cast<size_t>(
          ::send(pair.fds[0], data.data() + done, kLargeBytes - done, MSG_NOSIGNAL));
  char end = 0;
  receive_all(pair.fds[0], &end, 1);
  const double us = us_since(start);
  sink.join();
  return double{kLargeMessages} * kLargeBytes / us * 1e6;
}

// ---- Links

struct Link {
  std::string name;
  std::unique_ptr<Transport> near, far;
  PeerId far_at_near, near_at_far;
  std::thread echo;
  std::atomic<bool> stop = false;
};

// Answers a row with a row and a large message with an empty one.
void echo(Link& link) {
  auto buffer = std::make_shared<HostBuffer>(kRowBytes);
  while (!link.stop) {
    while (auto event = link.far->poll()) {
      if (event->kind != Event::Kind::kMessage) return;
      const size_t bytes = event->message->payload().size() <= kRowBytes ? kRowBytes : 0;
      CHECK(link.far->send(link.near_at_far, event->message->header(), buffer, bytes).ok());
    }
    link.far->wait(100ms);
  }
}

void start(Link& link) {
  auto far = link.near->connect(link.far->address(), "far");
  auto near = link.far->connect(link.near->address(), "near");
  CHECK(far.has_value() && near.has_value());
  link.far_at_near = *far;
  link.near_at_far = *near;
  link.echo = std::thread([&link] { echo(link); });
}

void await_message(Link& link) {
  for (;;) {
    if (auto event = link.near->poll()) {
      CHECK(event->kind == Event::Kind::kMessage);
      return;
    }
    link.near->wait(1s);
  }
}

double round_trip(Link& link) {
  auto buffer = std::make_shared<HostBuffer>(kRowBytes);
  std::memset(buffer->data(), 1, kRowBytes);
  const std::vector<std::byte> header(kHeaderBytes);
  std::vector<double> times;
  for (int i = 0; i < kRoundTrips + kWarmUp; ++i) {
    const auto begin = Clock::now();
    CHECK(link.near->send(link.far_at_near, header, buffer, kRowBytes).ok());
    await_message(link);
    if (i >= kWarmUp) times.push_back(us_since(begin));
  }
  return median(times);
}

double rate(Link& link) {
  auto buffer = std::make_shared<HostBuffer>(kLargeBytes);
  std::memset(buffer->data(), 1, kLargeBytes);
  const std::vector<std::byte> header(kHeaderBytes);
  const auto begin = Clock::now();
  int sent = 0, answered = 0;
  while (answered < kLargeMessages) {
    if (sent < kLargeMessages && sent - answered < kWindow) {
      CHECK(link.near->send(link.far_at_near, header, buffer, kLargeBytes).ok());
      ++sent;
      continue;
    }
    await_message(link);
    ++answered;
  }
  return double{kLargeMessages} * kLargeBytes / us_since(begin) * 1e6;
}

void compare(const std::filesystem::path& keys, bool spin, int rounds) {
  Link tcp, tls;
  UcxOptions ucx;
  ucx.kind = TransportKind::kTcp;
  ucx.spin = spin;
  tcp.near = make_ucx_transport(ucx);
  tcp.far = make_ucx_transport(ucx);
  TlsOptions options;
  options.spin = spin;
  options.peers = {"near"};
  options.keys = TlsKeys::load(keys, "near");
  tls.near = make_tls_transport(options);
  options.keys = TlsKeys::load(keys, "far");
  options.listen = "127.0.0.1:0";
  tls.far = make_tls_transport(options);
  start(tcp);
  start(tls);

  std::vector<double> tcp_times, tls_times, tcp_rates, tls_rates, time_ratios, rate_ratios;
  for (int round = 0; round < rounds; ++round) {
    tcp_times.push_back(round_trip(tcp));
    tls_times.push_back(round_trip(tls));
    tcp_rates.push_back(rate(tcp));
    tls_rates.push_back(rate(tls));
    time_ratios.push_back(tls_times.back() / tcp_times.back());
    rate_ratios.push_back(tls_rates.back() / tcp_rates.back());
  }
  fmt::print("{} ({}): round trip of 14 KiB, median us: ucx {:.1f}, {} {:.1f}, ratio {:.2f}\n",
             spin ? "spin" : "sleep", rounds, median(tcp_times),
             tls.near->selected_links(tls.far_at_near), median(tls_times), median(time_ratios));
  fmt::print("{} ({}): 1 MiB messages, GB/s:            ucx {:.2f}, {} {:.2f}, ratio {:.2f}\n",
             spin ? "spin" : "sleep", rounds, median(tcp_rates) / 1e9,
             tls.near->selected_links(tls.far_at_near), median(tls_rates) / 1e9,
             median(rate_ratios));
  for (Link* link : {&tcp, &tls}) {
    link->stop = true;
    link->far->wake();
    link->echo.join();
  }
}

}  // namespace

int main(int argc, char** argv) {
  const int rounds = argc > 1 ? std::max(1, std::atoi(argv[1])) : 9;
  release_ucx_signals();
  init_log(LogLevel::kWarn, "link_bench");
  fmt::print(
      "floors: AES-128-GCM {:.2f} GB/s, AES-256-GCM {:.2f} GB/s, memcpy {:.1f} GB/s a core; "
      "plain sockets: 14 KiB round trip {:.1f} us, stream {:.2f} GB/s\n",
      gcm_rate(EVP_aes_128_gcm()) / 1e9, gcm_rate(EVP_aes_256_gcm()) / 1e9, memcpy_rate() / 1e9,
      socket_round_trip(), socket_rate() / 1e9);
  const auto keys =
      std::filesystem::temp_directory_path() / fmt::format("atoll-link-bench-{}", ::getpid());
  make_keys({keys, {"far"}, {"near"}, 365});
  for (const bool spin : {true, false}) compare(keys, spin, rounds);
  std::filesystem::remove_all(keys);
}
