#include "transport/control/tls_stream.h"

#include <openssl/err.h>

#include <algorithm>

#include "base/check.h"
#include "transport/tls/tls_context.h"

namespace atl::transport {

namespace {

// Read from the socket, and encrypted, at once.
constexpr size_t kPieceBytes = 16u << 10;

[[noreturn]] void fail(const Error& error) {
  const auto type = error.code == ErrorCode::kInvalid ? kj::Exception::Type::FAILED
                                                      : kj::Exception::Type::DISCONNECTED;
  kj::throwFatalException(
      kj::Exception(type, __FILE__, __LINE__, kj::heapString(error.message.c_str())));
}

// The SSL object reads from and writes to memory; this moves that memory to and from the socket.
// One read and one write at a time, as kj's streams are used.
class TlsIoStream final : public kj::AsyncIoStream {
 public:
  TlsIoStream(kj::Own<kj::AsyncIoStream> raw, OwnSsl ssl)
      : raw_(kj::mv(raw)),
        ssl_(std::move(ssl)),
        from_peer_(BIO_new(BIO_s_mem())),
        to_peer_(BIO_new(BIO_s_mem())),
        piece_(kj::heapArray<kj::byte>(kPieceBytes)) {
    if (from_peer_ == nullptr || to_peer_ == nullptr) throw std::bad_alloc();
    BIO_set_mem_eof_return(from_peer_, -1);
    SSL_set_bio(ssl_.get(), from_peer_, to_peer_);  // owns both
  }

  SSL& ssl() { return *ssl_; }

  kj::Promise<void> shake_hands() {
    ERR_clear_error();
    const int done = SSL_do_handshake(ssl_.get());
    if (done == 1) return flush();
    if (SSL_get_error(ssl_.get(), done) != SSL_ERROR_WANT_READ) {
      const Error error = tls_error(*ssl_, done);
      // The alert says the peer why.
      return flush().then([error] { fail(error); }, [error](kj::Exception&&) { fail(error); });
    }
    return flush().then([this] { return fill(); }).then([this](bool more) -> kj::Promise<void> {
      if (!more)
        fail({ErrorCode::kUnavailable,
              "it ended the connection in the middle of the handshake: has it keys, too "
              "(--keys)?"});
      return shake_hands();
    });
  }

  kj::Promise<size_t> tryRead(void* buffer, size_t min_bytes, size_t max_bytes) override {
    return read_some(static_cast<kj::byte*>(buffer), min_bytes, max_bytes, 0);
  }

  kj::Promise<void> write(const void* buffer, size_t size) override {
    const auto* data = static_cast<const kj::byte*>(buffer);
    if (size == 0) return kj::READY_NOW;
    ERR_clear_error();
    const int bytes = static_cast<int>(std::min(size, kPieceBytes));
    const int written = SSL_write(ssl_.get(), data, bytes);
    if (written <= 0) fail(tls_error(*ssl_, written));
    const size_t left = size - static_cast<size_t>(written);
    if (left == 0) return flush();
    return flush().then([this, data, written, left] { return write(data + written, left); });
  }

  kj::Promise<void> write(kj::ArrayPtr<const kj::ArrayPtr<const kj::byte>> pieces) override {
    // One message's segment table and segments: together, so that they are one record if small.
    size_t bytes = 0;
    for (const auto& piece : pieces) bytes += piece.size();
    auto whole = kj::heapArray<kj::byte>(bytes);
    kj::byte* end = whole.begin();
    for (const auto& piece : pieces) end = std::copy(piece.begin(), piece.end(), end);
    const kj::byte* begin = whole.begin();
    return write(begin, bytes).attach(kj::mv(whole));
  }

  kj::Promise<void> whenWriteDisconnected() override { return raw_->whenWriteDisconnected(); }

  void shutdownWrite() override {
    ERR_clear_error();
    SSL_shutdown(ssl_.get());
    ERR_clear_error();
    ending_ =
        flush().then([this] { raw_->shutdownWrite(); }).eagerlyEvaluate([](kj::Exception&&) {});
  }
  void abortRead() override { raw_->abortRead(); }
  void getsockopt(int level, int option, void* value, kj::uint* length) override {
    raw_->getsockopt(level, option, value, length);
  }
  void setsockopt(int level, int option, const void* value, kj::uint length) override {
    raw_->setsockopt(level, option, value, length);
  }
  void getsockname(struct sockaddr* address, kj::uint* length) override {
    raw_->getsockname(address, length);
  }
  void getpeername(struct sockaddr* address, kj::uint* length) override {
    raw_->getpeername(address, length);
  }

 private:
  // Sends what the SSL object has written. The bytes are taken out first: what is written while
  // they are under way goes with the next flush.
  kj::Promise<void> flush() {
    const size_t bytes = BIO_ctrl_pending(to_peer_);
    if (bytes == 0) return kj::READY_NOW;
    auto out = kj::heapArray<kj::byte>(bytes);
    CHECK_EQ(BIO_read(to_peer_, out.begin(), static_cast<int>(bytes)), static_cast<int>(bytes));
    const kj::byte* begin = out.begin();
    return raw_->write(begin, bytes).attach(kj::mv(out));
  }

  // Takes what has come from the socket; false at its end.
  kj::Promise<bool> fill() {
    return raw_->tryRead(piece_.begin(), 1, piece_.size()).then([this](size_t bytes) {
      if (bytes == 0) return false;
      CHECK_EQ(BIO_write(from_peer_, piece_.begin(), static_cast<int>(bytes)),
               static_cast<int>(bytes));
      return true;
    });
  }

  kj::Promise<size_t> read_some(kj::byte* buffer, size_t min_bytes, size_t max_bytes, size_t got) {
    while (got < max_bytes) {
      ERR_clear_error();
      const int wanted = static_cast<int>(std::min(max_bytes - got, size_t{1} << 20));
      const int bytes = SSL_read(ssl_.get(), buffer + got, wanted);
      if (bytes > 0) {
        got += static_cast<size_t>(bytes);
        continue;
      }
      const int problem = SSL_get_error(ssl_.get(), bytes);
      if (problem == SSL_ERROR_ZERO_RETURN) return got;
      if (problem != SSL_ERROR_WANT_READ) fail(tls_error(*ssl_, bytes));
      break;
    }
    if (got >= min_bytes) return got;
    return fill().then([=, this](bool more) -> kj::Promise<size_t> {
      // An end that the peer did not announce may be a stranger's doing.
      if (!more) fail({ErrorCode::kUnavailable, "the connection broke"});
      return read_some(buffer, min_bytes, max_bytes, got);
    });
  }

  kj::Own<kj::AsyncIoStream> raw_;
  OwnSsl ssl_;
  BIO* const from_peer_;
  BIO* const to_peer_;
  kj::Array<kj::byte> piece_;
  kj::Promise<void> ending_ = kj::READY_NOW;
};

std::string checked_peer(SSL& ssl) {
  auto peer = peer_of(ssl, TlsUse::kControl);
  if (!peer) fail(peer.error());
  return *peer;
}

}  // namespace

kj::Promise<TlsStream> tls_connect(kj::Own<kj::AsyncIoStream> raw, const TlsKeys& keys,
                                   const std::string& name) {
  auto stream =
      kj::heap<TlsIoStream>(kj::mv(raw), keys.context()->new_client(TlsUse::kControl, {name}));
  TlsIoStream& s = *stream;
  auto welcome = kj::heapArray<kj::byte>(1);
  kj::byte* first = welcome.begin();
  return s.shake_hands()
      .then([&s, first] { return s.tryRead(first, 1, 1); })
      .attach(kj::mv(welcome))
      .then([stream = kj::mv(stream)](size_t bytes) mutable {
        if (bytes != 1) fail({ErrorCode::kUnavailable, "it ended the connection"});
        std::string peer = checked_peer(stream->ssl());
        return TlsStream{kj::mv(stream), std::move(peer)};
      });
}

kj::Promise<TlsStream> tls_accept(kj::Own<kj::AsyncIoStream> raw, const TlsKeys& keys,
                                  const std::vector<std::string>& names) {
  static constexpr kj::byte kWelcome = 1;
  auto stream =
      kj::heap<TlsIoStream>(kj::mv(raw), keys.context()->new_server(TlsUse::kControl, names));
  TlsIoStream& s = *stream;
  return s.shake_hands()
      .then([&s] {
        std::string peer = checked_peer(s.ssl());
        return s.write(&kWelcome, 1).then([peer = std::move(peer)] { return peer; });
      })
      .then([stream = kj::mv(stream)](std::string peer) mutable {
        return TlsStream{kj::mv(stream), std::move(peer)};
      });
}

}  // namespace atl::transport
