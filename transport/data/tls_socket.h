// A connected, non-blocking socket with TLS on it. Private to transport/.
#pragma once

#include <cstddef>
#include <span>
#include <string>

#include "base/result.h"
#include "transport/tls/openssl.h"

namespace atl::transport {

// One thread at a time. OpenSSL reads from the socket into its own buffer, decrypts there and
// copies to the caller; and back: no further copy. Not movable, since OpenSSL points to it.
class TlsSocket {
 public:
  // Owns fd.
  TlsSocket(int fd, OwnSsl ssl);
  // Tells the peer that this end leaves, if that can be done at once, and closes.
  ~TlsSocket();
  TlsSocket(const TlsSocket&) = delete;
  TlsSocket& operator=(const TlsSocket&) = delete;

  int fd() const { return fd_; }
  SSL& ssl() { return *ssl_; }

  // Errors of the following are the peer's end or fault, and final.
  // True once the handshake is done.
  Result<bool> shake_hands();
  // Bytes moved; 0: none for now. At most one record of 16 KiB a call. After a write() of 0 the
  // next one has the same bytes. `more`: another write() follows at once.
  Result<size_t> read(std::span<std::byte> out);
  Result<size_t> write(std::span<const std::byte> in, bool more);
  bool wants_to_write() const { return wants_to_write_; }  // the last call waits for room

  // The kernel says that something can be read.
  void set_readable() {
    is_drained_ = false;
    may_read_ = true;
  }
  // A read() may bring something without the kernel's saying so again.
  bool may_read() const { return may_read_; }

 private:
  static int on_read(BIO* bio, char* out, int bytes);
  static int on_write(BIO* bio, const char* in, int bytes);
  static long on_ctrl(BIO* bio, int command, long number, void* pointer);
  static BIO_METHOD* method();

  // 0 if the call only has to wait.
  Result<size_t> outcome_of(int result);

  const int fd_;
  OwnSsl ssl_;
  bool more_ = false;
  bool is_drained_ = false;  // the last recv() took all that there was
  bool may_read_ = true;     // no read() was in vain since
  bool wants_to_write_ = false;
  bool has_failed_ = false;
};

}  // namespace atl::transport
