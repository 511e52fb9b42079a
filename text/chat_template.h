// A checkpoint's own chat template: messages to the text of a prompt.
//
// Published templates are Jinja programs. This engine runs the part of the language that they use,
// as jinja2's sandbox of Hugging Face transformers does (trim_blocks and lstrip_blocks on, loop
// controls, `raise_exception`, `tojson`, `strftime_now`): no files, no imports, no attributes but
// those of data, and bounded output, steps and depth.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <stop_token>
#include <string>
#include <string_view>

#include "base/result.h"

namespace atl::text {

struct ChatTemplateLimits {
  size_t output_bytes_max = size_t{64} << 20;
  uint64_t steps_max = 20'000'000;  // expressions evaluated and statements executed
  // Of the variables and what a render makes, held at once.
  size_t memory_bytes_max = size_t{64} << 20;
};

// Immutable after construction; any thread.
class ChatTemplate {
 public:
  // LoadError: `name` and the line and column of what isn't understood.
  ChatTemplate(std::string_view source, const std::string& name, ChatTemplateLimits limits = {});
  ~ChatTemplate();
  ChatTemplate(ChatTemplate&&) noexcept;
  ChatTemplate& operator=(ChatTemplate&&) noexcept;

  // chat_template.jinja of the directory if it is there, else `chat_template` of
  // tokenizer_config.json (a text, or a list of named ones: "default"); nullopt: the model has
  // none. bos_token, eos_token and the like of that file are variables of the template.
  static std::optional<ChatTemplate> load(const std::filesystem::path& model_dir);
  // The same of the text of a tokenizer_config.json; `name` stands before messages.
  static std::optional<ChatTemplate> parse_config(std::string_view tokenizer_config_json,
                                                  const std::string& name);

  //   variables_json  a JSON object: messages, add_generation_prompt, tools, and whatever else the
  //                   template reads. The order of keys is kept.
  // kInvalid: not a JSON object, the template refused (raise_exception), an operation that its
  // values don't have, or a limit; the message names the line. kUnavailable: it was asked to stop.
  Result<std::string> render(std::string_view variables_json, std::stop_token stop = {}) const;

  // Whether the template reads this variable (as `tools`, or `thinking`).
  bool reads(std::string_view variable) const;

  // The template's text (for recognise_reply_format()).
  std::string_view source() const;

 private:
  struct Program;
  std::unique_ptr<Program> program_;
};

}  // namespace atl::text
