// Until json_constraint.cc is built: every structured output is refused.
#include "model/json_constraint.h"

namespace atl::model {
namespace {

const Error kUnbuilt{ErrorCode::kUnsupported, "structured output is not built yet"};

}  // namespace

struct ConstraintVocabulary::Trie {};

ConstraintVocabulary::ConstraintVocabulary(const Tokenizer& tokenizer,
                                           std::vector<int32_t> stop_ids)
    : tokenizer_(tokenizer), stop_ids_(std::move(stop_ids)) {}
ConstraintVocabulary::~ConstraintVocabulary() = default;

std::shared_ptr<const ConstraintGrammar> json_object_grammar() { return nullptr; }

Result<std::shared_ptr<const ConstraintGrammar>> compile_json_schema(
    std::string_view /*schema_json*/) {
  return kUnbuilt;
}

Result<std::shared_ptr<const ConstraintGrammar>> compile_tool_calls(
    ReplyFormat /*format*/, std::span<const ToolSchema> /*tools*/, bool /*parallel*/) {
  return kUnbuilt;
}

}  // namespace atl::model
