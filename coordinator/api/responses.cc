#include "coordinator/api/responses.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>
#include <vector>

#include "base/check.h"
#include "coordinator/api/api_json.h"
#include "coordinator/api/refused_fields.h"

namespace atl::coordinator {
namespace {

using Json = nlohmann::ordered_json;

constexpr size_t kItemsMax = 100'000;

// --- requests ---

class InputReader {
 public:
  explicit InputReader(Json before) : chat(std::move(before)) {}

  void read(const JsonValue& input) {
    if (input.is_string()) {
      chat.push_back({{"role", "user"}, {"content", *input.string()}});
      return;
    }
    if (!input.is_array()) input.complain("a string or an array of items");
    for (const JsonValue& item : input.elements(kItemsMax)) read_item(item);
  }

  Json chat;

 private:
  void read_item(const JsonValue& item) {
    const std::string type = item["type"].string().value_or("message");
    if (type == "message") {
      read_message(item);
    } else if (type == "function_call") {
      Json& calls = assistant()["tool_calls"];
      calls.push_back({{"id", item["call_id"].string().value_or("")},
                       {"type", "function"},
                       {"function",
                        {{"name", item["name"].string().value_or("")},
                         {"arguments", item["arguments"].string().value_or("{}")}}}});
    } else if (type == "function_call_output") {
      chat.push_back({{"role", "tool"},
                      {"tool_call_id", item["call_id"].string().value_or("")},
                      {"content", text_of(item["output"])}});
    } else if (type == "reasoning") {
      std::string text;
      for (const char* list : {"content", "summary"}) {
        if (text.empty()) text = text_of(item[list]);
      }
      if (!text.empty()) pending_reasoning_ = text;
    } else {
      item["type"].refuse(fmt::format("{}: items of type \"{}\" are not supported",
                                      item["type"].path(), type.substr(0, 40)),
                          "unsupported");
    }
  }

  void read_message(const JsonValue& item) {
    const std::string role = item["role"].string().value_or("");
    if (role == "assistant") {
      assistant(true)["content"] = text_of(item["content"]);
      return;
    }
    if (role != "user" && role != "system" && role != "developer") {
      item["role"].complain("user, assistant, system or developer");
    }
    pending_reasoning_.clear();
    chat.push_back({{"role", role}, {"content", text_of(item["content"])}});
  }

  // The assistant's turn that is under way, or a new one.
  Json& assistant(bool says = false) {
    const bool goes_on = !chat.empty() && chat.back()["role"] == "assistant" &&
                         (!says || chat.back()["content"].is_null());
    if (!goes_on) chat.push_back({{"role", "assistant"}, {"content", nullptr}});
    if (!pending_reasoning_.empty()) {
      chat.back()["reasoning_content"] = std::exchange(pending_reasoning_, {});
    }
    return chat.back();
  }

  static std::string text_of(const JsonValue& content) {
    if (content.is_string()) return *content.string();
    std::string text;
    for (const JsonValue& part : content.elements(kPartsMax)) {
      const std::string type = part["type"].string().value_or("");
      if (type != "input_text" && type != "output_text" && type != "text" &&
          type != "reasoning_text" && type != "summary_text" && type != "refusal") {
        part["type"].refuse(
            fmt::format("{}: this model reads text only, found a part of type \"{}\"",
                        part["type"].path(), type.substr(0, 40)),
            "unsupported");
      }
      text += (text.empty() ? "" : "\n") +
              part[type == "refusal" ? "refusal" : "text"].string().value_or("");
    }
    return text;
  }

  std::string pending_reasoning_;
};

Json read_responses_tools(const JsonValue& tools) {
  Json out = Json::array();
  if (!tools.missing() && !tools.is_array()) tools.complain("an array");
  for (const JsonValue& tool : tools.elements(kToolsMax)) {
    if (tool["type"].string() != "function") {
      tool["type"].refuse(tool["type"].path() + ": only functions are supported", "unsupported");
    }
    Json function = {{"name", tool["name"].string().value_or("")}};
    if (const auto text = tool["description"].string()) function["description"] = *text;
    if (!tool["parameters"].missing()) {
      function["parameters"] = Json::parse(tool["parameters"].text());
    }
    out.push_back({{"type", "function"}, {"function", std::move(function)}});
  }
  return out;
}

void read_format(const JsonValue& format, Json& chat) {
  if (format.missing()) return;
  const std::string type = format["type"].string().value_or("");
  if (type == "json_schema") {
    chat["response_format"] = {{"type", "json_schema"},
                               {"json_schema", Json::parse(format.text())}};
  } else if (type == "json_object") {
    chat["response_format"] = {{"type", "json_object"}};
  } else if (type != "text") {
    format["type"].complain("text, json_object or json_schema");
  }
}

void read_tool_choice(const JsonValue& choice, Json& chat) {
  if (choice.missing()) return;
  if (choice.is_string()) {
    chat["tool_choice"] = *choice.string();
  } else if (choice["type"].string() == "function") {
    chat["tool_choice"] = {{"type", "function"},
                           {"function", {{"name", choice["name"].string().value_or("")}}}};
  } else {
    choice.complain("none, auto, required, or an object that names a function");
  }
}

constexpr std::string_view kReadOfResponses[] = {"input",
                                                 "instructions",
                                                 "tools",
                                                 "tool_choice",
                                                 "text",
                                                 "store",
                                                 "truncation",
                                                 "include",
                                                 "max_output_tokens",
                                                 "previous_response_id",
                                                 "background",
                                                 "n",
                                                 "stream_options",
                                                 "max_tool_calls",
                                                 "context_management",
                                                 "logprobs",
                                                 "top_logprobs"};

void refuse_of_responses(const JsonValue& root) {
  refuse(refused_fields_of_responses(), root);
  static constexpr RefusedField kOfText[] = {{"verbosity", "\"medium\"", "say it in the prompt"}};
  refuse(kOfText, root["text"]);
  for (const JsonValue& what : root["include"].elements(kItemsMax)) {
    // Others are of the provider's own tools, or of reasoning, which is not encrypted here.
    if (!what.is_string() || *what.string() != "message.output_text.logprobs") continue;
    what.refuse(what.path() + ": no log probabilities here; use /v1/chat/completions",
                "unsupported");
  }
}

// What the answer says again, with OpenAI's defaults.
Json echo_of(const JsonValue& root) {
  const std::pair<const char*, Json> fields[] = {
      {"instructions", nullptr},
      {"max_output_tokens", nullptr},
      {"metadata", Json::object()},
      {"parallel_tool_calls", true},
      {"previous_response_id", nullptr},
      {"reasoning", {{"effort", nullptr}, {"summary", nullptr}}},
      {"store", true},
      {"temperature", 1.0},
      {"text", {{"format", {{"type", "text"}}}}},
      {"tool_choice", "auto"},
      {"tools", Json::array()},
      {"top_p", 1.0},
      {"truncation", "disabled"},
      {"user", nullptr}};
  Json echo = Json::object();
  for (const auto& [name, otherwise] : fields) {
    echo[name] = root[name].missing() ? otherwise : Json::parse(root[name].text());
  }
  return echo;
}

// --- answers ---

class ResponsesFormat final : public AnswerFormat {
 public:
  ResponsesFormat(AnswerHead head, ResponseRequest request, std::string owner, ResponseStore& store,
                  DoorOptions options)
      : head_(std::move(head)),
        request_(std::move(request)),
        owner_(std::move(owner)),
        store_(store),
        options_(std::move(options)) {}

  bool names_events() const override { return true; }
  std::string error(const ApiError& error) override {
    return dump({{"type", "error"},
                 {"sequence_number", sequence_++},
                 {"code", error.code.empty() ? Json(nullptr) : Json(error.code)},
                 {"message", error.message},
                 {"param", error.param.empty() ? Json(nullptr) : Json(error.param)}});
  }

  std::string open(size_t) override {
    std::string out;
    for (const char* type : {"response.created", "response.in_progress"}) {
      add(type, {{"response", response_json("in_progress", nullptr)}}, out);
    }
    return out;
  }

  std::string chunk(size_t, const ChoiceDelta& delta) override {
    std::string out;
    take(delta, &out);
    return out;
  }
  void keep(size_t, const ChoiceDelta& delta) override { take(delta, nullptr); }

  std::string usage_chunk(const AnswerUsage&) override { return {}; }

  std::string ending(const AnswerUsage& usage, bool) override {
    std::string out;
    const std::string status = last_status();
    close(&out, status);
    add("response." + status, {{"response", response_json(status, usage_of(usage))}}, out);
    remember();
    return out;
  }

  std::string whole(const AnswerUsage& usage) override {
    const std::string status = last_status();
    close(nullptr, status);
    remember();
    return dump(response_json(status, usage_of(usage)));
  }

 private:
  enum class Item { kNone, kReasoning, kMessage, kCall };

  static Json usage_of(const AnswerUsage& usage) {
    return {{"input_tokens", usage.prompt_tokens},
            {"input_tokens_details",
             {{"cached_tokens", usage.cached_tokens}, {"cache_write_tokens", 0}}},
            {"output_tokens", usage.completion_tokens},
            {"output_tokens_details", {{"reasoning_tokens", usage.reasoning_tokens}}},
            {"total_tokens", usage.prompt_tokens + usage.completion_tokens}};
  }

  // Of the response, and of the item that was under way when it ended.
  std::string last_status() const {
    return finish_reason_ == "length" ? "incomplete" : "completed";
  }

  Json response_json(const std::string& status, Json usage) const {
    Json json = {{"id", head_.id},
                 {"object", "response"},
                 {"created_at", head_.created},
                 {"status", status},
                 {"background", false},
                 {"error", nullptr},
                 {"incomplete_details", nullptr},
                 {"model", head_.model},
                 {"output", output_}};
    if (status == "incomplete") {
      json["incomplete_details"] = {{"reason", "max_output_tokens"}};
    }
    json.update(Json::parse(request_.echo_json));
    json["usage"] = std::move(usage);
    return json;
  }

  void add(const std::string& type, Json fields, std::string& out) {
    Json json = {{"type", type}, {"sequence_number", sequence_++}};
    json.update(fields);
    out += (out.empty() ? "" : "\n") + dump(json);
  }

  // out null: nothing is streamed.
  void take(const ChoiceDelta& delta, std::string* out) {
    if (!delta.reply.reasoning.empty() && options_.reasoning) {
      enter(Item::kReasoning, out);
      say("response.reasoning_text.delta", delta.reply.reasoning, out);
    }
    if (!delta.reply.content.empty()) {
      enter(Item::kMessage, out);
      say("response.output_text.delta", delta.reply.content, out);
    }
    for (const auto& call : delta.reply.tool_calls) {
      if (!call.name.empty()) {
        close(out);
        name_ = call.name;
        call_id_ = options_.call_ids.of(call, "call_");
        enter(Item::kCall, out);
      }
      if (!call.arguments.empty())
        say("response.function_call_arguments.delta", call.arguments, out);
    }
    if (!delta.finish_reason.empty()) finish_reason_ = delta.finish_reason;
  }

  void say(const char* type, const std::string& piece, std::string* out) {
    text_ += piece;
    if (out == nullptr) return;
    Json fields = place();
    fields["delta"] = piece;
    if (item_ == Item::kMessage) fields["logprobs"] = Json::array();
    add(type, std::move(fields), *out);
  }

  // Of the item under way.
  Json place() const {
    Json fields = {{"item_id", id_}, {"output_index", output_.size()}};
    if (item_ != Item::kCall) fields["content_index"] = 0;
    return fields;
  }

  Json part() const {
    if (item_ == Item::kReasoning) return {{"type", "reasoning_text"}, {"text", text_}};
    return {{"type", "output_text"},
            {"text", text_},
            {"annotations", Json::array()},
            {"logprobs", Json::array()}};
  }

  Json item_json(const std::string& status) const {
    const Json parts =
        text_.empty() && status == "in_progress" ? Json::array() : Json::array({part()});
    switch (item_) {
      case Item::kReasoning:
        return {{"type", "reasoning"}, {"id", id_}, {"summary", Json::array()}, {"content", parts}};
      case Item::kCall:
        return {{"type", "function_call"}, {"id", id_},          {"call_id", call_id_},
                {"name", name_},           {"arguments", text_}, {"status", status}};
      default:
        return {{"type", "message"},
                {"id", id_},
                {"status", status},
                {"role", "assistant"},
                {"content", parts}};
    }
  }

  void enter(Item item, std::string* out) {
    if (item_ == item && item != Item::kCall) return;
    close(out);
    item_ = item;
    text_.clear();
    id_ = random_id(item == Item::kReasoning ? "rs_" : item == Item::kCall ? "fc_" : "msg_");
    if (out == nullptr) return;
    add("response.output_item.added",
        {{"output_index", output_.size()}, {"item", item_json("in_progress")}}, *out);
    if (item == Item::kCall) return;
    Json fields = place();
    fields["part"] = part();
    add("response.content_part.added", std::move(fields), *out);
  }

  void close(std::string* out, const std::string& status = "completed") {
    if (item_ == Item::kNone) return;
    if (out != nullptr) {
      Json fields = place();
      if (item_ == Item::kCall) {
        fields["name"] = name_;
        fields["arguments"] = text_;
        add("response.function_call_arguments.done", std::move(fields), *out);
      } else {
        Json done = fields;
        done["text"] = text_;
        if (item_ == Item::kMessage) done["logprobs"] = Json::array();
        add(item_ == Item::kMessage ? "response.output_text.done" : "response.reasoning_text.done",
            std::move(done), *out);
        fields["part"] = part();
        add("response.content_part.done", std::move(fields), *out);
      }
    }
    Json item = item_json(status);
    if (out != nullptr) {
      add("response.output_item.done", {{"output_index", output_.size()}, {"item", item}}, *out);
    }
    output_.push_back(std::move(item));
    item_ = Item::kNone;
  }

  void remember() {
    if (!request_.store) return;
    Json messages = Json::parse(request_.messages_json);
    Json turn = {{"role", "assistant"}, {"content", nullptr}};
    for (const Json& item : output_) {
      if (item["type"] == "function_call") {
        turn["tool_calls"].push_back(
            {{"id", item["call_id"]},
             {"type", "function"},
             {"function", {{"name", item["name"]}, {"arguments", item["arguments"]}}}});
      } else if (item["type"] == "reasoning") {
        turn["reasoning_content"] = item["content"][0]["text"];
      } else {
        std::string before;
        if (turn["content"].is_string()) before = turn["content"].get<std::string>();
        turn["content"] = before + item["content"][0]["text"].get<std::string>();
      }
    }
    messages.push_back(std::move(turn));
    store_.keep(head_.id, owner_, dump(messages));
  }

  const AnswerHead head_;
  const ResponseRequest request_;
  const std::string owner_;
  ResponseStore& store_;
  const DoorOptions options_;
  Json output_ = Json::array();
  int64_t sequence_ = 0;
  std::string finish_reason_;
  Item item_ = Item::kNone;
  std::string id_, call_id_, name_, text_;  // of the item under way
};

}  // namespace

void ResponseStore::keep(const std::string& id, const std::string& owner,
                         std::string messages_json) {
  const std::lock_guard lock(mutex_);
  entries_.push_front({id, owner, std::move(messages_json)});
  by_id_[id] = entries_.begin();
  bytes_ += entries_.front().bytes();
  while (bytes_ > bytes_max_) {
    bytes_ -= entries_.back().bytes();
    by_id_.erase(entries_.back().id);
    entries_.pop_back();
  }
}

std::optional<std::string> ResponseStore::find(const std::string& id, const std::string& owner) {
  const std::lock_guard lock(mutex_);
  const auto found = by_id_.find(id);
  if (found == by_id_.end() || found->second->owner != owner) return std::nullopt;
  entries_.splice(entries_.begin(), entries_, found->second);
  return found->second->messages_json;
}

size_t ResponseStore::bytes() const {
  const std::lock_guard lock(mutex_);
  return bytes_;
}

Parsed<ResponseRequest> chat_of_responses(std::string_view body, const std::string& owner,
                                          ResponseStore& store) {
  auto document = JsonDocument::parse(body);
  if (!document) return document.error();
  const JsonValue root = document->root();
  Json before = Json::array();
  if (const auto id = root["previous_response_id"].string()) {
    const auto found = store.find(*id, owner);
    if (!found) {
      ApiError error = invalid_request(
          "previous_response_id",
          fmt::format("previous response \"{}\" is not kept here (any more); send the whole "
                      "conversation as input",
                      id->substr(0, 60)),
          "previous_response_not_found");
      error.status = 404;
      return error;
    }
    before = Json::parse(*found);
  }
  InputReader reader(std::move(before));
  if (root["input"].missing()) root["input"].complain("a string or an array of items");
  reader.read(root["input"]);
  ResponseRequest request;
  request.messages_json = dump(reader.chat);
  request.store = root["store"].boolean().value_or(true);
  Json chat = Json::object();
  Json messages = Json::array();
  // Instructions are this request's alone.
  if (const auto text = root["instructions"].string(); text && !text->empty()) {
    messages.push_back({{"role", "system"}, {"content", *text}});
  }
  for (Json& message : reader.chat) messages.push_back(std::move(message));
  chat["messages"] = std::move(messages);
  Json tools = read_responses_tools(root["tools"]);
  if (!tools.empty()) chat["tools"] = std::move(tools);
  read_tool_choice(root["tool_choice"], chat);
  read_format(root["text"]["format"], chat);
  if (const auto most = root["max_output_tokens"].integer(1, INT64_MAX)) chat["max_tokens"] = *most;
  refuse_of_responses(root);
  pass_on(root, kReadOfResponses, chat);
  if (document->error()) return *document->error();
  request.chat_body = dump(chat);
  request.echo_json = dump(echo_of(root));
  return request;
}

std::unique_ptr<AnswerFormat> make_responses_format(AnswerHead head, ResponseRequest request,
                                                    std::string owner, ResponseStore& store,
                                                    DoorOptions options) {
  return std::make_unique<ResponsesFormat>(std::move(head), std::move(request), std::move(owner),
                                           store, std::move(options));
}

}  // namespace atl::coordinator
