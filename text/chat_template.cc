#include "text/chat_template.h"

#include <fmt/core.h>

#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>

#include "text/jinja/interpreter.h"
#include "text/jinja/lexer.h"
#include "text/jinja/parser.h"
#include "text/utf8.h"

namespace atl::text {
namespace {

using Json = nlohmann::ordered_json;
using jinja::Budget;
using jinja::Dict;
using jinja::List;
using jinja::Value;

constexpr uint64_t kConfigBytesMax = 64u << 20;

// The variables that tokenizer_config.json gives to every render, if it names them.
constexpr const char* kTokenNames[] = {"bos_token", "eos_token", "unk_token", "sep_token",
                                       "pad_token", "cls_token", "mask_token"};

Json parse_json(std::string_view text) {
  const auto limit_depth = [](int depth, Json::parse_event_t, Json&) {
    if (depth > jinja::kValueDepthMax - 2) jinja::refuse("JSON is nested too deep");
    return true;
  };
  try {
    Json json = Json::parse(text, limit_depth);
    if (!json.is_object()) jinja::refuse("expected a JSON object");
    return json;
  } catch (const Json::exception& error) {
    std::string what = error.what();
    for (char& c : what) c = c == '\n' || c == '\r' ? ' ' : c;
    jinja::refuse("not JSON: " + what.substr(0, 200));
  }
}

Value value_of(const Json& json, Budget& budget) {
  switch (json.type()) {
    case Json::value_t::null:
      return jinja::None{};
    case Json::value_t::boolean:
      return Value::of_bool(json.get<bool>());
    case Json::value_t::number_integer:
      return Value::of_int(json.get<int64_t>());
    case Json::value_t::number_unsigned: {
      const auto n = json.get<uint64_t>();
      const bool fits = n <= static_cast<uint64_t>(std::numeric_limits<int64_t>::max());
      return fits ? Value::of_int(static_cast<int64_t>(n))
                  : Value::of_float(static_cast<double>(n));
    }
    case Json::value_t::number_float:
      return Value::of_float(json.get<double>());
    case Json::value_t::string:
      return budget.text(json.get_ref<const std::string&>());
    case Json::value_t::array: {
      List items;
      for (const Json& item : json) items.push_back(value_of(item, budget));
      return budget.list(std::move(items));
    }
    default:
      break;
  }
  Dict dict;
  for (const auto& [key, item] : json.items()) dict.set(budget.text(key), value_of(item, budget));
  return budget.dict(std::move(dict));
}

std::string read_text(const std::filesystem::path& path) {
  std::error_code error;
  if (std::filesystem::file_size(path, error) > kConfigBytesMax) {
    throw LoadError(fmt::format("{}: more than {} bytes", path.string(), kConfigBytesMax));
  }
  std::ifstream in(path, std::ios::binary);
  std::string text((std::istreambuf_iterator<char>(in)), {});
  if (!in) throw LoadError(fmt::format("{}: can't be read", path.string()));
  return text;
}

Json parse_config_json(std::string_view text, const std::string& name) {
  try {
    return parse_json(text);
  } catch (const jinja::RenderError& error) {
    throw LoadError(fmt::format("{}: {}", name, error.message));
  }
}

Json read_config(const std::filesystem::path& path) {
  if (!std::filesystem::exists(path)) return Json::object();
  return parse_config_json(read_text(path), path.string());
}

// A token is its text, or an object with its text as `content`.
std::optional<std::string> token_text(const Json& config, const char* name) {
  const auto found = config.find(name);
  if (found == config.end()) return std::nullopt;
  if (found->is_string()) return found->get<std::string>();
  if (found->is_object() && found->contains("content") && (*found)["content"].is_string()) {
    return (*found)["content"].get<std::string>();
  }
  return std::nullopt;
}

// The text of `chat_template`: itself, or of a list the one that is named "default".
std::optional<std::string> template_text(const Json& config, const std::string& path) {
  const auto found = config.find("chat_template");
  if (found == config.end() || found->is_null()) return std::nullopt;
  if (found->is_string()) return found->get<std::string>();
  if (found->is_array()) {
    for (const Json& entry : *found) {
      if (!entry.is_object() || entry.value("name", Json()) != "default") continue;
      const Json text = entry.value("template", Json());
      if (text.is_string()) return text.get<std::string>();
    }
  }
  throw LoadError(path + ": chat_template: expected a text, or a list with one named \"default\"");
}

std::vector<std::pair<std::string, std::string>> named_tokens(const Json& config) {
  std::vector<std::pair<std::string, std::string>> tokens;
  for (const char* name : kTokenNames) {
    if (auto text = token_text(config, name)) tokens.emplace_back(name, *text);
  }
  return tokens;
}

}  // namespace

struct ChatTemplate::Program {
  jinja::Program program;
  std::string source;
  ChatTemplateLimits limits;
  std::vector<std::pair<std::string, std::string>> tokens;  // variables unless the caller has them
};

ChatTemplate::ChatTemplate(std::string_view source, const std::string& name,
                           ChatTemplateLimits limits) {
  auto program = std::make_unique<Program>();
  try {
    program->program = jinja::parse(source);
  } catch (const jinja::SyntaxError& error) {
    throw LoadError(
        fmt::format("{}:{}:{}: chat template: {}", name, error.line, error.column, error.message));
  }
  program->source = source;
  program->limits = limits;
  program_ = std::move(program);
}

ChatTemplate::~ChatTemplate() = default;
ChatTemplate::ChatTemplate(ChatTemplate&&) noexcept = default;
ChatTemplate& ChatTemplate::operator=(ChatTemplate&&) noexcept = default;

std::optional<ChatTemplate> ChatTemplate::load(const std::filesystem::path& model_dir) {
  const std::filesystem::path config_path = model_dir / "tokenizer_config.json";
  const std::filesystem::path own_file = model_dir / "chat_template.jinja";
  const Json config = read_config(config_path);
  const bool has_own_file = std::filesystem::exists(own_file);
  const auto source = has_own_file ? std::optional(read_text(own_file))
                                   : template_text(config, config_path.string());
  if (!source) return std::nullopt;
  ChatTemplate out(*source, (has_own_file ? own_file : config_path).string());
  out.program_->tokens = named_tokens(config);
  return out;
}

std::optional<ChatTemplate> ChatTemplate::parse_config(std::string_view tokenizer_config_json,
                                                       const std::string& name) {
  const Json config = parse_config_json(tokenizer_config_json, name);
  const auto source = template_text(config, name);
  if (!source) return std::nullopt;
  ChatTemplate out(*source, name);
  out.program_->tokens = named_tokens(config);
  return out;
}

Result<std::string> ChatTemplate::render(std::string_view variables_json,
                                         std::stop_token stop) const {
  const ChatTemplateLimits& limits = program_->limits;
  Budget budget(limits.steps_max, limits.memory_bytes_max, std::move(stop));
  try {
    const Json json = parse_json(variables_json);
    Dict variables;
    for (const auto& [name, text] : program_->tokens)
      variables.set(budget.text(name), budget.text(text));
    for (const auto& [key, item] : json.items()) {
      variables.set(budget.text(key), value_of(item, budget));
    }
    return jinja::run(program_->program, variables, budget, limits.output_bytes_max);
  } catch (const jinja::RenderStopped&) {
    return Error{ErrorCode::kUnavailable, "rendering the chat template was stopped"};
  } catch (const jinja::RenderError& error) {
    const std::string place = error.line > 0 ? fmt::format(" line {}", error.line) : "";
    return Error{ErrorCode::kInvalid, fmt::format("chat template{}: {}", place, error.message)};
  }
}

bool ChatTemplate::reads(std::string_view variable) const {
  return program_->program.names_read.contains(variable);
}

std::string_view ChatTemplate::source() const { return program_->source; }

}  // namespace atl::text
