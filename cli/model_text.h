// Tokenizer and chat template of what was given as the model: a directory, or a GGUF file.
#pragma once

#include <filesystem>
#include <optional>

#include "text/chat_template.h"
#include "text/tokenizer.h"

namespace atl::cli {

// Both as the functions of text that they call. LoadError: one line that names the file.
text::Tokenizer load_tokenizer(const std::filesystem::path& model);
std::optional<text::ChatTemplate> load_chat_template(const std::filesystem::path& model);

}  // namespace atl::cli
