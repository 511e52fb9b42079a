// Bodies that no client means: whatever comes, it is answered, and the server lives on.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "tests/coordinator/api_server.h"

namespace atl::test {
namespace {

using Random = std::mt19937_64;

constexpr uint64_t kSeed = 20251122;
constexpr int64_t kRequests = 5000;

int64_t num_requests() {
  const char* more = std::getenv("ATOLL_FUZZ_REQUESTS");
  return more ? std::atoll(more) : kRequests;
}

const std::string kSeeds[] = {
    R"({"model":"tiny","messages":[{"role":"system","content":"S"},{"role":"user","content":[{"type":"text","text":"hi"}]}],"max_tokens":5,"temperature":0.5,"top_p":0.9,"n":2,"stop":["a","b"],"logprobs":true,"top_logprobs":2})",
    R"({"messages":[{"role":"user","content":"hi"},{"role":"assistant","content":null,"tool_calls":[{"id":"1","type":"function","function":{"name":"f","arguments":"{}"}}]},{"role":"tool","tool_call_id":"1","content":"42"}],"tools":[{"type":"function","function":{"name":"f","description":"d","parameters":{"type":"object","properties":{"x":{"type":"integer"}},"required":["x"]}}}],"tool_choice":{"type":"function","function":{"name":"f"}},"max_tokens":300})",
    R"({"messages":[{"role":"user","content":"hi"}],"response_format":{"type":"json_schema","json_schema":{"name":"a","strict":true,"schema":{"type":"object","properties":{"name":{"type":"string","maxLength":5},"age":{"type":"integer"},"tags":{"type":"array","items":{"enum":["a","b"]},"maxItems":3}},"required":["name","age"],"additionalProperties":false}}},"max_tokens":200})",
    R"({"prompt":"Once","max_tokens":4,"logit_bias":{"5":-100,"262":3.5},"presence_penalty":0.5,"frequency_penalty":-1,"logprobs":3,"stream":true,"stream_options":{"include_usage":true},"seed":-7})",
    R"({"prompt":["a","b"],"n":2,"echo":true,"best_of":2,"stop":"x","min_tokens":2,"ignore_eos":true,"top_k":40,"min_p":0.1,"user":"u"})",
    R"({"prompt":[[1,2,3],[4]],"stop_token_ids":[1,2],"suffix":null})",
    R"({"messages":[{"role":"user","content":"hi"}],"add_generation_prompt":false,"return_token_strs":true})",
    R"({"tokens":[1,2,3,262]})",
};
const char* const kPaths[] = {"/v1/chat/completions", "/v1/completions", "/tokenize",
                              "/detokenize"};
// Of each seed, as a place in kPaths.
constexpr size_t kPathOfSeed[] = {0, 0, 0, 1, 1, 1, 2, 3};
static_assert(std::size(kSeeds) == std::size(kPathOfSeed));

// Values that something may trip over.
Json odd_value(Random& random) {
  static const std::vector<Json> kValues = {nullptr,
                                            true,
                                            false,
                                            0,
                                            1,
                                            -1,
                                            2,
                                            1.5,
                                            -0.0,
                                            1e308,
                                            5e-324,
                                            INT64_MAX,
                                            INT64_MIN,
                                            UINT64_MAX,
                                            "",
                                            " ",
                                            "null",
                                            "\u0000",
                                            std::string(300, 'x'),
                                            "<｜User｜>",
                                            "</think>",
                                            "😀",
                                            Json::array(),
                                            Json::object(),
                                            Json::array({nullptr}),
                                            Json::array({Json::array()}),
                                            Json{{"", nullptr}},
                                            Json{{"$ref", "#"}},
                                            Json{{"type", "object"}},
                                            Json{{"type", "text"}},
                                            Json{{"anyOf", Json::array()}},
                                            Json{{"pattern", "(((a+)+)+)+$"}},
                                            Json{{"role", "user"}}};
  return kValues[random() % kValues.size()];
}

// Every value of the tree, itself included.
void collect(Json& json, std::vector<Json*>& nodes) {
  nodes.push_back(&json);
  if (json.is_structured()) {
    for (Json& child : json) collect(child, nodes);
  }
}

// One value is replaced, removed, doubled or moved.
void mutate_tree(Json& json, Random& random) {
  std::vector<Json*> nodes;
  collect(json, nodes);
  Json& node = *nodes[random() % nodes.size()];
  switch (random() % 5) {
    case 0:
      node = odd_value(random);
      break;
    case 1: {
      const Json other = *nodes[random() % nodes.size()];
      node = other;
      break;
    }
    case 2:
      if (node.is_object() && !node.empty()) {
        auto it = node.begin();
        std::advance(it, static_cast<int64_t>(random() % node.size()));
        node.erase(it);
      } else if (node.is_array() && !node.empty()) {
        node.erase(random() % node.size());
      }
      break;
    case 3:
      if (node.is_array() && !node.empty()) {
        const Json copy = node[random() % node.size()];
        for (int i = 0; i < 20; ++i) node.push_back(copy);
      } else if (node.is_object()) {
        node["x" + std::to_string(random() % 100)] = odd_value(random);
      }
      break;
    default:
      if (node.is_string()) {
        node = node.get<std::string>() + std::string(random() % 50, 'y');
      } else if (node.is_number()) {
        node = static_cast<int64_t>(random());
      }
  }
}

// Bytes are changed, cut out or doubled.
void mutate_bytes(std::string& text, Random& random) {
  static constexpr std::string_view kBytes =
      "\"\\{}[]:,0123456789eE.+-tfn \x01\x80\xC3\xED\xF0\xFF";
  if (text.empty()) return;
  const size_t at = random() % text.size();
  const size_t length = 1 + random() % 8;
  switch (random() % 4) {
    case 0:
      text[at] = kBytes[random() % kBytes.size()];
      break;
    case 1:
      text.erase(at, length);
      break;
    case 2:
      text.insert(at, text.substr(random() % text.size(), length * 4));
      break;
    default:
      text.insert(at, 1, kBytes[random() % kBytes.size()]);
  }
}

struct Body {
  const char* path;
  std::string text;
};

Body make_body(Random& random) {
  const size_t seed = random() % std::size(kSeeds);
  Json json = Json::parse(kSeeds[seed]);
  for (uint64_t i = random() % 4; i > 0; --i) mutate_tree(json, random);
  std::string text = json.dump();
  if (random() % 3 == 0) {
    for (uint64_t i = 1 + random() % 4; i > 0; --i) mutate_bytes(text, random);
  }
  const size_t path = random() % 10 ? kPathOfSeed[seed] : random() % std::size(kPaths);
  return {kPaths[path], text};
}

TEST(ApiFuzz, every_body_is_answered) {
  const int64_t count = num_requests();
  Random random(kSeed);
  ApiServer server;
  server.backend().say(" the<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f<｜tool▁sep｜>{");
  std::map<int, int64_t> statuses;
  auto client = std::make_unique<RawClient>(server.port());
  for (int64_t i = 0; i < count; ++i) {
    const auto [path, body] = make_body(random);
    const RawResponse response = client->ask(post(path, body));
    ++statuses[response.status];
    const bool expected =
        response.status == 200 || response.status == 400 || response.status == 404;
    ASSERT_TRUE(expected) << "request " << i << " of seed " << kSeed << ": " << response.status
                          << " for " << path << "\n"
                          << body << "\n"
                          << response.body;
    if (response.status != 200) {
      const Json error = Json::parse(response.body).at("error");
      ASSERT_TRUE(error.at("message").is_string() && error.at("type").is_string());
    } else if (response.headers.at("content-type") == "application/json") {
      ASSERT_TRUE(Json::accept(response.body)) << body;
    } else {
      ASSERT_THAT(events_of(response.body), ::testing::Not(::testing::IsEmpty()));
      ASSERT_EQ(events_of(response.body).back(), "[DONE]") << body;
    }
  }
  // Both sides of the checks are tried.
  EXPECT_GT(statuses[200], count / 10);
  EXPECT_GT(statuses[400], count / 10);
  EXPECT_EQ(server.get("/health").status, 200);
  for (const auto& [status, n] : statuses) {
    printf("%lld answers of status %d\n", static_cast<long long>(n), status);
  }
}

}  // namespace
}  // namespace atl::test
