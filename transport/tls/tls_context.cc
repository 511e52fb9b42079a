#include "transport/tls/tls_context.h"

#include <fmt/format.h>
#include <openssl/err.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "base/log.h"
#include "transport/tls/fast_gcm.h"

namespace atl::transport {

namespace {

// Records of one connection are decrypted from a buffer of several: fewer system calls.
constexpr size_t kReadBufferBytes = 128u << 10;
constexpr int kWarnDays = 30;

[[noreturn]] void fail(const std::string& what) {
  throw LoadError(fmt::format("keys: {}: {}", what, openssl_reason("no reason")));
}

std::string_view protocol_of(TlsUse use) {
  return use == TlsUse::kControl ? "atoll-control" : "atoll-data";
}

// What a connection remembers of its peer: kept in the SSL object.
struct Peer {
  TlsUse use;
  std::vector<std::string> names;
  std::string refusal;  // why its certificate was not taken
};
void free_peer(void*, void* peer, CRYPTO_EX_DATA*, int, long, void*) {
  delete static_cast<Peer*>(peer);
}
int peer_index() {
  static const int index = SSL_get_ex_new_index(0, nullptr, nullptr, nullptr, free_peer);
  return index;
}
Peer& peer_data(const SSL& connection) {
  auto* peer = static_cast<Peer*>(SSL_get_ex_data(&connection, peer_index()));
  CHECK(peer != nullptr);
  return *peer;
}

std::string refusal_of(int error, const X509* certificate, const std::vector<std::string>& names) {
  switch (error) {
    case X509_V_ERR_CERT_HAS_EXPIRED:
      return fmt::format("it expired on {} (or this machine's clock is wrong)",
                         time_text(certificate ? X509_get0_notAfter(certificate) : nullptr));
    case X509_V_ERR_CERT_NOT_YET_VALID:
      return fmt::format("it holds from {} on (or this machine's clock is wrong)",
                         time_text(certificate ? X509_get0_notBefore(certificate) : nullptr));
    case X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT:
    case X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT_LOCALLY:
    case X509_V_ERR_UNABLE_TO_VERIFY_LEAF_SIGNATURE:
    case X509_V_ERR_DEPTH_ZERO_SELF_SIGNED_CERT:
    case X509_V_ERR_SELF_SIGNED_CERT_IN_CHAIN:
    case X509_V_ERR_CERT_SIGNATURE_FAILURE:
      return fmt::format("its issuer {} is no authority in ca.pem",
                         certificate ? issuer_text(*certificate) : "");
    case X509_V_ERR_HOSTNAME_MISMATCH:
      return fmt::format("it is of {}, expected {}",
                         certificate ? names_text(names_of(*certificate)) : "nobody",
                         names_text(names));
    case X509_V_ERR_INVALID_PURPOSE:
      return "it is not made for this side of a connection (extended key usage: nodes serve, "
             "coordinators are clients)";
    default:
      return X509_verify_cert_error_string(error);
  }
}

int on_verify(int is_good, X509_STORE_CTX* store) {
  if (is_good) return 1;
  const auto* connection = static_cast<const SSL*>(
      X509_STORE_CTX_get_ex_data(store, SSL_get_ex_data_X509_STORE_CTX_idx()));
  Peer& peer = peer_data(*connection);
  if (peer.refusal.empty())
    peer.refusal = refusal_of(X509_STORE_CTX_get_error(store),
                              X509_STORE_CTX_get_current_cert(store), peer.names);
  return 0;
}

int on_alpn(SSL* connection, const unsigned char** out, unsigned char* out_bytes,
            const unsigned char* in, unsigned in_bytes, void*) {
  const std::string_view wanted = protocol_of(peer_data(*connection).use);
  for (unsigned at = 0; at < in_bytes && at + 1 + in[at] <= in_bytes; at += 1 + in[at]) {
    if (std::string_view(reinterpret_cast<const char*>(in + at + 1), in[at]) != wanted) continue;
    *out = in + at + 1;
    *out_bytes = in[at];
    return SSL_TLSEXT_ERR_OK;
  }
  return SSL_TLSEXT_ERR_ALERT_FATAL;
}

// The dialling side's order counts. AES with the processor's instructions, the shorter key first:
// 1.15 times as fast as AES-256, and 128 bits are beyond anybody's reach. Without such instructions
// ChaCha20 is faster, and takes the same time whatever the data.
const char* ciphers() {
#if defined(__x86_64__)
  const bool has_aes = __builtin_cpu_supports("aes") && __builtin_cpu_supports("pclmul");
#else
  const bool has_aes = true;
#endif
  return has_aes ? "TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256"
                 : "TLS_CHACHA20_POLY1305_SHA256:TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384";
}

OwnContext new_context(const SSL_METHOD* method, const KeyFiles& files, const std::string& name) {
  OwnContext context(SSL_CTX_new_ex(nullptr, fast_gcm_query(), method));
  if (!context) fail("cannot set TLS up");
  SSL_CTX& c = *context;
  const bool set = SSL_CTX_set_min_proto_version(&c, TLS1_3_VERSION) == 1 &&
                   SSL_CTX_set_max_proto_version(&c, TLS1_3_VERSION) == 1 &&
                   SSL_CTX_set_ciphersuites(&c, ciphers()) == 1 &&
                   SSL_CTX_set1_groups_list(&c, "X25519:P-256") == 1 &&
                   SSL_CTX_set_num_tickets(&c, 0) == 1;
  if (!set) fail("cannot set TLS up");
  SSL_CTX_set_session_cache_mode(&c, SSL_SESS_CACHE_OFF);
  SSL_CTX_set_options(&c, SSL_OP_NO_TICKET | SSL_OP_NO_RENEGOTIATION | SSL_OP_NO_COMPRESSION);
  SSL_CTX_set_mode(&c, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
  SSL_CTX_set_read_ahead(&c, 1);
  SSL_CTX_set_default_read_buffer_len(&c, kReadBufferBytes);
  SSL_CTX_set_verify(&c, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, on_verify);
  SSL_CTX_set_verify_depth(&c, 4);

  read_key_file(files.authority());  // its own words if it can't be read
  if (SSL_CTX_load_verify_file(&c, files.authority().c_str()) != 1)
    fail(files.authority().string());
  read_key_file(files.certificate(name));
  if (SSL_CTX_use_certificate_chain_file(&c, files.certificate(name).c_str()) != 1)
    fail(files.certificate(name).string());
  const OwnKey key = read_private_key(files.key(name));
  if (SSL_CTX_use_PrivateKey(&c, key.get()) != 1 || SSL_CTX_check_private_key(&c) != 1)
    fail(fmt::format("{} is not the key of {}", files.key(name).string(),
                     files.certificate(name).string()));
  return context;
}

// What the peers would find wrong with our own certificate, before they do.
void check_own_certificate(SSL_CTX& context, const KeyFiles& files, const std::string& name) {
  X509* certificate = SSL_CTX_get0_certificate(&context);
  const std::string file = files.certificate(name).string();
  const OpensslOwner<X509_STORE_CTX, X509_STORE_CTX_free> check(X509_STORE_CTX_new());
  STACK_OF(X509)* chain = nullptr;
  SSL_CTX_get0_chain_certs(&context, &chain);
  if (!check ||
      X509_STORE_CTX_init(check.get(), SSL_CTX_get_cert_store(&context), certificate, chain) != 1)
    fail(file);
  X509_VERIFY_PARAM* how = X509_STORE_CTX_get0_param(check.get());
  X509_VERIFY_PARAM_set_hostflags(
      how, X509_CHECK_FLAG_NO_WILDCARDS | X509_CHECK_FLAG_NEVER_CHECK_SUBJECT);
  X509_VERIFY_PARAM_set1_host(how, name.c_str(), name.size());
  if (X509_verify_cert(check.get()) != 1) {
    const int error = X509_STORE_CTX_get_error(check.get());
    ERR_clear_error();
    throw LoadError(
        fmt::format("keys: {} is of no use: {}; 'atoll keys' makes a new one where {} is not", file,
                    refusal_of(error, X509_STORE_CTX_get_current_cert(check.get()), {name}), file));
  }
  int days = 0, seconds = 0;
  if (ASN1_TIME_diff(&days, &seconds, nullptr, X509_get0_notAfter(certificate)) == 1 &&
      days < kWarnDays)
    log_warn("keys: {} expires on {}", file, time_text(X509_get0_notAfter(certificate)));
}

}  // namespace

TlsContext::TlsContext(const KeyFiles& files, const std::string& name)
    : client_(new_context(TLS_client_method(), files, name)),
      server_(new_context(TLS_server_method(), files, name)) {
  check_own_certificate(*server_, files, name);
  SSL_CTX_set_alpn_select_cb(server_.get(), on_alpn, nullptr);
}

OwnSsl TlsContext::new_connection(SSL_CTX& context, TlsUse use,
                                  const std::vector<std::string>& names) const {
  CHECK(!names.empty());
  OwnSsl connection(SSL_new(&context));
  if (!connection) throw std::bad_alloc();
  CHECK(SSL_set_ex_data(connection.get(), peer_index(), new Peer{use, names, ""}) == 1);
  SSL_set_hostflags(connection.get(),
                    X509_CHECK_FLAG_NO_WILDCARDS | X509_CHECK_FLAG_NEVER_CHECK_SUBJECT);
  for (const std::string& name : names) CHECK(SSL_add1_host(connection.get(), name.c_str()) == 1);
  return connection;
}

OwnSsl TlsContext::new_client(TlsUse use, const std::vector<std::string>& names) const {
  OwnSsl connection = new_connection(*client_, use, names);
  const std::string_view protocol = protocol_of(use);
  std::string list(1, static_cast<char>(protocol.size()));
  list += protocol;
  // Returns 0 for success.
  CHECK(SSL_set_alpn_protos(connection.get(), reinterpret_cast<const unsigned char*>(list.data()),
                            static_cast<unsigned>(list.size())) == 0);
  SSL_set_connect_state(connection.get());
  return connection;
}

OwnSsl TlsContext::new_server(TlsUse use, const std::vector<std::string>& names) const {
  OwnSsl connection = new_connection(*server_, use, names);
  SSL_set_accept_state(connection.get());
  return connection;
}

Result<std::string> peer_of(SSL& connection, TlsUse use) {
  const unsigned char* protocol = nullptr;
  unsigned bytes = 0;
  SSL_get0_alpn_selected(&connection, &protocol, &bytes);
  const std::string_view found(reinterpret_cast<const char*>(protocol), bytes);
  if (found != protocol_of(use))
    return Error{ErrorCode::kInvalid,
                 fmt::format("it wants another protocol of this port, expected {}: are the ports "
                             "of control and data exchanged?",
                             protocol_of(use))};
  const char* name = SSL_get0_peername(&connection);
  if (name == nullptr || SSL_get_verify_result(&connection) != X509_V_OK)
    return Error{ErrorCode::kInvalid, "its certificate was not checked"};
  for (const std::string& allowed : peer_data(connection).names) {
    if (OPENSSL_strcasecmp(allowed.c_str(), name) == 0) return allowed;
  }
  return Error{ErrorCode::kInvalid, "its certificate has none of the expected names"};
}

std::string cipher_of(const SSL& connection) {
  const char* name = SSL_get_cipher_name(&connection);  // TLS_AES_128_GCM_SHA256
  std::string text = name ? name : "none";
  if (text.starts_with("TLS_")) text.erase(0, 4);
  text.resize(std::min(text.rfind("_SHA"), text.size()));
  for (char& c : text) c = c == '_' ? '-' : static_cast<char>(std::tolower(c));
  return text;
}

// What it says of us, by the alert that it sent.
static std::string alert_text(int reason) {
  switch (reason) {
    case SSL_R_TLSV1_ALERT_UNKNOWN_CA:
      return "it refuses our certificate: our authority is none of its own (is ca.pem the same "
             "everywhere?)";
    case SSL_R_SSLV3_ALERT_CERTIFICATE_EXPIRED:
      return "it refuses our certificate: expired, or not valid yet by its clock";
    case SSL_R_SSLV3_ALERT_BAD_CERTIFICATE:
    case SSL_R_SSLV3_ALERT_CERTIFICATE_UNKNOWN:
    case SSL_R_SSLV3_ALERT_UNSUPPORTED_CERTIFICATE:
    case SSL_R_TLSV1_ALERT_ACCESS_DENIED:
      return "it refuses our certificate: our name is none that it expects, or it is not made for "
             "this side (its log says which)";
    case SSL_R_TLSV13_ALERT_CERTIFICATE_REQUIRED:
      return "it wants a certificate and got none";
    case SSL_R_TLSV1_ALERT_PROTOCOL_VERSION:
      return "it speaks no version of TLS that we do (1.3)";
    case SSL_R_TLSV1_ALERT_NO_APPLICATION_PROTOCOL:
      return "that port is for something else: are the ports of control and data exchanged?";
    default:
      return "";
  }
}

Error tls_error(SSL& connection, int result) {
  const int system_error = errno;
  const int kind = SSL_get_error(&connection, result);
  const unsigned long code = ERR_peek_error();
  const int reason = ERR_GET_REASON(code);
  const auto invalid = [](std::string text) {
    ERR_clear_error();
    return Error{ErrorCode::kInvalid, std::move(text)};
  };
  if (const std::string& refusal = peer_data(connection).refusal; !refusal.empty())
    return invalid("its certificate is refused: " + refusal);
  if (kind == SSL_ERROR_ZERO_RETURN) return {ErrorCode::kUnavailable, "it closed the connection"};
  if (kind == SSL_ERROR_SSL && ERR_GET_LIB(code) == ERR_LIB_SSL) {
    if (const std::string alert = alert_text(reason); !alert.empty()) return invalid(alert);
    switch (reason) {
      case SSL_R_PEER_DID_NOT_RETURN_A_CERTIFICATE:
        return invalid("it has no certificate");
      case SSL_R_WRONG_VERSION_NUMBER:
      case SSL_R_HTTP_REQUEST:
      case SSL_R_HTTPS_PROXY_REQUEST:
      case SSL_R_PACKET_LENGTH_TOO_LONG:
      case SSL_R_BAD_RECORD_TYPE:
      case SSL_R_UNEXPECTED_MESSAGE:
        return invalid("it speaks no TLS: has it keys, too (--keys)?");
      case SSL_R_UNSUPPORTED_PROTOCOL:
      case SSL_R_VERSION_TOO_LOW:
        return invalid("it speaks no TLS 1.3");
      case SSL_R_NO_APPLICATION_PROTOCOL:
        return invalid("it wants another protocol of this port");
      case SSL_R_UNEXPECTED_EOF_WHILE_READING:
        ERR_clear_error();
        return {ErrorCode::kUnavailable, "the connection broke"};
      default:
        return invalid("TLS: " + openssl_reason("no reason"));
    }
  }
  ERR_clear_error();
  if (kind == SSL_ERROR_SYSCALL && system_error != 0)
    return {ErrorCode::kUnavailable, std::strerror(system_error)};
  return {ErrorCode::kUnavailable, "the connection broke"};
}

}  // namespace atl::transport
