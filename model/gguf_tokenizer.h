// The tokenizer of a GGUF file's metadata, as the tokenizer.json and tokenizer_config.json that it
// was made from. docs/gguf.md says what a file leaves open.
#pragma once

#include <string>

#include "model/gguf_metadata.h"

namespace atl::model {

// Byte-level BPE (tokenizer.ggml.model gpt2) of the kinds of text splits (tokenizer.ggml.pre) whose
// expressions are known; others are refused by name. LoadError names file and key.
std::string gguf_tokenizer_json(const GgufMetadata& metadata);

// bos_token, eos_token, add_bos_token, and the chat_template if the file has one.
std::string gguf_tokenizer_config_json(const GgufMetadata& metadata);

}  // namespace atl::model
