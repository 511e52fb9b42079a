// The other APIs: Anthropic's Messages and OpenAI's Responses, whole and streamed.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "coordinator/api/responses.h"
#include "tests/coordinator/api_server.h"

namespace atl::test {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StartsWith;

constexpr const char* kMessages = "/v1/messages";
constexpr const char* kResponses = "/v1/responses";

// Reasons, says something, calls a tool.
constexpr const char* kReply =
    "hm</think>Let me look.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>"
    "{\"city\": \"Rome\"}<｜tool▁call▁end｜><｜tool▁calls▁end｜>";

const std::string kAnthropicTool =
    R"("tools": [{"name": "get_weather", "description": "d", "input_schema": {"type": "object"}}])";
const std::string kOpenAiTool =
    R"("tools": [{"type": "function", "name": "get_weather", "parameters": {"type": "object"}}])";

class Doors : public testing::Test {
 protected:
  static ApiServerOptions options() {
    ApiServerOptions options;
    options.chat_template =
        "{% for m in messages %}[{{ m.role }}]{{ m.content or '' }}{% if m.reasoning_content %}"
        "({{ m.reasoning_content }}){% endif %}{% for c in m.tool_calls or [] %}"
        "{{ c.function.name }}{{ c.function.arguments }}{% endfor %}{% endfor %}"
        "{% if add_generation_prompt %}<think>{% endif %}";
    return options;
  }

  std::string prompt() {
    return server_.tokenizer().decode(server_.backend().submitted().back().prompt,
                                      text::SpecialTokens::kKeep);
  }

  struct Event {
    std::string name;
    Json data;
  };
  static std::vector<Event> events(const std::string& body) {
    std::vector<Event> out;
    for (size_t at = 0; (at = body.find("event: ", at)) != body.npos;) {
      const size_t line = body.find('\n', at), data = body.find("data: ", line);
      const size_t end = body.find('\n', data);
      out.push_back(
          {body.substr(at + 7, line - at - 7), Json::parse(body.substr(data + 6, end - data - 6))});
      EXPECT_EQ(out.back().data["type"], out.back().name);
      at = end;
    }
    return out;
  }

  ApiServer server_{options()};
};

TEST_F(Doors, a_message_is_answered_in_blocks) {
  server_.backend().say(kReply);
  const RawResponse response = server_.post(
      kMessages, R"({"model": "tiny", "max_tokens": 99, "system": "Be brief.", "messages": [
        {"role": "user", "content": [{"type": "text", "text": "hi", "cache_control": {"type": "ephemeral"}}]},
        {"role": "assistant", "content": [{"type": "thinking", "thinking": "t", "signature": ""},
          {"type": "tool_use", "id": "toolu_1", "name": "get_weather", "input": {"city": "Bern"}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "toolu_1",
          "content": [{"type": "text", "text": "17 C"}]}, {"type": "text", "text": "And Rome?"}]}], )" +
                     kAnthropicTool + "}");
  ASSERT_EQ(response.status, 200) << response.body;
  EXPECT_THAT(prompt(), HasSubstr("[user]hi[assistant](t)get_weather{\"city\":\"Bern\"}[tool]17 C"
                                  "[user]And Rome?<think>"));
  const Json json = Json::parse(response.body);
  EXPECT_EQ(json["type"], "message");
  EXPECT_THAT(json["id"].get<std::string>(), HasSubstr("msg_"));
  ASSERT_EQ(json["content"].size(), 3u) << json;
  EXPECT_EQ(json["content"][0]["thinking"], "hm");
  EXPECT_EQ(json["content"][1]["text"], "Let me look.");
  EXPECT_EQ(json["content"][2]["name"], "get_weather");
  EXPECT_EQ(json["content"][2]["input"], (Json{{"city", "Rome"}}));
  EXPECT_EQ(json["stop_reason"], "tool_use");
  EXPECT_GT(json["usage"]["input_tokens"], 0);
  EXPECT_GT(json["usage"]["output_tokens"], 0);
}

TEST_F(Doors, a_stream_of_a_message_tells_the_same) {
  server_.backend().say_bytes(kReply);
  const RawResponse response = server_.post(
      kMessages,
      R"({"stream": true, "max_tokens": 999, "messages": [{"role": "user", "content": "hi"}], )" +
          kAnthropicTool + "}");
  const auto all = events(response.body);
  ASSERT_GT(all.size(), 8u) << response.body;
  EXPECT_EQ(all.front().name, "message_start");
  EXPECT_EQ(all.back().name, "message_stop");
  std::vector<std::string> blocks;
  std::string thinking, said, input;
  int open = -1;
  for (const Event& event : all) {
    if (event.name == "content_block_start") {
      EXPECT_EQ(open, -1);
      open = event.data["index"];
      EXPECT_EQ(open, static_cast<int>(blocks.size()));
      blocks.push_back(event.data["content_block"]["type"]);
    } else if (event.name == "content_block_stop") {
      EXPECT_EQ(event.data["index"], open);
      open = -1;
    } else if (event.name == "content_block_delta") {
      EXPECT_EQ(event.data["index"], open);
      thinking += event.data["delta"].value("thinking", "");
      said += event.data["delta"].value("text", "");
      input += event.data["delta"].value("partial_json", "");
    } else if (event.name == "message_delta") {
      EXPECT_EQ(event.data["delta"]["stop_reason"], "tool_use");
    }
  }
  EXPECT_THAT(blocks, ElementsAre("thinking", "text", "tool_use"));
  EXPECT_EQ(thinking, "hm");
  EXPECT_EQ(said, "Let me look.");
  EXPECT_EQ(Json::parse(input), (Json{{"city", "Rome"}}));
}

TEST_F(Doors, messages_end_for_a_reason) {
  server_.backend().say("a</think>one STOP two");
  const auto reason = [&](const std::string& fields) {
    const Json json = Json::parse(
        server_
            .post(kMessages, R"({"messages": [{"role": "user", "content": "hi"}], )" + fields + "}")
            .body);
    return json["stop_reason"].get<std::string>() + " " + json["stop_sequence"].dump();
  };
  EXPECT_EQ(reason(R"("max_tokens": 99)"), "end_turn null");
  EXPECT_EQ(reason(R"("max_tokens": 2)"), "max_tokens null");
  EXPECT_EQ(reason(R"("max_tokens": 99, "stop_sequences": ["STOP"])"), "stop_sequence \"STOP\"");
}

TEST_F(Doors, a_call_that_is_cut_before_its_arguments_has_none) {
  const std::string reply = kReply;
  server_.backend().say(reply.substr(0, reply.find('{')));
  const Json json = Json::parse(
      server_
          .post(kMessages,
                R"({"max_tokens": 99, "messages": [{"role": "user", "content": "hi"}], )" +
                    kAnthropicTool + "}")
          .body);
  EXPECT_EQ(json["content"].back()["input"], Json::object()) << json;
}

TEST_F(Doors, what_messages_can_not_do_is_said_in_their_form) {
  const auto refused = [&](const std::string& body) {
    const RawResponse response = server_.post(kMessages, body);
    EXPECT_EQ(response.status, 400);
    const Json json = Json::parse(response.body);
    EXPECT_EQ(json["type"], "error");
    EXPECT_EQ(json["error"]["type"], "invalid_request_error");
    return json["error"]["message"].get<std::string>();
  };
  EXPECT_THAT(refused(R"({"messages": [{"role": "user", "content": "hi"}]})"),
              HasSubstr("max_tokens"));
  EXPECT_THAT(
      refused(
          R"({"max_tokens": 1, "messages": [{"role": "user", "content": [{"type": "image"}]}]})"),
      HasSubstr("reads text only"));
  EXPECT_THAT(refused(R"({"max_tokens": 1, "tools": [{"type": "web_search_20250305", "name": "w"}],
                          "messages": [{"role": "user", "content": "hi"}]})"),
              HasSubstr("only tools of the client"));
}

// What the chat that a request becomes would call otherwise.
TEST_F(Doors, refusals_name_the_fields_of_their_door) {
  const auto refused = [&](const char* door, const std::string& field) {
    const bool of_messages = std::string_view(door) == kMessages;
    const std::string body =
        (of_messages ? R"({"max_tokens": 99, "messages": [{"role": "user", "content": "hi"}], )"
                     : R"({"input": "hi", )") +
        field + "}";
    const RawResponse response = server_.post(door, body);
    EXPECT_EQ(response.status, 400) << response.body;
    const Json error = Json::parse(response.body)["error"];
    const auto text = error["message"].get<std::string>();
    if (!of_messages) {
      EXPECT_THAT(text, StartsWith(error["param"].get<std::string>() + ":"));
    }
    return text;
  };
  const std::string tool = R"("tools": [{"type": "function", "name": "f", "parameters": 1}])";
  EXPECT_THAT(refused(kResponses, tool), StartsWith("tools[0].parameters: "));
  EXPECT_THAT(refused(kResponses, R"("tools": [{"type": "function", "name": "f g"}])"),
              StartsWith("tools[0].name: "));
  EXPECT_THAT(refused(kResponses, R"("tools": [{"type": "function", "name": "f"}],
                                     "tool_choice": {"type": "function", "name": "g"})"),
              StartsWith("tool_choice.name: "));
  const std::string schema = R"({"type": "json_schema", "name": "x", "schema": {"$ref": "#/x"}})";
  EXPECT_THAT(refused(kResponses, R"("text": {"format": )" + schema + "}"),
              StartsWith("text.format.schema: "));
  EXPECT_THAT(refused(kResponses, R"("max_output_tokens": 1, "text": {"format": {"type":
                                     "json_schema", "schema": {"const": "a long one"}}})"),
              StartsWith("max_output_tokens: "));
  EXPECT_THAT(refused(kMessages, R"("tools": [{"name": "f", "input_schema": 1}])"),
              StartsWith("tools[0].input_schema: "));
  EXPECT_THAT(refused(kMessages, R"("tools": [{"name": "f"}], "tool_choice": {"type": "tool",
                                    "name": "g"})"),
              StartsWith("tool_choice.name: "));
  EXPECT_THAT(refused(kMessages, R"("output_config": {"format": )" + schema + "}"),
              StartsWith("output_config.format.schema: "));
  EXPECT_THAT(refused(kMessages, R"("stop_sequences": [""])"), StartsWith("stop_sequences: "));
}

TEST_F(Doors, tokens_of_messages_are_counted) {
  const RawResponse response = server_.post("/v1/messages/count_tokens",
                                            R"({"messages": [{"role": "user", "content": "hi"}]})");
  EXPECT_EQ(response.status, 200);
  EXPECT_EQ(Json::parse(response.body)["input_tokens"],
            server_.tokenizer().encode("[user]hi<think>")->size());
  const auto with_tools = [&](const std::string& choice) {
    const RawResponse counted = server_.post("/v1/messages/count_tokens",
                                             R"({"messages": [{"role": "user", "content": "hi"}],
            "tools": [{"name": "f", "input_schema": {"type": "object"}}],
            "tool_choice": {"type": ")" + choice +
                                                 R"("}})");
    return Json::parse(counted.body)["input_tokens"].get<int64_t>();
  };
  EXPECT_EQ(with_tools("none"), Json::parse(response.body)["input_tokens"]);
  EXPECT_GT(with_tools("auto"), with_tools("none"));
}

TEST_F(Doors, a_response_has_items) {
  server_.backend().say(kReply);
  const RawResponse response = server_.post(
      kResponses,
      R"({"model": "tiny", "instructions": "Be brief.", "input": "hi", "metadata": {"a": "b"}, )" +
          kOpenAiTool + "}");
  ASSERT_EQ(response.status, 200) << response.body;
  EXPECT_THAT(prompt(), HasSubstr("[user]hi<think>"));
  const Json json = Json::parse(response.body);
  EXPECT_EQ(json["object"], "response");
  EXPECT_EQ(json["status"], "completed");
  EXPECT_EQ(json["metadata"]["a"], "b");
  ASSERT_EQ(json["output"].size(), 3u) << json;
  EXPECT_EQ(json["output"][0]["content"][0]["text"], "hm");
  EXPECT_EQ(json["output"][1]["content"][0]["text"], "Let me look.");
  EXPECT_EQ(json["output"][2]["type"], "function_call");
  EXPECT_EQ(json["output"][2]["arguments"], "{\"city\": \"Rome\"}");
  EXPECT_GT(json["usage"]["total_tokens"], 0);
}

TEST_F(Doors, a_response_goes_on_with_an_earlier_one) {
  server_.backend().say(kReply);
  const Json first =
      Json::parse(server_.post(kResponses, R"({"input": "hi", )" + kOpenAiTool + "}").body);
  server_.backend().say("</think>Fine.");
  const std::string id = first["id"];
  const RawResponse second = server_.post(
      kResponses, R"({"previous_response_id": ")" + id +
                      R"(", "input": [{"type": "function_call_output",)" + R"("call_id": ")" +
                      first["output"][2]["call_id"].get<std::string>() +
                      R"(", "output": "20 C"}]})");
  ASSERT_EQ(second.status, 200) << second.body;
  EXPECT_EQ(prompt(),
            "[user]hi[assistant]Let me look.(hm)get_weather{\"city\": \"Rome\"}[tool]20 C<think>");
  EXPECT_EQ(Json::parse(second.body)["output"][0]["content"][0]["text"], "Fine.");
  const RawResponse unknown =
      server_.post(kResponses, R"({"previous_response_id": "resp_x", "input": "a"})");
  EXPECT_EQ(unknown.status, 404);
  EXPECT_THAT(unknown.body, HasSubstr("not kept here"));
  const Json unstored =
      Json::parse(server_.post(kResponses, R"({"input": "hi", "store": false})").body);
  EXPECT_EQ(server_
                .post(kResponses, R"({"input": "a", "previous_response_id": ")" +
                                      unstored["id"].get<std::string>() + "\"}")
                .status,
            404);
}

TEST_F(Doors, a_stream_of_a_response_follows_the_grammar_of_its_events) {
  server_.backend().say_bytes(kReply);
  const RawResponse response =
      server_.post(kResponses, R"({"stream": true, "input": "hi", )" + kOpenAiTool + "}");
  const auto all = events(response.body);
  ASSERT_GT(all.size(), 12u) << response.body;
  std::vector<std::string> names;
  std::string arguments;
  for (size_t i = 0; i < all.size(); ++i) {
    EXPECT_EQ(all[i].data["sequence_number"], i);
    if (names.empty() || names.back() != all[i].name) names.push_back(all[i].name);
    if (all[i].name == "response.function_call_arguments.delta") {
      arguments += all[i].data["delta"].get<std::string>();
    }
  }
  EXPECT_THAT(
      names,
      ElementsAre("response.created", "response.in_progress", "response.output_item.added",
                  "response.content_part.added", "response.reasoning_text.delta",
                  "response.reasoning_text.done", "response.content_part.done",
                  "response.output_item.done", "response.output_item.added",
                  "response.content_part.added", "response.output_text.delta",
                  "response.output_text.done", "response.content_part.done",
                  "response.output_item.done", "response.output_item.added",
                  "response.function_call_arguments.delta", "response.function_call_arguments.done",
                  "response.output_item.done", "response.completed"));
  EXPECT_EQ(arguments, "{\"city\": \"Rome\"}");
  EXPECT_EQ(all.back().data["response"]["output"].size(), 3u);
  EXPECT_THAT(response.body, Not(HasSubstr("[DONE]")));
}

TEST_F(Doors, the_item_that_a_response_was_cut_in_is_incomplete) {
  server_.backend().say("hm</think>A long answer that is cut.");
  for (const char* stream : {"false", "true"}) {
    const RawResponse response =
        server_.post(kResponses, R"({"input": "hi", "max_output_tokens": 6, "stream": )" +
                                     std::string(stream) + "}");
    const auto all = events(response.body);
    const Json json = all.empty() ? Json::parse(response.body) : all.back().data["response"];
    EXPECT_EQ(json["status"], "incomplete");
    EXPECT_EQ(json["incomplete_details"]["reason"], "max_output_tokens");
    EXPECT_EQ(json["output"].back()["status"], "incomplete") << json;
    if (all.empty()) continue;
    EXPECT_EQ(all.back().name, "response.incomplete");
    EXPECT_EQ(all[all.size() - 2].data["item"], json["output"].back());
  }
}

TEST_F(Doors, reasoning_is_left_out_where_it_is_not_wanted) {
  server_.backend().say(kReply);
  const std::string asked = R"({"include_reasoning": false, "max_tokens": 99, )";
  for (const char* stream : {R"("stream": false, )", R"("stream": true, )"}) {
    EXPECT_THAT(
        server_
            .post(kMessages, asked + stream + R"("messages": [{"role": "user", "content": "hi"}]})")
            .body,
        AllOf(HasSubstr("text"), Not(HasSubstr("thinking")), Not(HasSubstr("reasoning_text"))));
    EXPECT_THAT(
        server_
            .post(kResponses,
                  R"({"include_reasoning": false, )" + std::string(stream) + R"("input": "hi"})")
            .body,
        AllOf(HasSubstr("text"), Not(HasSubstr("thinking")), Not(HasSubstr("reasoning_text"))));
  }
}

// That model counts its calls through the conversation and wants their ids back as it wrote them.
TEST(DoorsOfKimi, calls_have_its_ids) {
  ApiServerOptions options;
  options.chat_template =
      "{% for m in messages %}[{{ m.role }}]{{ m.content or '' }}{% for c in m.tool_calls or [] %}"
      "<|tool_calls_section_begin|><|tool_call_begin|>{{ c.id }}<|tool_call_argument_begin|>"
      "{{ c.function.arguments }}{% endfor %}{% endfor %}";
  ApiServer server(options);
  server.backend().say(
      "<|tool_calls_section_begin|><|tool_call_begin|>functions.get_weather:0"
      "<|tool_call_argument_begin|>{}<|tool_call_end|><|tool_calls_section_end|>");
  for (const char* stream : {R"("stream": false, )", R"("stream": true, )"}) {
    const std::string message =
        std::string("{") + stream +
        R"("max_tokens": 300, "messages": [{"role": "user", "content": "hi"}, {"role": "assistant",
           "content": [{"type": "tool_use", "id": "functions.get_weather:0", "name": "get_weather", "input": {}}]},
           {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "functions.get_weather:0",
           "content": "x"}]}], )" +
        kAnthropicTool + "}";
    EXPECT_THAT(server.post(kMessages, message).body, HasSubstr(R"("functions.get_weather:1")"));
    EXPECT_THAT(
        server
            .post(kResponses, std::string("{") + stream + R"("input": "hi", )" + kOpenAiTool + "}")
            .body,
        HasSubstr(R"("call_id":"functions.get_weather:0")"));
  }
}

TEST_F(Doors, structured_text_of_a_response_fulfils_its_schema) {
  const Json json = Json::parse(
      server_
          .post(kResponses,
                R"({"input": "hi", "seed": 3, "max_output_tokens": 200, "text": {"format": {"type":
            "json_schema", "name": "x", "schema": {"type": "object", "properties": {"a": {"const": 1}},
            "required": ["a"], "additionalProperties": false}}}})")
          .body);
  const Json& message = json["output"].back();
  EXPECT_EQ(Json::parse(message["content"][0]["text"].get<std::string>()), (Json{{"a", 1}}));
}

TEST(ResponseStore, keeps_the_latest_within_its_bound) {
  coordinator::ResponseStore store(3000);
  for (int i = 0; i < 100; ++i) {
    store.keep("r" + std::to_string(i), "ann", std::string(500, 'x'));
    EXPECT_LE(store.bytes(), 3000u);
    EXPECT_TRUE(store.find("r0", "ann") || i > 0);
  }
  EXPECT_TRUE(store.find("r99", "ann"));
  EXPECT_FALSE(store.find("r99", "bob"));
  EXPECT_FALSE(store.find("r50", "ann"));
  store.keep("large", "ann", std::string(5000, 'x'));
  EXPECT_FALSE(store.find("large", "ann"));
  EXPECT_EQ(store.bytes(), 0u);
}

// --- pages of other origins ---

std::string field(const RawResponse& response, const std::string& name) {
  const auto found = response.headers.find(name);
  return found == response.headers.end() ? "" : found->second;
}

TEST(Cors, pages_may_ask_where_their_origin_is_named) {
  ApiServerOptions options;
  options.api.cors_origins = {"http://localhost:3000"};
  options.api.keys = {{"ann", "secret-key"}};
  ApiServer server(options);
  const std::string preflight = "OPTIONS /v1/chat/completions HTTP/1.1\r\nHost: x\r\nOrigin: ";
  const std::string wanted =
      "\r\nAccess-Control-Request-Method: POST\r\n"
      "Access-Control-Request-Headers: authorization,content-type\r\n\r\n";
  RawResponse answer = RawClient(server.port()).ask(preflight + "http://localhost:3000" + wanted);
  EXPECT_EQ(answer.status, 204);
  EXPECT_EQ(field(answer, "access-control-allow-origin"), "http://localhost:3000");
  EXPECT_EQ(field(answer, "access-control-allow-headers"), "authorization,content-type");
  answer = RawClient(server.port()).ask(preflight + "http://evil.example" + wanted);
  EXPECT_EQ(answer.status, 401);
  EXPECT_EQ(field(answer, "access-control-allow-origin"), "");
  const RawResponse asked = server.get(
      "/v1/models", "Origin: http://localhost:3000\r\nAuthorization: Bearer secret-key\r\n");
  EXPECT_EQ(asked.status, 200);
  EXPECT_EQ(field(asked, "access-control-allow-origin"), "http://localhost:3000");
  EXPECT_EQ(server.get("/v1/models", "x-api-key: secret-key\r\n").status, 200);
}

TEST(Cors, a_page_of_another_origin_can_not_make_the_server_compute) {
  ApiServer server;
  const std::string body = R"({"prompt": "a"})";
  const auto status = [&](const std::string& fields) {
    return RawClient(server.port()).ask(post("/v1/completions", body, fields)).status;
  };
  EXPECT_EQ(status("Origin: http://evil.example\r\nContent-Type: text/plain\r\n"), 403);
  EXPECT_EQ(status("Origin: null\r\nContent-Type: application/x-www-form-urlencoded\r\n"), 403);
  EXPECT_EQ(status("Content-Type: text/plain\r\n"), 200);
  EXPECT_EQ(status("Origin: http://a.example\r\nContent-Type: application/json\r\n"), 200);
  EXPECT_EQ(server.backend().submitted().size(), 2u);
  EXPECT_EQ(server.get("/trace", "Origin: http://evil.example\r\n").status, 403);
}

}  // namespace
}  // namespace atl::test
