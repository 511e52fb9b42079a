#include "coordinator/api/answer_format.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <random>

#include "base/check.h"
#include "coordinator/api/api_json.h"
#include "text/utf8.h"

namespace atl::coordinator {
namespace {

using Json = nlohmann::ordered_json;

// What JSON has no number for; as vLLM does.
constexpr double kLogprobMin = -9999;

Json logprob_json(double logprob) {
  if (std::isnan(logprob)) return nullptr;
  return std::isfinite(logprob) ? std::max<double>(logprob, kLogprobMin) : kLogprobMin;
}

Json usage_json(const AnswerUsage& usage) {
  return {{"prompt_tokens", usage.prompt_tokens},
          {"completion_tokens", usage.completion_tokens},
          {"total_tokens", usage.prompt_tokens + usage.completion_tokens},
          {"prompt_tokens_details", {{"cached_tokens", usage.cached_tokens}}},
          {"completion_tokens_details", {{"reasoning_tokens", usage.reasoning_tokens}}}};
}

Json head_json(const AnswerHead& head, std::string_view object) {
  return {{"id", head.id},
          {"object", object},
          {"created", head.created},
          {"model", head.model},
          {"system_fingerprint", head.system_fingerprint}};
}

int64_t num_characters(std::string_view text) {
  return std::count_if(text.begin(), text.end(),
                       [](unsigned char c) { return (c & 0xC0) != 0x80; });
}

// vLLM's form: for each token null or {"ID": {"logprob", "rank", "decoded_token"}, ...}, its own
// first. The rank is known of those that are among the likeliest.
Json prompt_logprobs_json(const text::Tokenizer& tokenizer,
                          const std::vector<ChoiceToken>& tokens) {
  Json list = Json::array();
  for (const ChoiceToken& token : tokens) {
    list.push_back(nullptr);
    if (std::isnan(token.logprob)) continue;
    const auto add = [&](int32_t id, double logprob, Json rank) {
      list.back()[std::to_string(id)] = {
          {"logprob", logprob_json(logprob)},
          {"rank", std::move(rank)},
          {"decoded_token", text::repair_utf8(tokenizer.token_bytes(id))}};
    };
    add(token.id, token.logprob, nullptr);
    for (size_t i = 0; i < token.top.size(); ++i) {
      const bool own = token.top[i].id == token.id;
      add(token.top[i].id, own ? token.logprob : token.top[i].logprob, i + 1);
    }
  }
  return list;
}

// --- chat ---

Json chat_token_json(const text::Tokenizer& tokenizer, int32_t id, double logprob) {
  const std::string_view bytes = tokenizer.token_bytes(id);
  Json list = Json::array();
  for (const unsigned char byte : bytes) list.push_back(byte);
  return {{"token", text::repair_utf8(bytes)},
          {"logprob", logprob_json(logprob)},
          {"bytes", std::move(list)}};
}

Json chat_logprobs_json(const text::Tokenizer& tokenizer, const std::vector<ChoiceToken>& tokens) {
  Json content = Json::array();
  for (const ChoiceToken& token : tokens) {
    Json entry = chat_token_json(tokenizer, token.id, token.logprob);
    Json& top = entry["top_logprobs"] = Json::array();
    for (const TokenLogprob& other : token.top) {
      top.push_back(chat_token_json(tokenizer, other.id, other.logprob));
    }
    content.push_back(std::move(entry));
  }
  return {{"content", std::move(content)}, {"refusal", nullptr}};
}

std::string usage_chunk_text(const AnswerHead& head, const char* object, const AnswerUsage& usage) {
  Json json = head_json(head, object);
  json["choices"] = Json::array();
  json["usage"] = usage_json(usage);
  return dump(json);
}

class ChatFormat final : public AnswerFormat {
 public:
  ChatFormat(AnswerHead head, const text::Tokenizer& tokenizer, ChatFormatOptions options)
      : head_(std::move(head)),
        tokenizer_(tokenizer),
        options_(options),
        choices_(options.num_choices) {}

  std::string open(size_t choice) override {
    return chunk_json(choice, {{"role", "assistant"}, {"content", ""}}, nullptr, "");
  }

  std::string chunk(size_t choice, const ChoiceDelta& delta) override {
    Json json = Json::object();
    if (!delta.reply.reasoning.empty() && options_.reasoning) {
      json["reasoning_content"] = delta.reply.reasoning;
    }
    if (!delta.reply.content.empty()) json["content"] = delta.reply.content;
    for (const auto& call : delta.reply.tool_calls) {
      Json piece = {{"index", call.index}};
      if (!call.name.empty()) {
        piece["id"] = options_.call_ids.of(call, "call_");
        piece["type"] = "function";
        piece["function"] = {{"name", call.name}, {"arguments", call.arguments}};
      } else {
        piece["function"] = {{"arguments", call.arguments}};
      }
      json["tool_calls"].push_back(std::move(piece));
    }
    Json logprobs;
    if (options_.logprobs && !delta.tokens.empty()) {
      logprobs = chat_logprobs_json(tokenizer_, delta.tokens);
    }
    return chunk_json(choice, std::move(json), std::move(logprobs), delta.finish_reason);
  }

  std::string usage_chunk(const AnswerUsage& usage) override {
    return usage_chunk_text(head_, "chat.completion.chunk", usage);
  }

  void keep(size_t choice, const ChoiceDelta& delta) override {
    Kept& kept = choices_.at(choice);
    kept.reasoning += delta.reply.reasoning;
    kept.content += delta.reply.content;
    for (const auto& call : delta.reply.tool_calls) {
      if (!call.name.empty()) {
        kept.calls.push_back(
            {.id = options_.call_ids.of(call, "call_"), .name = call.name, .arguments = {}});
      }
      CHECK(!kept.calls.empty());
      kept.calls.back().arguments += call.arguments;
    }
    kept.tokens.insert(kept.tokens.end(), delta.tokens.begin(), delta.tokens.end());
    if (!delta.prompt.empty() && prompt_.empty()) prompt_ = delta.prompt;
    if (!delta.finish_reason.empty()) kept.finish_reason = delta.finish_reason;
  }

  std::string whole(const AnswerUsage& usage) override {
    Json json = head_json(head_, "chat.completion");
    Json& choices = json["choices"] = Json::array();
    for (const Kept& kept : choices_) choices.push_back(choice_json(choices.size(), kept));
    json["usage"] = usage_json(usage);
    if (!prompt_.empty()) json["prompt_logprobs"] = prompt_logprobs_json(tokenizer_, prompt_);
    return dump(json);
  }

 private:
  struct Call {
    std::string id, name, arguments;
  };
  struct Kept {
    std::string reasoning, content, finish_reason;
    std::vector<Call> calls;
    std::vector<ChoiceToken> tokens;
  };

  std::string chunk_json(size_t choice, Json delta, Json logprobs,
                         const std::string& finish_reason) const {
    Json json = head_json(head_, "chat.completion.chunk");
    json["choices"].push_back({{"index", choice},
                               {"delta", std::move(delta)},
                               {"logprobs", std::move(logprobs)},
                               {"finish_reason", text_or_null(finish_reason)}});
    if (options_.usage_in_chunks) json["usage"] = nullptr;
    return dump(json);
  }

  Json choice_json(size_t index, const Kept& kept) const {
    Json message = {{"role", "assistant"}, {"content", kept.content}, {"refusal", nullptr}};
    if (kept.content.empty() && !kept.calls.empty()) message["content"] = nullptr;
    if (!kept.reasoning.empty() && options_.reasoning) {
      message["reasoning_content"] = kept.reasoning;
    }
    for (const Call& call : kept.calls) {
      message["tool_calls"].push_back(
          {{"id", call.id},
           {"type", "function"},
           {"function", {{"name", call.name}, {"arguments", call.arguments}}}});
    }
    Json logprobs;
    if (options_.logprobs) logprobs = chat_logprobs_json(tokenizer_, kept.tokens);
    return {{"index", index},
            {"message", std::move(message)},
            {"logprobs", std::move(logprobs)},
            {"finish_reason", text_or_null(kept.finish_reason)}};
  }

  const AnswerHead head_;
  const text::Tokenizer& tokenizer_;
  const ChatFormatOptions options_;
  std::vector<Kept> choices_;
  std::vector<ChoiceToken> prompt_;  // that all choices have
};

// --- completions ---

// As OpenAI spells a token that is not whole characters: bytes:\xe2\x96.
std::string completion_token_text(const text::Tokenizer& tokenizer, int32_t id) {
  const std::string_view bytes = tokenizer.token_bytes(id);
  if (text::is_valid_utf8(bytes)) return std::string(bytes);
  std::string text = "bytes:";
  for (const unsigned char byte : bytes) text += fmt::format("\\x{:02x}", byte);
  return text;
}

class CompletionFormat final : public AnswerFormat {
 public:
  CompletionFormat(AnswerHead head, const text::Tokenizer& tokenizer,
                   CompletionFormatOptions options)
      : head_(std::move(head)),
        tokenizer_(tokenizer),
        options_(std::move(options)),
        choices_(options_.echo.size()) {
    for (size_t i = 0; i < choices_.size(); ++i) choices_[i].text = options_.echo[i];
  }

  std::string open(size_t choice) override {
    if (options_.echo.at(choice).empty()) return {};
    return dump(chunk_json(choice, options_.echo[choice], nullptr, ""));
  }

  std::string chunk(size_t choice, const ChoiceDelta& delta) override {
    Json logprobs;
    if (options_.logprobs && !delta.tokens.empty()) logprobs = logprobs_json(choice, delta.tokens);
    return dump(chunk_json(choice, delta.reply.content, std::move(logprobs), delta.finish_reason));
  }

  std::string usage_chunk(const AnswerUsage& usage) override {
    return usage_chunk_text(head_, "text_completion", usage);
  }

  void keep(size_t choice, const ChoiceDelta& delta) override {
    Kept& kept = choices_.at(choice);
    kept.text += delta.reply.content;
    kept.tokens.insert(kept.tokens.end(), delta.tokens.begin(), delta.tokens.end());
    if (!delta.prompt.empty()) kept.prompt = delta.prompt;
    if (!delta.finish_reason.empty()) kept.finish_reason = delta.finish_reason;
  }

  std::string whole(const AnswerUsage& usage) override {
    Json json = head_json(head_, "text_completion");
    Json& choices = json["choices"] = Json::array();
    for (size_t i = 0; i < choices_.size(); ++i) {
      Json logprobs;
      if (options_.logprobs) logprobs = logprobs_json(i, choices_[i].tokens);
      choices.push_back({{"text", choices_[i].text},
                         {"index", i},
                         {"logprobs", std::move(logprobs)},
                         {"finish_reason", text_or_null(choices_[i].finish_reason)}});
      if (choices_[i].prompt.empty()) continue;
      choices.back()["prompt_logprobs"] = prompt_logprobs_json(tokenizer_, choices_[i].prompt);
    }
    json["usage"] = usage_json(usage);
    return dump(json);
  }

 private:
  struct Kept {
    std::string text, finish_reason;
    std::vector<ChoiceToken> tokens, prompt;
    int64_t characters = 0;  // of the tokens told so far
  };

  Json chunk_json(size_t choice, const std::string& text, Json logprobs,
                  const std::string& finish_reason) const {
    Json json = head_json(head_, "text_completion");
    json["choices"].push_back({{"text", text},
                               {"index", choice},
                               {"logprobs", std::move(logprobs)},
                               {"finish_reason", text_or_null(finish_reason)}});
    if (options_.usage_in_chunks) json["usage"] = nullptr;
    return json;
  }

  Json logprobs_json(size_t choice, const std::vector<ChoiceToken>& tokens) {
    Json texts = Json::array(), logprobs = Json::array(), tops = Json::array(),
         offsets = Json::array();
    int64_t& characters = choices_.at(choice).characters;
    for (const ChoiceToken& token : tokens) {
      texts.push_back(completion_token_text(tokenizer_, token.id));
      logprobs.push_back(logprob_json(token.logprob));
      Json top = Json::object();
      for (const TokenLogprob& other : token.top) {
        top[completion_token_text(tokenizer_, other.id)] = logprob_json(other.logprob);
      }
      const bool has_none = std::isnan(token.logprob);
      top[completion_token_text(tokenizer_, token.id)] = logprob_json(token.logprob);
      tops.push_back(has_none ? Json(nullptr) : std::move(top));
      offsets.push_back((options_.tokens_of_echo ? 0 : num_characters(options_.echo[choice])) +
                        characters);
      const std::string_view bytes = tokenizer_.token_bytes(token.id);
      // The BOS is put before the prompt's text, which may also begin with it.
      const bool unseen = options_.tokens_of_echo && characters == 0 &&
                          tokenizer_.is_special(token.id) &&
                          !options_.echo[choice].starts_with(bytes);
      if (!unseen) characters += num_characters(bytes);
    }
    return {{"text_offset", std::move(offsets)},
            {"token_logprobs", std::move(logprobs)},
            {"tokens", std::move(texts)},
            {"top_logprobs", std::move(tops)}};
  }

  const AnswerHead head_;
  const text::Tokenizer& tokenizer_;
  const CompletionFormatOptions options_;
  std::vector<Kept> choices_;
};

}  // namespace

std::string AnswerFormat::ending(const AnswerUsage& usage, bool include_usage) {
  return include_usage ? usage_chunk(usage) + "\n[DONE]" : "[DONE]";
}

std::unique_ptr<AnswerFormat> make_chat_format(AnswerHead head, const text::Tokenizer& tokenizer,
                                               ChatFormatOptions options) {
  return std::make_unique<ChatFormat>(std::move(head), tokenizer, options);
}

std::unique_ptr<AnswerFormat> make_completion_format(AnswerHead head,
                                                     const text::Tokenizer& tokenizer,
                                                     CompletionFormatOptions options) {
  return std::make_unique<CompletionFormat>(std::move(head), tokenizer, std::move(options));
}

std::string CallIds::of(const text::ReplyDelta::ToolCall& call, std::string_view prefix) const {
  if (!kimi) return random_id(prefix);
  return fmt::format("functions.{}:{}", call.name, num_before + call.index);
}

std::string random_id(std::string_view prefix) {
  static constexpr std::string_view kLetters =
      "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
  thread_local std::mt19937_64 random(std::random_device{}());
  std::string id(prefix);
  std::uniform_int_distribution<size_t> pick(0, kLetters.size() - 1);
  for (int i = 0; i < 24; ++i) id += kLetters[pick(random)];
  return id;
}

}  // namespace atl::coordinator
