// Fields of OpenAI, Anthropic, vLLM, SGLang, llama.cpp and others that this server knows of and has
// not built. One that would change the answer is refused, never dropped in silence.
#pragma once

#include <span>
#include <string_view>

#include "coordinator/api/api_json.h"

namespace atl::coordinator {

struct RefusedField {
  std::string_view name;
  std::string_view neutral = {};  // as JSON: a value that changes nothing; empty: there is none
  std::string_view instead = {};  // what to do, for the message
};
// Of every request for text.
std::span<const RefusedField> refused_fields();
// Beside those: of /v1/chat/completions what other doors have, of /v1/completions what a chat has.
std::span<const RefusedField> refused_fields_of_chats();
std::span<const RefusedField> refused_fields_of_completions();
// Hints that change no answer: names that are read by nobody and need no debug line.
std::span<const std::string_view> ignored_fields();

// What another protocol's request says in its own way, or can't.
std::span<const RefusedField> refused_fields_of_responses();
std::span<const RefusedField> refused_fields_of_messages();

// Puts the fields of `root` that are not among `read` into the chat that the request becomes, so
// that they are read or refused as a chat's.
void pass_on(const JsonValue& root, std::span<const std::string_view> read,
             nlohmann::ordered_json& chat);

// A 400 `unsupported` for each of `fields` that is there with a value of effect.
void refuse(std::span<const RefusedField> fields, const JsonValue& root);

}  // namespace atl::coordinator
