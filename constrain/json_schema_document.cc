#include "constrain/json_schema_document.h"

#include <fmt/core.h>

#include <algorithm>
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
constexpr size_t kBytesOfStep = 16;                  // that are read in a step of work
constexpr int kMergeDepthMax = 100;
constexpr int kRefsInARowMax = 20;
// Of names and values, in one step of work; and what a pair of branches, a merge or a reference
// takes at the least.
constexpr size_t kComparisonsOfStep = 2, kStepComparisons = 100;
constexpr size_t kNameComparisons = 40;  // to find a name among those that are merged, and keep it

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
  if (schema.is_object() && member(schema, "nullable") == true) out.insert("null");
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

const Json& SchemaDocument::target(const std::string& ref, const std::string& place) const {
  if (ref == "#") return *root_;
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

void SchemaDocument::expect_disjoint(const Json& branches, const std::string& place) {
  std::vector<const Json*> schemas;
  for (const Json& branch : branches) schemas.push_back(&resolved(branch, place));
  for (size_t i = 0; i < schemas.size(); ++i) {
    for (size_t j = i + 1; j < schemas.size(); ++j) {
      if (are_disjoint(*schemas[i], *schemas[j], place)) continue;
      refuse_schema(
          fmt::format("{}.oneOf: branches {} and {} can't be told apart by type or by the value of "
                      "a required property; use anyOf",
                      place, i, j));
    }
  }
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

// ---- allOf -------------------------------------------------------------------------------------

struct SchemaDocument::Merge {
  enum class Part { kOpen, kDone };
  std::map<const Json*, Part> parts;
  std::map<std::string, const Json*> properties;  // by name
  int depth = 0;
  ObjectKeywords out;
};

ObjectKeywords SchemaDocument::merged(const Json& schema, const std::string& place) {
  Merge merge;
  merge_object(schema, place, merge);
  return std::move(merge.out);
}

void SchemaDocument::merge_object(const Json& part, const std::string& place, Merge& merge) {
  const auto [at, is_new] = merge.parts.emplace(&part, Merge::Part::kOpen);
  if (!is_new && at->second == Merge::Part::kDone) return;  // says it all already
  if (!is_new) refuse_schema(place + ": a $ref leads back to an allOf that it is a part of");
  if (++merge.depth > kMergeDepthMax) refuse_schema(place.substr(0, 80) + ": nested too deep");
  if (!part.is_object()) refuse_schema(place + ": expected an object's schema");
  expect_alone(part, "allOf", place, {"type", "properties", "required", "additionalProperties"});
  if (part.contains("type") && part["type"] != "object") {
    refuse_schema(place + ".type: allOf is supported for objects only");
  }
  const ObjectKeywords own = object_keywords(part, place);
  spend(kStepComparisons + kNameComparisons * (own.properties.size() + own.required.size()), place);
  if (own.additional != nullptr && *own.additional != true) {
    refuse_schema(place + ".additionalProperties: not supported in allOf");
  }
  for (const auto& [name, schema] : own.properties) {
    const auto [known, is_first] = merge.properties.emplace(name, schema);
    if (is_first) {
      merge.out.properties.emplace_back(name, schema);
    } else if (*known->second != *schema) {
      refuse_schema(fmt::format("{}.properties.{}: two different schemas in allOf", place, name));
    }
  }
  merge.out.required.insert(merge.out.required.end(), own.required.begin(), own.required.end());
  const Json& parts = member(part, "allOf");
  if (!parts.is_null() && (!parts.is_array() || parts.empty())) {
    refuse_schema(place + ".allOf: expected a list of schemas");
  }
  for (size_t i = 0; i < parts.size(); ++i) {
    merge_object(resolved(parts[i], place), fmt::format("{}.allOf[{}]", place, i), merge);
  }
  --merge.depth;
  at->second = Merge::Part::kDone;
}

}  // namespace atl::constrain
