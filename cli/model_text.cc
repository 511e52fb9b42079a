#include "cli/model_text.h"

#include <cstdint>
#include <memory>
#include <string>

#include "model/gguf_source.h"
#include "storage/gguf/gguf_files.h"

namespace atl::cli {
namespace {

constexpr uint64_t kTextBytesMax = 64u << 20;

std::string config_of(const model::GgufSource& source) {
  return source.small_file("tokenizer_config.json", kTextBytesMax).value_or("{}");
}

}  // namespace

text::Tokenizer load_tokenizer(const std::filesystem::path& model) {
  if (!storage::find_gguf(model)) return text::Tokenizer::load(model);
  const auto source = model::GgufSource::open(model);
  return text::Tokenizer::parse(source->small_file("tokenizer.json", kTextBytesMax).value(),
                                config_of(*source), source->file().string());
}

std::optional<text::ChatTemplate> load_chat_template(const std::filesystem::path& model) {
  if (!storage::find_gguf(model)) return text::ChatTemplate::load(model);
  const auto source = model::GgufSource::open(model);
  if (const auto own = source->small_file("chat_template.jinja", kTextBytesMax)) {
    return text::ChatTemplate(*own, (source->directory() / "chat_template.jinja").string());
  }
  return text::ChatTemplate::parse_config(config_of(*source), source->file().string());
}

}  // namespace atl::cli
