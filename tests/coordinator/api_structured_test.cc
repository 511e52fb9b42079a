// Structured output over the wire: whatever a model with random weights would say, the answer has
// the form that was asked for.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "tests/coordinator/api_server.h"

namespace atl::test {
namespace {

using ::testing::HasSubstr;
using ::testing::SizeIs;

constexpr const char* kChat = "/v1/chat/completions";
constexpr int kSeeds = 40;

const std::string kPerson =
    R"("response_format": {"type": "json_schema", "json_schema": {"name": "person", "schema": {)"
    R"("type": "object", "properties": {"name": {"type": "string"}, "age": {"type": "integer"},)"
    R"("tags": {"type": "array", "items": {"enum": ["a", "b"]}}},)"
    R"("required": ["name", "age", "tags"], "additionalProperties": false}}})";
const std::string kTools =
    R"("tools": [{"type": "function", "function": {"name": "get_weather", "parameters": {)"
    R"("type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"],)"
    R"("additionalProperties": false}}}, {"type": "function", "function": {"name": "stop_it"}}])";

std::string chat(const std::string& fields, int seed, int max_tokens) {
  return R"({"messages": [{"role": "user", "content": "hi"}], "seed": )" + std::to_string(seed) +
         R"(, "max_tokens": )" + std::to_string(max_tokens) + ", " + fields + "}";
}

Json choice_of(ApiServer& server, const std::string& body) {
  const RawResponse response = server.post(kChat, body);
  EXPECT_EQ(response.status, 200) << response.body;
  return Json::parse(response.body)["choices"][0];
}

void expect_person(const std::string& text) {
  ASSERT_TRUE(Json::accept(text)) << text;
  const Json person = Json::parse(text);
  EXPECT_THAT(person, SizeIs(3));
  EXPECT_TRUE(person.at("name").is_string());
  EXPECT_TRUE(person.at("age").is_number_integer());
  for (const Json& tag : person.at("tags")) EXPECT_TRUE(tag == "a" || tag == "b");
}

// The least max_tokens that the server takes for this.
int shortest(ApiServer& server, const std::string& fields) {
  int tokens = 1;
  while (server.post(kChat, chat(fields, 0, tokens)).status == 400 && tokens < 300) ++tokens;
  return tokens;
}

TEST(ApiStructured, answers_fulfil_their_schema_with_much_room_and_with_little) {
  ApiServer server;
  const int least = shortest(server, kPerson);
  EXPECT_GT(least, 20);
  EXPECT_LT(least, 100);
  for (const int max_tokens : {least, least + 1, least + 30, 500}) {
    for (int seed = 0; seed < kSeeds; ++seed) {
      const Json choice = choice_of(server, chat(kPerson, seed, max_tokens));
      expect_person(choice["message"]["content"]);
    }
  }
}

TEST(ApiStructured, json_objects_are_objects) {
  ApiServer server;
  for (int seed = 0; seed < kSeeds; ++seed) {
    const Json choice =
        choice_of(server, chat(R"("response_format": {"type": "json_object"})", seed, 60));
    const std::string text = choice["message"]["content"];
    ASSERT_TRUE(Json::accept(text)) << text;
    EXPECT_TRUE(Json::parse(text).is_object()) << text;
  }
}

TEST(ApiStructured, streams_say_the_same) {
  ApiServer server;
  for (int seed = 0; seed < 10; ++seed) {
    const Json whole = choice_of(server, chat(kPerson, seed, 200));
    const RawResponse response =
        server.post(kChat, chat(kPerson + R"(, "stream": true)", seed, 200));
    std::string text;
    for (const std::string& event : events_of(response.body)) {
      if (event != "[DONE]") {
        text += Json::parse(event)["choices"][0]["delta"].value("content", "");
      }
    }
    EXPECT_EQ(text, whole["message"]["content"]);
  }
}

TEST(ApiStructured, reasoning_is_free_and_the_answer_is_not) {
  ApiServerOptions options;
  options.chat_template = "{{ messages[0]['content'] }}<think>\n";
  ApiServer server(options);
  int reasoned = 0;
  for (int seed = 0; seed < kSeeds; ++seed) {
    const Json choice = choice_of(server, chat(kPerson, seed, 200));
    expect_person(choice["message"]["content"]);
    reasoned += choice["message"].contains("reasoning_content");
  }
  EXPECT_GT(reasoned, kSeeds / 2);
}

// As R1-0528 and Kimi-K2-Thinking: the template speaks of thinking, the prompt neither opens nor
// closes it, and the model writes <think> itself.
TEST(ApiStructured, reasoning_that_the_model_opens_itself_is_free_and_the_answer_is_not) {
  ApiServerOptions options;
  options.chat_template =
      "{% for m in messages %}{% if m.role == 'assistant' %}<think></think>{% endif %}"
      "{{ m.content }}{% endfor %}<｜Assistant｜>";
  ApiServer server(options);
  int reasoned = 0, called = 0;
  for (int seed = 0; seed < 4 * kSeeds; ++seed) {
    const Json choice = choice_of(server, chat(kPerson, seed, 200));
    expect_person(choice["message"]["content"]);
    reasoned += choice["message"].contains("reasoning_content");
    const Json forced =
        choice_of(server, chat(kTools + R"(, "tool_choice": "required")", seed, 300));
    EXPECT_EQ(forced["finish_reason"], "tool_calls");
    EXPECT_TRUE(forced["message"]["content"].is_null()) << forced;
    called += forced["message"].contains("reasoning_content");
  }
  EXPECT_GT(reasoned, kSeeds / 2);
  EXPECT_GT(called, kSeeds / 2);
}

TEST(ApiStructured, required_calls_are_calls) {
  ApiServer server;
  size_t most = 0;
  for (int seed = 0; seed < kSeeds; ++seed) {
    const Json choice =
        choice_of(server, chat(kTools + R"(, "tool_choice": "required")", seed, 300));
    EXPECT_EQ(choice["finish_reason"], "tool_calls");
    ASSERT_TRUE(choice["message"].contains("tool_calls")) << choice;
    const Json& calls = choice["message"]["tool_calls"];
    most = std::max(most, calls.size());
    for (const Json& call : calls) {
      const Json arguments = Json::parse(call["function"]["arguments"].get<std::string>());
      ASSERT_TRUE(arguments.is_object());
      if (call["function"]["name"] == "get_weather") {
        EXPECT_TRUE(arguments.at("place").is_string());
      } else {
        EXPECT_EQ(call["function"]["name"], "stop_it");
      }
    }
  }
  EXPECT_GT(most, 1u);
}

// instructor and others always send both: the format is that of a text, which isn't there then.
TEST(ApiStructured, a_forced_call_beside_a_format_is_a_call) {
  ApiServer server;
  const std::string format =
      R"(, "tool_choice": "required", "response_format": {"type": "json_schema",
      "json_schema": {"name": "a", "schema": {"type": "object", "properties": {"b": {"const": 1}}}}})";
  const Json choice = choice_of(server, chat(kTools + format, 1, 300));
  EXPECT_EQ(choice["finish_reason"], "tool_calls");
  EXPECT_TRUE(choice["message"]["content"].is_null()) << choice;
}

// Whatever the parameters say of types, a call's arguments are an object; without a word about
// properties they are empty.
TEST(ApiStructured, arguments_of_forced_calls_are_objects) {
  ApiServer server;
  const auto arguments = [&](const std::string& function, int seed) {
    const std::string tools = R"("tools": [{"type": "function", "function": {"name": "f")" +
                              function + R"(}}], "parallel_tool_calls": false, )" +
                              R"("tool_choice": "required")";
    const Json choice = choice_of(server, chat(tools, seed, 80));
    return choice["message"]["tool_calls"][0]["function"]["arguments"].get<std::string>();
  };
  for (const std::string parameters :
       {R"({})", R"({"description": "x"})", R"({"type": ["object", "null"]})",
        R"({"type": "object"})", R"({"type": "object", "properties": {}})",
        R"({"$schema": "https://json-schema.org/draft/2020-12/schema"})", R"(null)"}) {
    EXPECT_EQ(arguments(R"(, "parameters": )" + parameters, 1), "{}") << parameters;
  }
  EXPECT_EQ(arguments("", 1), "{}");
  for (int seed = 0; seed < 20; ++seed) {
    const Json any = Json::parse(
        arguments(R"(, "parameters": {"anyOf": [{"type": "string"}, {"type": "object"}]})", seed));
    EXPECT_TRUE(any.is_object()) << any;
    const Json untyped =
        Json::parse(arguments(R"(, "parameters": {"properties": {"a": {"type": "integer"}},)"
                              R"("required": ["a"]})",
                              seed));
    EXPECT_TRUE(untyped.at("a").is_number_integer()) << untyped;
  }
}

TEST(ApiStructured, a_named_function_alone_is_called_and_once_if_so_asked) {
  ApiServer server;
  const std::string named = kTools + R"(, "parallel_tool_calls": false, "tool_choice": )"
                                     R"({"type": "function", "function": {"name": "stop_it"}})";
  for (int seed = 0; seed < kSeeds; ++seed) {
    const Json choice = choice_of(server, chat(named, seed, 100));
    ASSERT_THAT(choice["message"]["tool_calls"], SizeIs(1));
    EXPECT_EQ(choice["message"]["tool_calls"][0]["function"]["name"], "stop_it");
  }
}

TEST(ApiStructured, every_choice_has_the_form) {
  ApiServer server;
  const RawResponse response = server.post(kChat, chat(kPerson + R"(, "n": 5)", 1, 100));
  const Json choices = Json::parse(response.body)["choices"];
  ASSERT_THAT(choices, SizeIs(5));
  for (const Json& choice : choices) expect_person(choice["message"]["content"]);
}

TEST(ApiStructured, what_cannot_be_promised_is_refused_with_its_place) {
  ApiServer server;
  const auto refused = [&](const std::string& schema) {
    const RawResponse response = server.post(
        kChat, chat(R"("response_format": {"type": "json_schema", "json_schema": {"schema": )" +
                        schema + "}}",
                    0, 100));
    EXPECT_EQ(response.status, 400) << schema;
    return response.body;
  };
  EXPECT_THAT(refused(R"({"type": "object", "properties": {"a": {"type": "unheard_of"}}})"),
              HasSubstr("properties.a"));
  refused(R"({"enum": []})");
  refused(R"({"type": "string", "pattern": "(?=a)b"})");
}

TEST(ApiStructured, guided_texts_are_what_they_are_guided_to) {
  ApiServer server;
  for (int seed = 0; seed < kSeeds; ++seed) {
    for (const std::string field : {R"("guided_regex": "[a-c]{2,4}-[0-9]+")",
                                    R"("structured_outputs": {"regex": "^[a-c]{2,4}-[0-9]+$"})"}) {
      const std::string text = choice_of(server, chat(field, seed, 30))["message"]["content"];
      EXPECT_THAT(text, ::testing::MatchesRegex("[a-c]{2,4}-[0-9]+"));
    }
    const std::string choice = choice_of(
        server,
        chat(R"("guided_choice": ["yes", "no", "say \"ä\""])", seed, 30))["message"]["content"];
    EXPECT_THAT(choice, ::testing::AnyOf("yes", "no", "say \"ä\""));
    const std::string json =
        choice_of(server, chat(R"("guided_json": {"type": "integer", "minimum": 5, "maximum": 9})",
                               seed, 30))["message"]["content"];
    EXPECT_THAT(json, ::testing::MatchesRegex("[5-9]"));
    const std::string object = choice_of(
        server, chat(R"("response_format": {"type": "json_object", "schema": {"type": "object",)"
                     R"("properties": {"a": {"const": 1}}, "required": ["a"]}})",
                     seed, 30))["message"]["content"];
    EXPECT_EQ(Json::parse(object), (Json{{"a", 1}}));
    const RawResponse completion = server.post(
        "/v1/completions",
        R"({"prompt": "a", "guided_choice": ["yes", "no"], "seed": )" + std::to_string(seed) + "}");
    EXPECT_THAT(Json::parse(completion.body)["choices"][0]["text"].get<std::string>(),
                ::testing::AnyOf("yes", "no"));
  }
}

}  // namespace
}  // namespace atl::test
