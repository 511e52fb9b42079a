// The fast AES-GCM against OpenSSL's own: every size, any pieces, and what must be refused.
#include "transport/tls/fast_gcm.h"

#include <gtest/gtest.h>
#include <openssl/evp.h>

#include <algorithm>
#include <memory>
#include <random>
#include <string>
#include <vector>

namespace atl::transport {
namespace {

using Bytes = std::vector<unsigned char>;

struct Sealed {
  Bytes data, tag;
  friend bool operator==(const Sealed&, const Sealed&) = default;
};

class FastGcm : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    if (fast_gcm_query() == nullptr) GTEST_SKIP() << "no libipsec-mb, or no VAES";
    ours.reset(EVP_CIPHER_fetch(nullptr, GetParam(), "provider=atoll-gcm"));
    openssls.reset(EVP_CIPHER_fetch(nullptr, GetParam(), "provider=default"));
    ASSERT_TRUE(ours && openssls);
  }

  using Context = std::unique_ptr<EVP_CIPHER_CTX, void (*)(EVP_CIPHER_CTX*)>;
  // As OpenSSL's TLS calls it: key once, then an IV for each message.
  static Context keyed(const EVP_CIPHER* cipher, const Bytes& key, bool encrypts) {
    Context context(EVP_CIPHER_CTX_new(), EVP_CIPHER_CTX_free);
    EXPECT_EQ(EVP_CipherInit_ex(context.get(), cipher, nullptr, nullptr, nullptr, encrypts), 1);
    EXPECT_EQ(EVP_CIPHER_CTX_ctrl(context.get(), EVP_CTRL_AEAD_SET_IVLEN, 12, nullptr), 1);
    EXPECT_EQ(EVP_CipherInit_ex(context.get(), nullptr, nullptr, key.data(), nullptr, -1), 1);
    return context;
  }
  static bool update(EVP_CIPHER_CTX* context, unsigned char* out, const unsigned char* in,
                     size_t bytes) {
    int moved = 0;
    return EVP_CipherUpdate(context, out, &moved, in, static_cast<int>(bytes)) == 1 &&
           moved == static_cast<int>(bytes);
  }
  static Sealed seal(EVP_CIPHER_CTX* context, const Bytes& iv, const Bytes& aad, Bytes data,
                     size_t piece) {
    EXPECT_EQ(EVP_CipherInit_ex(context, nullptr, nullptr, nullptr, iv.data(), 1), 1);
    EXPECT_TRUE(update(context, nullptr, aad.data(), aad.size()));
    for (size_t at = 0; at < data.size(); at += piece)  // in place
      EXPECT_TRUE(update(context, &data[at], &data[at], std::min(piece, data.size() - at)));
    int moved = 0;
    unsigned char none[16];
    EXPECT_EQ(EVP_CipherFinal_ex(context, none, &moved), 1);
    EXPECT_EQ(moved, 0);
    Bytes tag(16);
    EXPECT_EQ(EVP_CIPHER_CTX_ctrl(context, EVP_CTRL_AEAD_GET_TAG, 16, tag.data()), 1);
    return {std::move(data), std::move(tag)};
  }
  // False if the tag is wrong.
  static bool open(EVP_CIPHER_CTX* context, const Bytes& iv, const Bytes& aad, Sealed sealed,
                   size_t piece, Bytes* data) {
    EXPECT_EQ(EVP_CipherInit_ex(context, nullptr, nullptr, nullptr, iv.data(), 0), 1);
    EXPECT_EQ(EVP_CIPHER_CTX_ctrl(context, EVP_CTRL_AEAD_SET_TAG, 16, sealed.tag.data()), 1);
    EXPECT_TRUE(update(context, nullptr, aad.data(), aad.size()));
    for (size_t at = 0; at < sealed.data.size(); at += piece)
      EXPECT_TRUE(update(context, &sealed.data[at], &sealed.data[at],
                         std::min(piece, sealed.data.size() - at)));
    int moved = 0;
    unsigned char none[16];
    const bool good = EVP_CipherFinal_ex(context, none, &moved) == 1;
    *data = std::move(sealed.data);
    return good;
  }
  Bytes random_bytes(size_t bytes) {
    Bytes made(bytes);
    for (unsigned char& byte : made) byte = static_cast<unsigned char>(random());
    return made;
  }
  size_t key_bytes() const { return std::string(GetParam()) == "AES-128-GCM" ? 16 : 32; }

  struct Free {
    void operator()(EVP_CIPHER* cipher) const { EVP_CIPHER_free(cipher); }
  };
  std::unique_ptr<EVP_CIPHER, Free> ours, openssls;
  std::mt19937 random{7};
};

TEST_P(FastGcm, is_openssls_to_the_byte) {
  std::vector<size_t> sizes = {16383, 16384, 16385, 14400, 100000};
  for (size_t size = 0; size < 600; ++size) sizes.push_back(size);
  const Bytes key = random_bytes(key_bytes());
  const Context our_seal = keyed(ours.get(), key, true),
                their_seal = keyed(openssls.get(), key, true);
  const Context our_open = keyed(ours.get(), key, false),
                their_open = keyed(openssls.get(), key, false);
  for (const size_t size : sizes) {
    const Bytes iv = random_bytes(12), aad = random_bytes(size % 21), data = random_bytes(size);
    const size_t piece = size % 3 == 0 ? 1 + size / 3 : size + 1;
    const Sealed sealed = seal(our_seal.get(), iv, aad, data, piece);
    ASSERT_EQ(sealed, seal(their_seal.get(), iv, aad, data, size + 1)) << size;
    Bytes opened;
    ASSERT_TRUE(open(our_open.get(), iv, aad, sealed, piece, &opened)) << size;
    ASSERT_EQ(opened, data);
    ASSERT_TRUE(open(their_open.get(), iv, aad, sealed, size + 1, &opened)) << size;
  }
}

TEST_P(FastGcm, refuses_what_was_changed) {
  const Bytes key = random_bytes(key_bytes()), iv = random_bytes(12), aad = random_bytes(5);
  const Context seals = keyed(ours.get(), key, true), opens = keyed(ours.get(), key, false);
  const Sealed sealed = seal(seals.get(), iv, aad, random_bytes(300), 300);
  Bytes data;
  for (size_t i = 0; i < 300; ++i) {
    Sealed changed = sealed;
    changed.data[i] ^= 1;
    ASSERT_FALSE(open(opens.get(), iv, aad, changed, 300, &data)) << i;
  }
  for (size_t i = 0; i < 16; ++i) {
    Sealed changed = sealed;
    changed.tag[i] ^= 0x80;
    ASSERT_FALSE(open(opens.get(), iv, aad, changed, 300, &data)) << i;
  }
  for (size_t i = 0; i < 5; ++i) {
    Bytes changed = aad;
    changed[i] ^= 1;
    ASSERT_FALSE(open(opens.get(), iv, changed, sealed, 300, &data)) << i;
  }
  Bytes other_iv = iv;
  other_iv[11] ^= 1;
  ASSERT_FALSE(open(opens.get(), other_iv, aad, sealed, 300, &data));
  ASSERT_TRUE(open(opens.get(), iv, aad, sealed, 300, &data));
}

TEST_P(FastGcm, wants_a_key_an_iv_for_each_message_and_their_sizes) {
  const Bytes key = random_bytes(key_bytes()), iv = random_bytes(12);
  unsigned char byte = 0;
  Context fresh(EVP_CIPHER_CTX_new(), EVP_CIPHER_CTX_free);
  ASSERT_EQ(EVP_CipherInit_ex(fresh.get(), ours.get(), nullptr, nullptr, nullptr, 1), 1);
  EXPECT_FALSE(update(fresh.get(), &byte, &byte, 1));  // no key
  EXPECT_EQ(EVP_CIPHER_CTX_ctrl(fresh.get(), EVP_CTRL_AEAD_SET_IVLEN, 16, nullptr), 0);
  const Context seals = keyed(ours.get(), key, true);
  EXPECT_FALSE(update(seals.get(), &byte, &byte, 1));  // no IV
  seal(seals.get(), iv, {}, Bytes(10), 10);
  EXPECT_FALSE(update(seals.get(), &byte, &byte, 1));  // that IV is used up
  // Without a tag nothing is opened.
  const Context opens = keyed(ours.get(), key, false);
  ASSERT_EQ(EVP_CipherInit_ex(opens.get(), nullptr, nullptr, nullptr, iv.data(), 0), 1);
  EXPECT_TRUE(update(opens.get(), &byte, &byte, 1));
  int moved = 0;
  EXPECT_EQ(EVP_CipherFinal_ex(opens.get(), &byte, &moved), 0);
}

INSTANTIATE_TEST_SUITE_P(Ciphers, FastGcm, testing::Values("AES-128-GCM", "AES-256-GCM"),
                         [](const auto& info) {
                           return std::string(info.param) == "AES-128-GCM" ? "aes128" : "aes256";
                         });

}  // namespace
}  // namespace atl::transport
