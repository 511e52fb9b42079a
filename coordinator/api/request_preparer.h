// Bodies of requests to what the backend is asked and what the answer needs: parsing, templating,
// tokenizing, compiling schemas. All that takes time with the request's size.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <stop_token>
#include <string>
#include <string_view>
#include <vector>

#include "constrain/json_constraint.h"
#include "coordinator/api/answer_format.h"
#include "coordinator/api/api.h"
#include "coordinator/api/api_errors.h"
#include "coordinator/api/chat_prompt.h"
#include "coordinator/api/chat_request.h"
#include "coordinator/api/choice.h"
#include "coordinator/api/completion_request.h"
#include "coordinator/api/grammar_cache.h"
#include "coordinator/api/responses.h"
#include "coordinator/serving/generation.h"
#include "http/http_server.h"

namespace atl::coordinator {

// How a body is worked on. What comes of one that is stopped, nobody reads.
struct PrepareTurn {
  http::WorkLength length = http::WorkLength::kLong;  // kShort: no schema is compiled
  std::stop_token stop = {};
  std::string client = {};  // whose it is
};

struct PreparedChoice {
  GenerationRequest request;  // client, request_id and deadline are left to the caller
  ChoiceOptions options;
  std::string echo;
  size_t prompt_index = 0;
};

struct PreparedGeneration {
  bool chat = false;
  // Another API's form; null: OpenAI's chats or completions.
  std::function<std::unique_ptr<AnswerFormat>(AnswerHead, const PreparedGeneration&)> make_format =
      {};
  std::string id_prefix = {};  // of the answer; empty: OpenAI's
  bool stream = false;
  bool include_usage = false;
  bool logprobs = false;
  std::string user;
  bool tokens_of_echo = false;
  bool reasoning = true;  // told
  CallIds call_ids = {};
  int64_t prompt_tokens = 0;  // of all prompts, each once
  std::vector<PreparedChoice> choices;
};

struct PreparedTokens {
  std::vector<int32_t> ids;
  bool with_strings = false;
};

// Immutable but for a cache of compiled schemas; any thread. Borrows all references. Where it gives
// an optional: nullopt, it takes a turn of kLong.
class RequestPreparer {
 public:
  // chat_template may be null: then chats are refused.
  RequestPreparer(const ApiOptions& options, const model::ModelConfig& config,
                  const text::Tokenizer& tokenizer, const text::ChatTemplate* chat_template);

  std::optional<Parsed<PreparedGeneration>> chat(std::string_view body, const PrepareTurn& turn);
  std::optional<Parsed<PreparedGeneration>> completion(std::string_view body,
                                                       const PrepareTurn& turn);
  // Bodies of /v1/messages and /v1/responses.
  std::optional<Parsed<PreparedGeneration>> messages(std::string_view body,
                                                     const PrepareTurn& turn);
  std::optional<Parsed<PreparedGeneration>> responses(std::string_view body,
                                                      const PrepareTurn& turn);
  Parsed<int64_t> count_message_tokens(std::string_view body, const std::stop_token& stop);
  Parsed<PreparedTokens> tokenize(std::string_view body, const std::stop_token& stop);
  Parsed<std::string> detokenize(std::string_view body);

  int64_t context_tokens() const { return context_tokens_; }
  // The tokenizer's, else the model's.
  std::optional<int32_t> bos_id() const;
  std::optional<int32_t> eos_id() const;
  // One token to go on from, for the canary.
  std::vector<int32_t> canary_prompt() const;

 private:
  using Grammar = GrammarCache::Grammar;

  std::optional<ApiError> check_model(const std::string& name) const;
  Parsed<ChatPrompt> render(const ChatInput& input, const std::stop_token& stop) const;
  Parsed<std::vector<int32_t>> encode_raw(const RawPrompt& prompt, bool add_bos,
                                          const std::string& param,
                                          const std::stop_token& stop) const;
  Parsed<std::vector<int32_t>> encode_text(std::string_view text, const std::string& param,
                                           const std::stop_token& stop) const;
  Parsed<int64_t> tokens_to_generate(const GenerationFields& fields, int64_t otherwise,
                                     size_t prompt_tokens, const std::string& param) const;
  // One answer to a prompt, the number `sample` of those asked for.
  PreparedChoice make_choice(const GenerationFields& fields, const std::vector<int32_t>& prompt,
                             int64_t max_tokens, int64_t sample) const;
  Parsed<PreparedGeneration> chat_now(ChatRequest& request, const Grammar& grammar,
                                      const std::stop_token& stop);
  std::optional<Parsed<Grammar>> grammar_of(const ChatRequest& request, const PrepareTurn& turn);
  std::optional<Parsed<Grammar>> guided_grammar(const GuidedOutput& guided,
                                                const PrepareTurn& turn);
  std::optional<Parsed<Grammar>> compiled(const std::string& key, const std::string& param,
                                          const PrepareTurn& turn,
                                          const GrammarCache::Compile& compile);
  void truncate(const GenerationFields& fields, std::vector<int32_t>& ids) const;
  std::optional<ApiError> switch_thinking(ChatRequest& request) const;
  Result<Grammar> compile(const ChatRequest& request, std::stop_token stop) const;
  Parsed<std::unique_ptr<constrain::TokenConstraint>> constraint(const Grammar& grammar,
                                                                 const ChatPrompt& prompt,
                                                                 int64_t max_tokens) const;
  text::ReplyParserOptions reply_options(const ChatRequest& request, const ChatPrompt& prompt,
                                         bool constrained) const;

  const ApiOptions& options_;
  const model::ModelConfig& config_;
  const text::Tokenizer& tokenizer_;
  const text::ChatTemplate* const chat_template_;
  const ChatTraits traits_;
  const int64_t context_tokens_;
  const RequestLimits limits_;
  const constrain::ConstraintVocabulary vocabulary_;
  const Grammar any_object_;
  GrammarCache grammars_;
  ResponseStore stored_;
};

}  // namespace atl::coordinator
