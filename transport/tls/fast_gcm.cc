#include "transport/tls/fast_gcm.h"

#include <intel-ipsec-mb.h>
#include <openssl/core_dispatch.h>
#include <openssl/core_names.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/params.h>
#include <openssl/provider.h>

#include <cstdint>
#include <cstring>
#include <new>

#include "base/check.h"
#include "base/log.h"

namespace atl::transport {

namespace {

constexpr size_t kIvBytes = 12;
constexpr size_t kTagBytes = 16;
constexpr size_t kAadBytesMax = 64;  // TLS has 5

const IMB_MGR* manager() {
  static const IMB_MGR* const made = [] {
    IMB_MGR* m = alloc_mb_mgr(0);
    if (m != nullptr) init_mb_mgr_auto(m, nullptr);
    return m;
  }();
  return made;
}

// One direction of one connection: a key, and a message at a time, as OpenSSL calls it.
template <size_t kKeyBytes>
struct Gcm {
  alignas(64) gcm_key_data key;
  alignas(64) gcm_context_data state;
  bool has_key = false;
  bool has_iv = false;
  bool is_begun = false;  // the data has begun: no more AAD
  bool encrypts = false;
  bool has_tag = false;
  size_t aad_bytes = 0;
  unsigned char iv[kIvBytes], aad[kAadBytesMax], tag[kTagBytes];

  static_assert(kKeyBytes == 16 || kKeyBytes == 32);

  static void* make(void*) {
    void* memory = OPENSSL_zalloc(sizeof(Gcm) + alignof(Gcm));
    if (memory == nullptr) return nullptr;
    // The distance to the aligned place stands in front of it.
    const auto begin = reinterpret_cast<uintptr_t>(memory);
    const uintptr_t place = (begin + alignof(Gcm)) & ~(uintptr_t{alignof(Gcm)} - 1);
    auto* gcm = new (reinterpret_cast<void*>(place)) Gcm;
    reinterpret_cast<unsigned char*>(place)[-1] = static_cast<unsigned char>(place - begin);
    return gcm;
  }
  static void free(void* context) {
    if (context == nullptr) return;
    auto* place = static_cast<unsigned char*>(context);
    unsigned char* begin = place - place[-1];
    static_cast<Gcm*>(context)->~Gcm();
    OPENSSL_clear_free(begin, sizeof(Gcm) + alignof(Gcm));
  }

  static int init(Gcm& g, bool encrypts, const unsigned char* key, size_t key_bytes,
                  const unsigned char* iv, size_t iv_bytes, const OSSL_PARAM params[]) {
    g.encrypts = encrypts;
    if (key != nullptr) {
      if (key_bytes != kKeyBytes) return 0;
      if constexpr (kKeyBytes == 16)
        IMB_AES128_GCM_PRE(manager(), key, &g.key);
      else
        IMB_AES256_GCM_PRE(manager(), key, &g.key);
      g.has_key = true;
    }
    if (iv != nullptr) {
      if (iv_bytes != kIvBytes) return 0;
      std::memcpy(g.iv, iv, kIvBytes);
      g.has_iv = true;
      g.is_begun = g.has_tag = false;
      g.aad_bytes = 0;
    }
    return set_params(&g, params);
  }
  static int encrypt_init(void* context, const unsigned char* key, size_t key_bytes,
                          const unsigned char* iv, size_t iv_bytes, const OSSL_PARAM params[]) {
    return init(*static_cast<Gcm*>(context), true, key, key_bytes, iv, iv_bytes, params);
  }
  static int decrypt_init(void* context, const unsigned char* key, size_t key_bytes,
                          const unsigned char* iv, size_t iv_bytes, const OSSL_PARAM params[]) {
    return init(*static_cast<Gcm*>(context), false, key, key_bytes, iv, iv_bytes, params);
  }

  void begin() {
    if (is_begun) return;
    is_begun = true;
    if constexpr (kKeyBytes == 16)
      IMB_AES128_GCM_INIT(manager(), &key, &state, iv, aad, aad_bytes);
    else
      IMB_AES256_GCM_INIT(manager(), &key, &state, iv, aad, aad_bytes);
  }

  // Without `out` the bytes are AAD.
  static int update(void* context, unsigned char* out, size_t* out_bytes, size_t out_size,
                    const unsigned char* in, size_t bytes) {
    Gcm& g = *static_cast<Gcm*>(context);
    *out_bytes = 0;
    if (!g.has_key || !g.has_iv) return 0;
    if (bytes == 0) return 1;
    if (out == nullptr) {
      if (g.is_begun || bytes > kAadBytesMax - g.aad_bytes) return 0;
      std::memcpy(g.aad + g.aad_bytes, in, bytes);
      g.aad_bytes += bytes;
      *out_bytes = bytes;
      return 1;
    }
    if (out_size < bytes) return 0;
    g.begin();
    if constexpr (kKeyBytes == 16) {
      if (g.encrypts)
        IMB_AES128_GCM_ENC_UPDATE(manager(), &g.key, &g.state, out, in, bytes);
      else
        IMB_AES128_GCM_DEC_UPDATE(manager(), &g.key, &g.state, out, in, bytes);
    } else {
      if (g.encrypts)
        IMB_AES256_GCM_ENC_UPDATE(manager(), &g.key, &g.state, out, in, bytes);
      else
        IMB_AES256_GCM_DEC_UPDATE(manager(), &g.key, &g.state, out, in, bytes);
    }
    *out_bytes = bytes;
    return 1;
  }

  // An IV is good for one message.
  static int final(void* context, unsigned char*, size_t* out_bytes, size_t) {
    Gcm& g = *static_cast<Gcm*>(context);
    *out_bytes = 0;
    if (!g.has_key || !g.has_iv) return 0;
    g.begin();
    g.has_iv = false;
    unsigned char tag[kTagBytes];
    if constexpr (kKeyBytes == 16) {
      if (g.encrypts)
        IMB_AES128_GCM_ENC_FINALIZE(manager(), &g.key, &g.state, tag, kTagBytes);
      else
        IMB_AES128_GCM_DEC_FINALIZE(manager(), &g.key, &g.state, tag, kTagBytes);
    } else {
      if (g.encrypts)
        IMB_AES256_GCM_ENC_FINALIZE(manager(), &g.key, &g.state, tag, kTagBytes);
      else
        IMB_AES256_GCM_DEC_FINALIZE(manager(), &g.key, &g.state, tag, kTagBytes);
    }
    if (!g.encrypts) return g.has_tag && CRYPTO_memcmp(tag, g.tag, kTagBytes) == 0 ? 1 : 0;
    std::memcpy(g.tag, tag, kTagBytes);
    g.has_tag = true;
    return 1;
  }

  static int get_cipher_params(OSSL_PARAM params[]) {
    const auto set = [params](const char* name, size_t value) {
      OSSL_PARAM* param = OSSL_PARAM_locate(params, name);
      return param == nullptr || OSSL_PARAM_set_size_t(param, value) == 1;
    };
    OSSL_PARAM* mode = OSSL_PARAM_locate(params, OSSL_CIPHER_PARAM_MODE);
    OSSL_PARAM* aead = OSSL_PARAM_locate(params, OSSL_CIPHER_PARAM_AEAD);
    OSSL_PARAM* custom_iv = OSSL_PARAM_locate(params, OSSL_CIPHER_PARAM_CUSTOM_IV);
    return (mode == nullptr || OSSL_PARAM_set_uint(mode, EVP_CIPH_GCM_MODE)) &&
           (aead == nullptr || OSSL_PARAM_set_int(aead, 1)) &&
           (custom_iv == nullptr || OSSL_PARAM_set_int(custom_iv, 1)) &&
           set(OSSL_CIPHER_PARAM_KEYLEN, kKeyBytes) && set(OSSL_CIPHER_PARAM_IVLEN, kIvBytes) &&
           set(OSSL_CIPHER_PARAM_BLOCK_SIZE, 1);
  }

  static int get_params(void* context, OSSL_PARAM params[]) {
    const Gcm& g = *static_cast<Gcm*>(context);
    const auto set = [params](const char* name, size_t value) {
      OSSL_PARAM* param = OSSL_PARAM_locate(params, name);
      return param == nullptr || OSSL_PARAM_set_size_t(param, value) == 1;
    };
    if (!set(OSSL_CIPHER_PARAM_KEYLEN, kKeyBytes) || !set(OSSL_CIPHER_PARAM_IVLEN, kIvBytes) ||
        !set(OSSL_CIPHER_PARAM_AEAD_TAGLEN, kTagBytes))
      return 0;
    OSSL_PARAM* tag = OSSL_PARAM_locate(params, OSSL_CIPHER_PARAM_AEAD_TAG);
    if (tag == nullptr) return 1;
    if (!g.encrypts || !g.has_tag || tag->data_type != OSSL_PARAM_OCTET_STRING ||
        tag->data_size > kTagBytes || tag->data == nullptr)
      return 0;
    return OSSL_PARAM_set_octet_string(tag, g.tag, tag->data_size);
  }

  static int set_params(void* context, const OSSL_PARAM params[]) {
    Gcm& g = *static_cast<Gcm*>(context);
    if (params == nullptr) return 1;
    for (const char* name : {OSSL_CIPHER_PARAM_KEYLEN, OSSL_CIPHER_PARAM_IVLEN}) {
      const OSSL_PARAM* param = OSSL_PARAM_locate_const(params, name);
      size_t bytes = 0;
      if (param == nullptr) continue;
      const size_t expected =
          std::strcmp(name, OSSL_CIPHER_PARAM_KEYLEN) == 0 ? kKeyBytes : kIvBytes;
      if (OSSL_PARAM_get_size_t(param, &bytes) != 1 || bytes != expected) return 0;
    }
    const OSSL_PARAM* tag = OSSL_PARAM_locate_const(params, OSSL_CIPHER_PARAM_AEAD_TAG);
    if (tag == nullptr) return 1;
    if (tag->data_type != OSSL_PARAM_OCTET_STRING || tag->data_size != kTagBytes) return 0;
    if (tag->data == nullptr) return 1;  // its length alone
    if (g.encrypts) return 0;
    std::memcpy(g.tag, tag->data, kTagBytes);
    g.has_tag = true;
    return 1;
  }

  static const OSSL_PARAM* gettable(void*, void*) {
    static const OSSL_PARAM params[] = {
        OSSL_PARAM_size_t(OSSL_CIPHER_PARAM_KEYLEN, nullptr),
        OSSL_PARAM_size_t(OSSL_CIPHER_PARAM_IVLEN, nullptr),
        OSSL_PARAM_size_t(OSSL_CIPHER_PARAM_AEAD_TAGLEN, nullptr),
        OSSL_PARAM_octet_string(OSSL_CIPHER_PARAM_AEAD_TAG, nullptr, 0), OSSL_PARAM_END};
    return params;
  }
  static const OSSL_PARAM* settable(void*, void*) {
    static const OSSL_PARAM params[] = {
        OSSL_PARAM_size_t(OSSL_CIPHER_PARAM_KEYLEN, nullptr),
        OSSL_PARAM_size_t(OSSL_CIPHER_PARAM_IVLEN, nullptr),
        OSSL_PARAM_octet_string(OSSL_CIPHER_PARAM_AEAD_TAG, nullptr, 0), OSSL_PARAM_END};
    return params;
  }

  static const OSSL_DISPATCH* functions() {
    const auto f = [](int id, auto* function) {
      return OSSL_DISPATCH{id, reinterpret_cast<void (*)()>(function)};
    };
    static const OSSL_DISPATCH table[] = {f(OSSL_FUNC_CIPHER_NEWCTX, make),
                                          f(OSSL_FUNC_CIPHER_FREECTX, free),
                                          f(OSSL_FUNC_CIPHER_ENCRYPT_INIT, encrypt_init),
                                          f(OSSL_FUNC_CIPHER_DECRYPT_INIT, decrypt_init),
                                          f(OSSL_FUNC_CIPHER_UPDATE, update),
                                          f(OSSL_FUNC_CIPHER_FINAL, final),
                                          f(OSSL_FUNC_CIPHER_GET_PARAMS, get_cipher_params),
                                          f(OSSL_FUNC_CIPHER_GET_CTX_PARAMS, get_params),
                                          f(OSSL_FUNC_CIPHER_SET_CTX_PARAMS, set_params),
                                          f(OSSL_FUNC_CIPHER_GETTABLE_CTX_PARAMS, gettable),
                                          f(OSSL_FUNC_CIPHER_SETTABLE_CTX_PARAMS, settable),
                                          {0, nullptr}};
    return table;
  }
};

const OSSL_ALGORITHM* query(void*, int operation, int* no_store) {
  static const OSSL_ALGORITHM ciphers[] = {{"AES-128-GCM:id-aes128-GCM:2.16.840.1.101.3.4.1.6",
                                            "provider=atoll-gcm", Gcm<16>::functions(), nullptr},
                                           {"AES-256-GCM:id-aes256-GCM:2.16.840.1.101.3.4.1.46",
                                            "provider=atoll-gcm", Gcm<32>::functions(), nullptr},
                                           {nullptr, nullptr, nullptr, nullptr}};
  *no_store = 0;
  return operation == OSSL_OP_CIPHER ? ciphers : nullptr;
}

int init_provider(const OSSL_CORE_HANDLE* handle, const OSSL_DISPATCH*, const OSSL_DISPATCH** out,
                  void** context) {
  static const OSSL_DISPATCH functions[] = {
      {OSSL_FUNC_PROVIDER_QUERY_OPERATION, reinterpret_cast<void (*)()>(query)}, {0, nullptr}};
  *out = functions;
  *context = const_cast<OSSL_CORE_HANDLE*>(handle);
  return 1;
}

bool load() {
  const IMB_MGR* m = manager();
  constexpr uint64_t kNeeded = IMB_FEATURE_VAES | IMB_FEATURE_VPCLMULQDQ;
  if (m == nullptr || (m->features & kNeeded) != kNeeded) return false;
  // OpenSSL's own stays for all else; it must be named as soon as another is loaded. Both stay
  // loaded to the end of the process, and are held here.
  static OSSL_PROVIDER* held[2];
  held[0] = OSSL_PROVIDER_load(nullptr, "default");
  if (held[0] != nullptr && OSSL_PROVIDER_add_builtin(nullptr, "atoll-gcm", init_provider) == 1)
    held[1] = OSSL_PROVIDER_load(nullptr, "atoll-gcm");
  const bool loaded = held[1] != nullptr;
  if (!loaded) log_warn("keys: the fast AES-GCM can't be loaded; OpenSSL's own is used");
  return loaded;
}

}  // namespace

const char* fast_gcm_query() {
  static const bool loaded = load();
  return loaded ? "?provider=atoll-gcm" : nullptr;
}

}  // namespace atl::transport
