#include "cli/chat_session.h"

#include <nlohmann/json.hpp>
#include <utility>

#include "base/one_line.h"
#include "cli/output.h"
#include "http/http_error.h"

namespace atl::cli {
namespace {

using http::HttpAnswer;
using http::HttpClient;
using http::HttpClientRequest;
using http::HttpUrl;
using Json = nlohmann::ordered_json;

HttpUrl without_v1(HttpUrl url) {
  if (url.path.ends_with("/v1")) url.path.resize(url.path.size() - 3);
  return url;
}

std::string text_of(const Json& object, const char* key) {
  const auto value = object.find(key);
  return value != object.end() && value->is_string() ? value->get<std::string>() : "";
}

// What the events of one reply have told.
struct Reply {
  std::string text, finish_reason, error;
  bool done = false;  // [DONE]
};

void read_event(std::string_view data, const ChatSession::OnText& on_reasoning,
                const ChatSession::OnText& on_text, Reply* reply) {
  if (data == "[DONE]") {
    reply->done = true;
    return;
  }
  const Json event = Json::parse(data, nullptr, false);
  if (!event.is_object()) {
    reply->error = "an event is not a JSON object";
    return;
  }
  if (event.contains("error")) {
    reply->error = event["error"].is_object() ? text_of(event["error"], "message") : "unknown";
    return;
  }
  const auto choices = event.find("choices");
  if (choices == event.end() || !choices->is_array() || choices->empty()) return;
  const Json& choice = choices->front();
  if (!choice.is_object()) return;
  const std::string finish = text_of(choice, "finish_reason");
  if (!finish.empty()) reply->finish_reason = finish;
  const auto delta = choice.find("delta");
  if (delta == choice.end() || !delta->is_object()) return;
  std::string reasoning = text_of(*delta, "reasoning_content");
  if (reasoning.empty()) reasoning = text_of(*delta, "reasoning");
  if (!reasoning.empty()) on_reasoning(reasoning);
  const std::string text = text_of(*delta, "content");
  reply->text += text;
  if (!text.empty()) on_text(text);
}

}  // namespace

struct ChatSession::Impl {
  explicit Impl(const ChatOptions& options_given)
      : options(options_given), client(without_v1(options.url)) {
    set_system(options.system);
  }

  std::vector<std::pair<std::string, std::string>> headers() const {
    std::vector<std::pair<std::string, std::string>> fields = {
        {"Content-Type", "application/json"}};
    if (!options.api_key.empty()) fields.emplace_back("Authorization", "Bearer " + options.api_key);
    return fields;
  }
  void find_model();
  void set_system(const std::string& text) {
    if (!messages.empty() && messages.front()["role"] == "system") messages.erase(0);
    if (!text.empty()) messages.insert(messages.begin(), message("system", text));
  }
  static Json message(const char* role, const std::string& text) {
    return {{"role", role}, {"content", text}};
  }
  std::string request_body() const;

  const ChatOptions options;
  HttpClient client;
  std::string model;
  Json messages = Json::array();
  std::atomic<HttpClient::RequestId> current{0};
  std::atomic<bool> stopped{false};
};

void ChatSession::Impl::find_model() {
  model = options.model;
  if (!model.empty()) return;
  const Result<HttpAnswer> answer =
      client.ask({.path = "/v1/models", .headers = headers(), .timeout = std::chrono::seconds(30)});
  if (!answer) throw LoadError(answer.error().message);
  if (answer->status != 200) throw LoadError("GET /v1/models: " + http::http_error_text(*answer));
  const Json models = Json::parse(answer->body, nullptr, false);
  if (models.is_object() && models.contains("data") && models["data"].is_array() &&
      !models["data"].empty() && models["data"].front().is_object()) {
    model = text_of(models["data"].front(), "id");
  }
  if (model.empty()) throw LoadError("GET /v1/models names no model; say which one by --model");
}

std::string ChatSession::Impl::request_body() const {
  Json body = {{"model", model}, {"messages", messages}, {"stream", true}};
  if (options.max_tokens > 0) body["max_tokens"] = options.max_tokens;
  if (options.temperature) body["temperature"] = *options.temperature;
  if (options.top_p) body["top_p"] = *options.top_p;
  if (options.seed) body["seed"] = *options.seed;
  // What a terminal or a file gives may not be UTF-8.
  return body.dump(-1, ' ', false, Json::error_handler_t::replace);
}

ChatSession::ChatSession(const ChatOptions& options) : impl_(std::make_unique<Impl>(options)) {
  impl_->find_model();
}
ChatSession::~ChatSession() = default;

const std::string& ChatSession::model() const { return impl_->model; }

Result<ChatReply> ChatSession::ask(const std::string& text, const OnText& on_reasoning,
                                   const OnText& on_text) {
  Impl& chat = *impl_;
  chat.messages.push_back(Impl::message("user", text));
  chat.stopped = false;
  Reply reply;
  std::optional<Result<HttpAnswer>> answer;
  chat.current = chat.client.start(
      {.method = "POST",
       .path = "/v1/chat/completions",
       .headers = chat.headers(),
       .body = chat.request_body()},
      [&](std::string_view data, Clock::TimePoint) {
        read_event(data, on_reasoning, on_text, &reply);
      },
      [&](Result<HttpAnswer> result) { answer.emplace(std::move(result)); });
  chat.client.run();
  chat.current = 0;

  std::optional<Error> error;
  const bool stopped = chat.stopped;
  if (!*answer) {
    if (!stopped) error = answer->error();
  } else if ((*answer)->status != 200) {
    error = Error{ErrorCode::kInvalid, http::http_error_text(**answer)};
  } else if (!reply.error.empty()) {
    error = Error{ErrorCode::kUnavailable, one_line(reply.error)};
  } else if (!reply.done) {
    error = Error{ErrorCode::kCorrupt, "the reply's stream ended without [DONE]"};
  }
  if (error || (stopped && reply.text.empty())) {
    chat.messages.erase(chat.messages.size() - 1);
  } else {
    chat.messages.push_back(Impl::message("assistant", reply.text));
  }
  if (error) return *error;
  return ChatReply{std::move(reply.text), std::move(reply.finish_reason), stopped};
}

void ChatSession::stop() {
  const HttpClient::RequestId id = impl_->current;
  if (id == 0) return;
  impl_->stopped = true;
  // By its id, so that it can't hit the reply after this one.
  impl_->client.post([impl = impl_.get(), id] { impl->client.cancel(id); });
}

void ChatSession::clear() {
  const bool has_system = !impl_->messages.empty() && impl_->messages.front()["role"] == "system";
  const std::string system = has_system ? text_of(impl_->messages.front(), "content") : "";
  impl_->messages = Json::array();
  impl_->set_system(system);
}

void ChatSession::set_system(const std::string& text) { impl_->set_system(text); }

std::string ChatSession::to_json() const {
  return Json{{"model", impl_->model}, {"messages", impl_->messages}}.dump(
      2, ' ', false, Json::error_handler_t::replace);
}

}  // namespace atl::cli
