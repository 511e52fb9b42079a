#include "transport/tls/openssl.h"

#include <fmt/core.h>
#include <openssl/err.h>

#include <ctime>

namespace atl::transport {

namespace {
constexpr size_t kNamesTold = 8;
constexpr size_t kNameBytesTold = 64;
}  // namespace

std::string openssl_reason(const std::string& otherwise) {
  const unsigned long code = ERR_peek_last_error();
  ERR_clear_error();
  const char* reason = code != 0 ? ERR_reason_error_string(code) : nullptr;
  return reason ? reason : otherwise;
}

std::string time_text(const ASN1_TIME* time) {
  std::tm utc{};
  if (time == nullptr || ASN1_TIME_to_tm(time, &utc) != 1) return "a time that can't be read";
  char text[40];
  std::strftime(text, sizeof text, "%Y-%m-%d %H:%M:%S UTC", &utc);
  return text;
}

std::vector<std::string> names_of(const X509& certificate) {
  std::vector<std::string> names;
  auto* all = static_cast<GENERAL_NAMES*>(
      X509_get_ext_d2i(&certificate, NID_subject_alt_name, nullptr, nullptr));
  for (int i = 0; i < sk_GENERAL_NAME_num(all) && names.size() < kNamesTold; ++i) {
    const GENERAL_NAME* name = sk_GENERAL_NAME_value(all, i);
    if (name->type != GEN_DNS) continue;
    const auto* data = reinterpret_cast<const char*>(ASN1_STRING_get0_data(name->d.dNSName));
    const auto bytes = static_cast<size_t>(ASN1_STRING_length(name->d.dNSName));
    std::string text(data, std::min(bytes, kNameBytesTold));
    for (char& c : text) {
      if (c < ' ' || c > '~') c = '?';
    }
    names.push_back(std::move(text));
  }
  GENERAL_NAMES_free(all);
  return names;
}

std::string issuer_text(const X509& certificate) {
  char text[128] = "";
  X509_NAME_oneline(X509_get_issuer_name(&certificate), text, sizeof text);
  std::string issuer = text;
  for (char& c : issuer) {
    if (c < ' ' || c > '~') c = '?';
  }
  return issuer;
}

std::string names_text(const std::vector<std::string>& names) {
  std::string text;
  for (const std::string& name : names) text += (text.empty() ? "" : ", ") + name;
  return text.empty() ? "no name" : text;
}

}  // namespace atl::transport
