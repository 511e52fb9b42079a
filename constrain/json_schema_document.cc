#include "constrain/json_schema_document.h"

#include <fmt/core.h>

#include <algorithm>
#include <charconv>
#include <iterator>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>
#include <vector>

#include "base/json_reader.h"
#include "constrain/json_schema_keywords.h"

namespace atl::constrain {
namespace {

using Json = nlohmann::ordered_json;

constexpr int kTextDepthMax = 200;
constexpr size_t kTextBytesMax = size_t{1} << 20;
constexpr size_t kValueBytesMax = size_t{12} << 20;  // as base/json_reader.h counts
std::string without_end(std::string text, char c) {
  if (text.ends_with(c)) text.pop_back();
  return text;
}

constexpr size_t kBytesOfStep = 16;  // that are read in a step of work
constexpr int kRefsInARowMax = 20;
// Of names and values, in one step of work; and what a pair of branches or a reference
// takes at the least.
constexpr size_t kComparisonsOfStep = 2, kStepComparisons = 100;

Json parse(std::string_view text, CompileWork& work, HeldMemory& held) {
  if (text.size() > kTextBytesMax) {
    refuse_schema(fmt::format("has more than {} bytes", kTextBytesMax));
  }
  work.spend(text.size() / kBytesOfStep, "its text");
  size_t bytes = 0;
  auto read = read_json(text, {.depth_max = kTextDepthMax, .bytes_max = kValueBytesMax}, &bytes);
  if (!read && read.error().code == ErrorCode::kUnsupported) {
    refuse_schema("is too large: " + read.error().message);
  }
  if (!read) refuse_schema("is not JSON: " + read.error().message);
  held.add(bytes, "its text");
  work.spend(bytes / kBytesOfStep, "its text");
  return std::move(*read);
}

// The values that the schema leaves; nullopt: not a list of values.
std::optional<std::vector<const Json*>> values_of(const Json& schema) {
  if (!schema.is_object()) return std::nullopt;
  const auto only = schema.find("const"), list = schema.find("enum");
  if (only != schema.end()) return std::vector<const Json*>{&*only};
  if (list == schema.end() || !list->is_array()) return std::nullopt;
  std::vector<const Json*> values;
  for (const Json& value : *list) values.push_back(&value);
  return values;
}

SchemaTypes possible_types(const Json& schema, const std::string& place) {
  SchemaTypes out;
  if (const auto values = values_of(schema)) {
    for (const Json* value : *values) {
      const std::string type = type_of(*value);
      out.insert(type == "integer" ? "number" : type);
    }
  } else if (schema.is_object() && schema.contains("type") && !schema.contains("anyOf") &&
             !schema.contains("oneOf") && !schema.contains("allOf")) {
    out = declared_types(schema["type"], place);
    if (out.erase("integer") > 0) out.insert("number");
  } else {
    out = every_type();
  }
  return out;
}

}  // namespace

SchemaDocument::SchemaDocument(std::string_view text, CompileWork& work)
    : work_(work), held_(work), root_(std::make_unique<const Json>(parse(text, work, held_))) {}

SchemaDocument::~SchemaDocument() = default;

void SchemaDocument::spend(size_t comparisons, const std::string& place) {
  work_.spend(comparisons / kComparisonsOfStep, place);
}

// ---- References --------------------------------------------------------------------------------

std::string SchemaDocument::ref_of(const Json& schema, const std::string& place) {
  if (!schema["$ref"].is_string()) refuse_schema(place + ".$ref: expected a text");
  return schema["$ref"].get<std::string>();
}

namespace {

std::string percent_decoded(const std::string& text) {
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    unsigned byte = 0;
    const char* const begin = text.data() + i + 1;
    if (text[i] == '%' && i + 2 < text.size() &&
        std::from_chars(begin, begin + 2, byte, 16).ptr == begin + 2) {
      out += static_cast<char>(byte);
      i += 2;
    } else {
      out += text[i];
    }
  }
  return out;
}

const Json* find_anchor(const Json& json, const std::string& name) {
  if (!json.is_structured()) return nullptr;
  if (json.is_object() && member(json, "$anchor") == name) return &json;
  for (const Json& inner : json) {
    if (const Json* found = find_anchor(inner, name)) return found;
  }
  return nullptr;
}

}  // namespace

size_t num_values(const Json& json) {
  size_t sum = 1;
  if (!json.is_structured()) return sum;
  for (const Json& inner : json) sum += num_values(inner);
  return sum;
}

const Json& SchemaDocument::target(const std::string& given, const std::string& place) const {
  std::string ref = percent_decoded(given);
  for (const char* keyword : {"$id", "id"}) {  // what this schema calls itself
    const Json& id = root_->is_object() ? member(*root_, keyword) : *root_;
    if (!id.is_string()) continue;
    const std::string name = without_end(id.get<std::string>(), '#');
    if (!name.empty() && ref.starts_with(name)) ref.erase(0, name.size());
    if (ref.empty()) ref = "#";
  }
  if (ref == "#") return *root_;
  if (ref.size() > 1 && ref[0] == '#' && ref[1] != '/') {
    work_.spend(num_values(*root_), place);
    if (const Json* found = find_anchor(*root_, ref.substr(1))) return *found;
  }
  if (!ref.starts_with("#/")) {
    refuse_schema(
        fmt::format("{}.$ref: \"{}\" is not in this schema (\"#/...\")", place, ref.substr(0, 80)));
  }
  work_.spend(ref.size() + root_->size(), place);
  try {
    // Names are looked for one after the other.
    const Json::json_pointer pointer(ref.substr(1));
    if (!pointer.empty()) work_.spend(root_->at(pointer.parent_pointer()).size() / 4, place);
    return root_->at(pointer);
  } catch (const Json::exception&) {
    refuse_schema(fmt::format("{}.$ref: there is no \"{}\"", place, ref.substr(0, 80)));
  }
}

const Json& SchemaDocument::resolved(const Json& schema, const std::string& place) {
  const Json* at = &schema;
  for (int i = 0; i < kRefsInARowMax && at->is_object() && at->contains("$ref"); ++i) {
    const std::string ref = ref_of(*at, place);
    spend(kStepComparisons + ref.size(), place);
    at = &target(ref, place);
  }
  return *at;
}

// ---- oneOf -------------------------------------------------------------------------------------

bool SchemaDocument::disjoint(const Json& a, const Json& b, const std::string& place) {
  return are_disjoint(resolved(a, place), resolved(b, place), place);
}

bool SchemaDocument::share_no_value(const Json& a, const Json& b, const std::string& place) {
  const auto x = values_of(a), y = values_of(b);
  if (!x || !y) return false;
  spend(x->size() * y->size(), place);
  return std::none_of(x->begin(), x->end(), [&](const Json* value) {
    return std::any_of(y->begin(), y->end(), [&](const Json* other) { return *value == *other; });
  });
}

bool SchemaDocument::are_disjoint(const Json& a, const Json& b, const std::string& place) {
  spend(kStepComparisons + member(a, "enum").size() + member(b, "enum").size(), place);
  const SchemaTypes x = possible_types(a, place), y = possible_types(b, place);
  SchemaTypes both;
  std::set_intersection(x.begin(), x.end(), y.begin(), y.end(), std::inserter(both, both.end()));
  if (both.empty() || share_no_value(a, b, place)) return true;
  if (both != SchemaTypes{"object"} || !a.is_object() || !b.is_object()) return false;
  const Json& required = member(a, "required");
  const Json& other = member(b, "required");
  spend(required.size() * other.size(), place);
  const size_t names = member(a, "properties").size() + member(b, "properties").size();
  for (const Json& name : required) {
    if (!name.is_string() || std::find(other.begin(), other.end(), name) == other.end()) continue;
    const Json& mine = member(a, "properties");
    const Json& yours = member(b, "properties");
    const auto& key = name.get_ref<const std::string&>();
    spend(names, place);
    if (mine.contains(key) && yours.contains(key) &&
        share_no_value(resolved(mine[key], place), resolved(yours[key], place), place)) {
      return true;
    }
  }
  return false;
}

}  // namespace atl::constrain
