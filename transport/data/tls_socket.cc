#include "transport/data/tls_socket.h"

#include <openssl/err.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <new>

#include "transport/tls/tls_context.h"

namespace atl::transport {

TlsSocket::TlsSocket(int fd, OwnSsl ssl) : fd_(fd), ssl_(std::move(ssl)) {
  BIO* bio = BIO_new(method());
  if (bio == nullptr) throw std::bad_alloc();
  BIO_set_data(bio, this);
  BIO_set_init(bio, 1);
  SSL_set_bio(ssl_.get(), bio, bio);  // owns it
}

TlsSocket::~TlsSocket() {
  ERR_clear_error();
  // Not in the middle of a record.
  if (!has_failed_ && !wants_to_write_ && SSL_is_init_finished(ssl_.get())) {
    more_ = false;
    SSL_shutdown(ssl_.get());
  }
  ERR_clear_error();
  ::close(fd_);
}

BIO_METHOD* TlsSocket::method() {
  static BIO_METHOD* const made = [] {
    BIO_METHOD* method =
        BIO_meth_new(BIO_get_new_index() | BIO_TYPE_SOURCE_SINK, "socket with MSG_MORE");
    CHECK(method != nullptr);
    BIO_meth_set_read(method, on_read);
    BIO_meth_set_write(method, on_write);
    BIO_meth_set_ctrl(method, on_ctrl);
    return method;
  }();
  return made;
}

int TlsSocket::on_read(BIO* bio, char* out, int bytes) {
  auto& socket = *static_cast<TlsSocket*>(BIO_get_data(bio));
  BIO_clear_retry_flags(bio);
  if (socket.is_drained_) {
    BIO_set_retry_read(bio);
    return -1;
  }
  ssize_t got;
  do {
    got = ::recv(socket.fd_, out, static_cast<size_t>(bytes), 0);
  } while (got < 0 && errno == EINTR);
  if (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
    socket.is_drained_ = true;
    BIO_set_retry_read(bio);
    return -1;
  }
  if (got == 0) errno = 0;  // its end is no error of the system's
  // The end will be seen, too: it makes the socket readable again.
  if (got > 0 && got < bytes) socket.is_drained_ = true;
  return static_cast<int>(got);
}

int TlsSocket::on_write(BIO* bio, const char* in, int bytes) {
  auto& socket = *static_cast<TlsSocket*>(BIO_get_data(bio));
  BIO_clear_retry_flags(bio);
  ssize_t sent;
  do {
    sent = ::send(socket.fd_, in, static_cast<size_t>(bytes),
                  MSG_NOSIGNAL | (socket.more_ ? MSG_MORE : 0));
  } while (sent < 0 && errno == EINTR);
  if (sent < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) BIO_set_retry_write(bio);
  return static_cast<int>(sent);
}

long TlsSocket::on_ctrl(BIO*, int command, long, void*) {
  return command == BIO_CTRL_FLUSH ? 1 : 0;
}

Result<size_t> TlsSocket::outcome_of(int result) {
  if (result > 0) {
    wants_to_write_ = false;
    return static_cast<size_t>(result);
  }
  const int kind = SSL_get_error(ssl_.get(), result);
  if (kind == SSL_ERROR_WANT_WRITE) {
    wants_to_write_ = true;
    return size_t{0};
  }
  if (kind == SSL_ERROR_WANT_READ) return size_t{0};
  has_failed_ = kind != SSL_ERROR_ZERO_RETURN;
  return tls_error(*ssl_, result);
}

Result<bool> TlsSocket::shake_hands() {
  ERR_clear_error();
  auto done = outcome_of(SSL_do_handshake(ssl_.get()));
  if (!done) return done.error();
  return *done == 1;
}

Result<size_t> TlsSocket::read(std::span<std::byte> out) {
  ERR_clear_error();
  const bool writing = wants_to_write_;
  auto bytes = outcome_of(
      SSL_read(ssl_.get(), out.data(), static_cast<int>(std::min<size_t>(out.size(), INT_MAX))));
  wants_to_write_ = writing;
  // Also if the kernel and OpenSSL have no more: without another call to find that out.
  if (bytes && (*bytes == 0 || (is_drained_ && SSL_has_pending(ssl_.get()) == 0)))
    may_read_ = false;
  return bytes;
}

Result<size_t> TlsSocket::write(std::span<const std::byte> in, bool more) {
  ERR_clear_error();
  more_ = more;
  return outcome_of(
      SSL_write(ssl_.get(), in.data(), static_cast<int>(std::min<size_t>(in.size(), INT_MAX))));
}

}  // namespace atl::transport
