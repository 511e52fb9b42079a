#include "config/yaml_tree.h"

#include <fmt/format.h>
#include <yaml-cpp/eventhandler.h>
#include <yaml-cpp/exceptions.h>
#include <yaml-cpp/mark.h>
#include <yaml-cpp/parser.h>

#include <algorithm>
#include <sstream>

#include "base/result.h"

namespace atl::config {
namespace {

[[noreturn]] void fail(const std::string& name, YamlPlace place, std::string_view what) {
  throw LoadError(fmt::format("{}:{}:{}: {}", name, place.line, place.column, what));
}

YamlPlace place_of(const YAML::Mark& mark) { return {mark.line + 1, mark.column + 1}; }

// Builds the tree from the parser's events. Of a map it gets keys and values in turn.
class TreeBuilder final : public YAML::EventHandler {
 public:
  explicit TreeBuilder(const std::string& name) : name_(name) {}

  YamlNode take() { return std::move(root_); }

  void OnDocumentStart(const YAML::Mark&) override {}
  void OnDocumentEnd() override {}
  void OnNull(const YAML::Mark& mark, YAML::anchor_t anchor) override {
    check_anchor(mark, anchor);
    add(mark, YamlNode::Kind::kNothing);
  }
  void OnAlias(const YAML::Mark& mark, YAML::anchor_t) override { refuse_alias(mark); }
  void OnScalar(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                const std::string& value) override {
    check_anchor(mark, anchor);
    check_tag(mark, tag);
    if (value.size() > kYamlTextMax) {
      fail(name_, place_of(mark),
           fmt::format("a text of {} bytes: expected at most {}", value.size(), kYamlTextMax));
    }
    if (std::any_of(value.begin(), value.end(),
                    [](unsigned char c) { return c < 0x20 || c == 0x7f; })) {
      fail(name_, place_of(mark), "a control character or line break in a text");
    }
    if (wants_key()) return take_key(mark, value);
    YamlNode& node = add(mark, YamlNode::Kind::kText);
    node.text = value;
  }
  void OnSequenceStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                       YAML::EmitterStyle::value) override {
    begin(mark, tag, anchor, YamlNode::Kind::kList);
  }
  void OnSequenceEnd() override { stack_.pop_back(); }
  void OnMapStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                  YAML::EmitterStyle::value) override {
    begin(mark, tag, anchor, YamlNode::Kind::kMap);
  }
  void OnMapEnd() override { stack_.pop_back(); }

 private:
  void refuse_alias(const YAML::Mark& mark) {
    fail(name_, place_of(mark),
         "anchors (&) and aliases (*) are not taken; what all nodes share stands in node_defaults");
  }
  void check_anchor(const YAML::Mark& mark, YAML::anchor_t anchor) {
    if (anchor != 0) refuse_alias(mark);
  }
  // "?" of plain ones, "!" of quoted ones.
  void check_tag(const YAML::Mark& mark, const std::string& tag) {
    if (!tag.empty() && tag != "?" && tag != "!") {
      fail(name_, place_of(mark), "tags (!...) are not taken");
    }
  }

  bool wants_key() const {
    return !stack_.empty() && stack_.back()->kind == YamlNode::Kind::kMap && !has_key_;
  }

  void take_key(const YAML::Mark& mark, const std::string& key) {
    for (const YamlNode& other : stack_.back()->children) {
      if (other.key != key) continue;
      fail(name_, place_of(mark),
           fmt::format("key '{}' a second time; the first one is in line {}", key,
                       other.key_place.line));
    }
    key_ = key;
    key_place_ = place_of(mark);
    has_key_ = true;
  }

  // A value's place in what is being built. It stays where it is while it is open: only the
  // innermost list grows.
  YamlNode& add(const YAML::Mark& mark, YamlNode::Kind kind) {
    if (wants_key()) fail(name_, place_of(mark), "a key has to be a text");
    if (++num_values_ > kYamlValuesMax) {
      fail(name_, place_of(mark), fmt::format("more than {} values", kYamlValuesMax));
    }
    YamlNode* node = &root_;
    if (!stack_.empty()) node = &stack_.back()->children.emplace_back();
    node->kind = kind;
    node->place = place_of(mark);
    if (has_key_) {
      node->key = std::move(key_);
      node->key_place = key_place_;
      has_key_ = false;
    }
    return *node;
  }

  void begin(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
             YamlNode::Kind kind) {
    check_anchor(mark, anchor);
    check_tag(mark, tag);
    if (stack_.size() >= kYamlDepthMax) {
      fail(name_, place_of(mark),
           fmt::format("more than {} lists and maps within each other", kYamlDepthMax));
    }
    stack_.push_back(&add(mark, kind));
  }

  const std::string& name_;
  YamlNode root_;
  std::vector<YamlNode*> stack_;  // open ones, the innermost last
  size_t num_values_ = 0;
  std::string key_;  // of the value that comes next, if has_key_
  YamlPlace key_place_;
  bool has_key_ = false;
};

}  // namespace

YamlNode read_yaml(std::string_view text, const std::string& name) {
  std::istringstream in{std::string(text)};
  TreeBuilder builder(name);
  try {
    YAML::Parser parser(in);
    if (!parser.HandleNextDocument(builder)) {
      YamlNode empty;
      empty.kind = YamlNode::Kind::kMap;
      return empty;
    }
    YamlNode root = builder.take();
    TreeBuilder second(name);
    if (parser.HandleNextDocument(second)) {
      fail(name, second.take().place, "a second document: expected one");
    }
    if (root.kind == YamlNode::Kind::kNothing) root.kind = YamlNode::Kind::kMap;
    return root;
  } catch (const YAML::Exception& error) {
    fail(name, place_of(error.mark), error.msg);
  }
}

}  // namespace atl::config
