// Answers as server-sent events: what comes in which order, and how streams end.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <map>
#include <string>
#include <vector>

#include "tests/coordinator/api_server.h"
#include "text/utf8.h"

namespace atl::test {
namespace {

using coordinator::FinishReason;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using ::testing::SizeIs;
using ::testing::StartsWith;

constexpr const char* kChat = "/v1/chat/completions";
constexpr const char* kText = "/v1/completions";
constexpr int32_t kEos = 1;

std::string chat(const std::string& field = "") {
  return R"({"stream": true, "messages": [{"role": "user", "content": "hi"}])" +
         (field.empty() ? "" : ", " + field) + "}";
}
std::string text(const std::string& field = "") {
  return R"({"stream": true, "prompt": "Once")" + (field.empty() ? "" : ", " + field) + "}";
}

// The stream's chunks; the last event, which is none, in *last.
std::vector<Json> chunks_of(ApiServer& server, const char* path, const std::string& body,
                            std::string* last) {
  const RawResponse response = server.post(path, body);
  EXPECT_EQ(response.status, 200) << response.body;
  EXPECT_THAT(response.headers.at("content-type"), StartsWith("text/event-stream"));
  std::vector<std::string> events = events_of(response.body);
  EXPECT_THAT(events, Not(IsEmpty()));
  *last = events.back();
  events.pop_back();
  std::vector<Json> chunks;
  for (const std::string& event : events) {
    EXPECT_TRUE(text::is_valid_utf8(event)) << event;
    chunks.push_back(Json::parse(event));
  }
  return chunks;
}
std::vector<Json> chunks_of(ApiServer& server, const char* path, const std::string& body) {
  std::string last;
  auto chunks = chunks_of(server, path, body, &last);
  EXPECT_EQ(last, "[DONE]");
  return chunks;
}

// A field of all deltas of a choice, joined.
std::string joined(const std::vector<Json>& chunks, const char* field, int64_t choice = 0) {
  std::string text;
  for (const Json& chunk : chunks) {
    for (const Json& piece : chunk.at("choices")) {
      if (piece.at("index") != choice) continue;
      const Json& from = piece.contains("delta") ? piece.at("delta") : piece;
      if (from.contains(field)) text += from.at(field).get<std::string>();
    }
  }
  return text;
}

TEST(ApiStream, begins_with_the_role_and_ends_with_the_reason) {
  ApiServer server;
  server.backend().say(" the the");
  const auto chunks = chunks_of(server, kChat, chat());
  ASSERT_GE(chunks.size(), 3u);
  EXPECT_EQ(chunks[0]["choices"][0]["delta"]["role"], "assistant");
  EXPECT_EQ(chunks[0]["choices"][0]["delta"]["content"], "");
  for (const Json& chunk : chunks) {
    EXPECT_EQ(chunk["object"], "chat.completion.chunk");
    EXPECT_EQ(chunk["id"], chunks[0]["id"]);
    EXPECT_EQ(chunk["model"], "tiny");
    EXPECT_FALSE(chunk.contains("usage"));
    const bool last = &chunk == &chunks.back();
    EXPECT_EQ(chunk["choices"][0]["finish_reason"], last ? Json("stop") : Json());
  }
  EXPECT_EQ(joined(chunks, "content"), " the the");
}

TEST(ApiStream, tokens_come_one_by_one) {
  ApiServer server;
  server.backend().manual();
  RawClient client(server.port());
  ASSERT_TRUE(client.send(post(kText, text())));
  while (server.backend().submitted().empty()) std::this_thread::yield();
  const auto id = server.backend().submitted()[0].id;
  const int32_t the = server.tokenizer().encode(" the")->at(0);
  server.backend().send(ScriptedBackend::event_of(id, the));
  EXPECT_THAT(client.read_until("\n\n"), HasSubstr(R"("text":" the")"));
  server.backend().send(ScriptedBackend::event_of(id, the));
  EXPECT_THAT(client.read_until("\n\n"), HasSubstr(R"("text":" the")"));
  server.backend().send(ScriptedBackend::event_of(id, the, FinishReason::kLength));
  EXPECT_THAT(client.read_until("\n\n"), HasSubstr(R"("finish_reason":"length")"));
  EXPECT_THAT(client.read_until("\n\n"), HasSubstr("data: [DONE]"));
}

TEST(ApiStream, usage_comes_last_and_without_choices) {
  ApiServer server;
  server.backend().say(" the the");
  for (const char* path : {kChat, kText}) {
    const std::string options = R"("stream_options": {"include_usage": true})";
    const auto chunks = chunks_of(server, path, path == kChat ? chat(options) : text(options));
    for (const Json& chunk : chunks) {
      if (&chunk == &chunks.back()) {
        EXPECT_THAT(chunk["choices"], IsEmpty());
        EXPECT_EQ(chunk["usage"]["completion_tokens"], 3);
      } else {
        EXPECT_TRUE(chunk.at("usage").is_null());
      }
    }
  }
}

TEST(ApiStream, is_valid_utf8_and_whole_however_characters_are_split) {
  const std::string said = "naïve 你好 😀👩‍👩‍👧 Ω";
  ApiServer server;
  server.backend().say_bytes(said);
  for (const char* path : {kChat, kText}) {
    const std::string length = R"("max_tokens": 500)";
    const auto chunks = chunks_of(server, path, path == kChat ? chat(length) : text(length));
    EXPECT_EQ(joined(chunks, path == kChat ? "content" : "text"), said);
  }
}

TEST(ApiStream, an_unfinished_character_is_replaced_at_the_end) {
  ApiServer server;
  server.backend().say_bytes("a\xE4\xBD");
  const auto chunks = chunks_of(server, kText, text());
  EXPECT_EQ(joined(chunks, "text"), "a\xEF\xBF\xBD");
}

TEST(ApiStream, stop_strings_over_several_tokens_are_never_shown) {
  ApiServer server;
  server.backend().say_bytes("one two END three");
  const auto chunks =
      chunks_of(server, kChat, chat(R"("stop": ["END", "never"], "max_tokens": 99)"));
  EXPECT_EQ(joined(chunks, "content"), "one two ");
  EXPECT_EQ(chunks.back()["choices"][0]["finish_reason"], "stop");
  EXPECT_THAT(server.backend().cancelled(), SizeIs(1));
}

TEST(ApiStream, what_looked_like_a_stop_string_comes_later) {
  ApiServer server;
  server.backend().say_bytes("ENDE EN");
  const auto chunks = chunks_of(server, kText, text(R"("stop": "END.")"));
  EXPECT_EQ(joined(chunks, "text"), "ENDE EN");
  EXPECT_THAT(server.backend().cancelled(), IsEmpty());
}

TEST(ApiStream, choices_are_told_apart_by_index) {
  ApiServer server;
  server.backend().say_each({" a", " b b", " c"});
  const auto chunks = chunks_of(server, kChat, chat(R"("n": 3)"));
  EXPECT_EQ(joined(chunks, "content", 0), " a");
  EXPECT_EQ(joined(chunks, "content", 1), " b b");
  EXPECT_EQ(joined(chunks, "content", 2), " c");
  std::map<int64_t, int> ends;
  for (const Json& chunk : chunks) {
    if (!chunk["choices"][0]["finish_reason"].is_null()) ++ends[chunk["choices"][0]["index"]];
  }
  EXPECT_THAT(ends, ElementsAre(std::pair(0, 1), std::pair(1, 1), std::pair(2, 1)));
}

TEST(ApiStream, echo_comes_first) {
  ApiServer server;
  server.backend().say(" the");
  const auto chunks = chunks_of(server, kText, text(R"("echo": true)"));
  EXPECT_EQ(chunks[0]["choices"][0]["text"], "Once");
  EXPECT_EQ(joined(chunks, "text"), "Once the");
}

TEST(ApiStream, reasoning_then_content) {
  ApiServerOptions options;
  options.chat_template = "{{ messages[0]['content'] }}<think>\n";
  ApiServer server(options);
  server.backend().say_bytes("I wonder</think>42");
  const auto chunks =
      chunks_of(server, kChat, chat(R"("stream_options": {"include_usage": true})"));
  EXPECT_EQ(joined(chunks, "reasoning_content"), "I wonder");
  EXPECT_EQ(joined(chunks, "content"), "42");
  EXPECT_EQ(chunks.back()["usage"]["completion_tokens_details"]["reasoning_tokens"],
            std::string("I wonder</think>").size());
}

TEST(ApiStream, calls_of_tools_begin_with_id_and_name_and_go_on_with_arguments) {
  ApiServer server;
  server.backend().say_bytes(
      "ok<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f<｜tool▁sep｜>{\"x\": 1}<｜tool▁call▁end｜>"
      "<｜tool▁call▁begin｜>g<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>");
  const std::string tools = R"("tools": [{"type": "function", "function": {"name": "f"}},)"
                            R"({"type": "function", "function": {"name": "g"}}])";
  const auto chunks = chunks_of(server, kChat, chat(tools));
  EXPECT_EQ(joined(chunks, "content"), "ok");
  std::map<int64_t, std::string> names, ids, arguments;
  for (const Json& chunk : chunks) {
    const Json& delta = chunk["choices"][0]["delta"];
    if (!delta.contains("tool_calls")) continue;
    for (const Json& call : delta["tool_calls"]) {
      const int64_t index = call["index"];
      if (call.contains("id")) {
        EXPECT_FALSE(ids.contains(index));
        EXPECT_THAT(arguments[index], IsEmpty());
        EXPECT_EQ(call["type"], "function");
        ids[index] = call["id"];
        names[index] = call["function"]["name"];
      } else {
        EXPECT_FALSE(call["function"].contains("name"));
      }
      arguments[index] += call["function"]["arguments"].get<std::string>();
    }
  }
  EXPECT_THAT(names, ElementsAre(std::pair(0, "f"), std::pair(1, "g")));
  EXPECT_NE(ids[0], ids[1]);
  EXPECT_THAT(arguments, ElementsAre(std::pair(0, "{\"x\": 1}"), std::pair(1, "{}")));
  EXPECT_EQ(chunks.back()["choices"][0]["finish_reason"], "tool_calls");
}

TEST(ApiStream, logprobs_come_with_the_text_of_their_tokens) {
  ApiServer server;
  server.backend().say_bytes("a EN b END");
  const auto chunks =
      chunks_of(server, kChat,
                chat(R"("logprobs": true, "top_logprobs": 1, "stop": "END", "max_tokens": 99)"));
  std::string spelled;
  size_t shown = 0;
  for (const Json& chunk : chunks) {
    const Json& choice = chunk["choices"][0];
    if (!choice["logprobs"].is_null()) {
      for (const Json& token : choice["logprobs"]["content"]) {
        spelled += token["token"].get<std::string>();
        EXPECT_THAT(token["top_logprobs"], SizeIs(1));
      }
    }
    shown += choice["delta"].value("content", "").size();
    EXPECT_GE(spelled.size(), shown);
  }
  EXPECT_EQ(spelled, "a EN b ");
}

TEST(ApiStream, an_error_on_the_way_is_one_event_and_the_end) {
  ApiServer server;
  server.backend().say(" the the the");
  server.backend().fail_after(2, {ErrorCode::kInternal, "layer 3 is on fire"});
  std::string last;
  const auto chunks = chunks_of(server, kChat, chat(), &last);
  EXPECT_EQ(joined(chunks, "content"), " the the");
  const Json error = Json::parse(last);
  EXPECT_EQ(error["error"]["message"], "layer 3 is on fire");
  EXPECT_EQ(error["error"]["type"], "server_error");
}

TEST(ApiStream, an_error_before_the_first_token_is_a_status) {
  ApiServer server;
  server.backend().fail_after(0, {ErrorCode::kUnavailable, "no node is left"});
  const RawResponse response = server.post(kChat, chat());
  EXPECT_EQ(response.status, 503);
  EXPECT_EQ(response.headers.at("content-type"), "application/json");
}

TEST(ApiStream, begins_after_a_while_even_without_a_token) {
  ApiServerOptions options;
  options.api.stream_begin_after = std::chrono::milliseconds(0);
  options.api.canary_every = std::chrono::milliseconds(100);  // which paces the look at streams
  ApiServer server(options);
  server.backend().manual();
  RawClient client(server.port());
  ASSERT_TRUE(client.send(post(kChat, chat())));
  EXPECT_THAT(client.read_until("\n\n"), HasSubstr("200 OK"));
}

TEST(ApiStream, a_client_that_goes_away_cancels_its_sequences) {
  ApiServer server;
  server.backend().manual();
  for (const bool stream : {true, false}) {
    const size_t before = server.backend().submitted().size();
    {
      RawClient client(server.port());
      ASSERT_TRUE(client.send(
          post(kChat, stream ? chat(R"("n": 2)")
                             : R"({"n": 2, "messages": [{"role": "user", "content": "hi"}]})")));
      while (server.backend().submitted().size() < before + 2) std::this_thread::yield();
    }
    const auto deadline = std::chrono::steady_clock::now() + RawClient::kPatience;
    while (server.backend().cancelled().size() < before + 2 &&
           std::chrono::steady_clock::now() < deadline) {
      std::this_thread::yield();
    }
    EXPECT_THAT(server.backend().cancelled(), SizeIs(before + 2));
  }
  // Events that were under way find nobody, and nothing happens.
  for (const auto& submitted : server.backend().submitted()) {
    server.backend().send(ScriptedBackend::event_of(submitted.id, 262, FinishReason::kStop));
  }
  EXPECT_EQ(server.get("/health").status, 200);
}

TEST(ApiStream, one_choice_that_fails_ends_all) {
  ApiServer server;
  server.backend().manual();
  RawClient client(server.port());
  ASSERT_TRUE(client.send(post(kChat, chat(R"("n": 2)"))));
  while (server.backend().submitted().size() < 2) std::this_thread::yield();
  const auto submitted = server.backend().submitted();
  server.backend().send(ScriptedBackend::event_of(submitted[0].id, 262));
  server.backend().send(ScriptedBackend::error_of(submitted[1].id, {ErrorCode::kInternal, "no"}));
  const RawResponse response = client.read_response();
  EXPECT_THAT(events_of(response.body).back(), HasSubstr("\"error\""));
  EXPECT_THAT(server.backend().cancelled(), ElementsAre(submitted[0].id));
}

TEST(ApiStream, a_choice_that_a_stop_string_ended_is_cancelled_while_others_go_on) {
  ApiServer server;
  server.backend().manual();
  RawClient client(server.port());
  ASSERT_TRUE(client.send(post(kText, text(R"("n": 2, "stop": "the")"))));
  while (server.backend().submitted().size() < 2) std::this_thread::yield();
  const auto submitted = server.backend().submitted();
  server.backend().send(ScriptedBackend::event_of(submitted[0].id, 262));
  EXPECT_THAT(client.read_until("\"finish_reason\":\"stop\""), HasSubstr("\"index\":0"));
  server.on_server([] {});
  EXPECT_THAT(server.backend().cancelled(), ElementsAre(submitted[0].id));
  // What was on its way changes nothing.
  server.backend().send(ScriptedBackend::event_of(submitted[0].id, 262, FinishReason::kLength));
  server.backend().send(ScriptedBackend::event_of(submitted[1].id, kEos, FinishReason::kStop));
  EXPECT_THAT(client.read_until("[DONE]"), Not(HasSubstr("length")));
  server.on_server([] {});
  EXPECT_THAT(server.backend().cancelled(), SizeIs(1));
}

// --- the server's life ---

TEST(ApiDrain, finishes_streams_and_refuses_what_is_new) {
  ApiServer server;
  server.backend().manual();
  RawClient client(server.port());
  ASSERT_TRUE(client.send(post(kChat, chat())));
  while (server.backend().submitted().empty()) std::this_thread::yield();
  const auto id = server.backend().submitted()[0].id;
  server.backend().send(ScriptedBackend::event_of(id, 262));
  std::atomic<bool> drained = false;
  server.on_server([&] { server.api().drain([&] { drained = true; }); });

  const RawResponse refused = server.post(kChat, chat());
  EXPECT_EQ(refused.status, 503);
  EXPECT_TRUE(refused.headers.contains("retry-after"));
  EXPECT_EQ(server.get("/ready").status, 503);
  EXPECT_EQ(server.get("/health").status, 200);
  EXPECT_EQ(Json::parse(server.get("/stats").body)["server"]["state"], "draining");
  EXPECT_FALSE(drained);

  server.backend().send(ScriptedBackend::event_of(id, 262, FinishReason::kStop));
  EXPECT_THAT(events_of(client.read_response().body).back(), "[DONE]");
  server.on_server([] {});
  EXPECT_TRUE(drained);
}

TEST(ApiDrain, of_an_idle_server_is_over_at_once) {
  ApiServer server;
  bool drained = false;
  server.on_server([&] { server.api().drain([&] { drained = true; }); });
  EXPECT_TRUE(drained);
}

TEST(ApiAbort, ends_everything_with_an_error) {
  ApiServer server;
  server.backend().manual();
  RawClient streaming(server.port()), waiting(server.port());
  ASSERT_TRUE(streaming.send(post(kChat, chat())));
  while (server.backend().submitted().empty()) std::this_thread::yield();
  server.backend().send(ScriptedBackend::event_of(server.backend().submitted()[0].id, 262));
  ASSERT_TRUE(waiting.send(post(kText, R"({"prompt": "Once"})")));
  while (server.backend().submitted().size() < 2) std::this_thread::yield();
  server.on_server([&] { server.api().abort("the time to finish is over"); });
  EXPECT_THAT(events_of(streaming.read_response().body).back(), HasSubstr("the time to finish"));
  EXPECT_EQ(waiting.read_response().status, 503);
  EXPECT_THAT(server.backend().cancelled(), SizeIs(2));
}

TEST(ApiReady, needs_a_fresh_token) {
  ApiServerOptions options;
  options.api.canary_every = std::chrono::milliseconds(20);
  ApiServer server(options);
  const auto deadline = std::chrono::steady_clock::now() + RawClient::kPatience;
  while (server.backend().canaries() < 3 && std::chrono::steady_clock::now() < deadline) {
    std::this_thread::yield();
  }
  EXPECT_GE(server.backend().canaries(), 3);
  EXPECT_EQ(server.get("/ready").status, 200);

  coordinator::GenerationStats stats;
  stats.failure = "no node is left";
  server.backend().set_stats(stats);
  const RawResponse failing = server.get("/ready");
  EXPECT_EQ(failing.status, 503);
  EXPECT_THAT(failing.body, HasSubstr("no node is left"));
}

TEST(ApiReady, is_not_while_the_helpers_are_busy) {
  ApiServerOptions options;
  options.api.canary_every = std::chrono::milliseconds(20);
  options.api.probe_every = std::chrono::milliseconds(5);
  options.api.late_after = std::chrono::milliseconds(50);
  options.http.helper_threads = 2;
  ApiServer server(options);
  const auto eventually = [&](int status) {
    const auto deadline = std::chrono::steady_clock::now() + RawClient::kPatience;
    while (server.get("/ready").status != status && std::chrono::steady_clock::now() < deadline) {
      std::this_thread::yield();
    }
    return server.get("/ready");
  };
  EXPECT_EQ(eventually(200).status, 200);
  std::promise<void> release;
  const std::shared_future<void> released = release.get_future().share();
  for (int i = 0; i < 2; ++i) {
    server.on_server([&] {
      server.server().work(
          {.client = "a", .run = [released](std::stop_token) { released.wait(); }});
    });
  }
  const RawResponse blocked = eventually(503);
  EXPECT_EQ(blocked.status, 503);
  EXPECT_THAT(blocked.body, HasSubstr("requests have not been read"));
  EXPECT_EQ(server.get("/health").status, 200);
  release.set_value();
  EXPECT_EQ(eventually(200).status, 200);
}

TEST(ApiReady, says_why_not) {
  ApiServerOptions options;
  options.api.canary_every = std::chrono::milliseconds(20);
  options.api.canary_max_age = std::chrono::milliseconds(0);
  ApiServer stale(options);
  const auto deadline = std::chrono::steady_clock::now() + RawClient::kPatience;
  while (stale.backend().canaries() < 1 && std::chrono::steady_clock::now() < deadline) {
    std::this_thread::yield();
  }
  stale.on_server([] {});
  const RawResponse response = stale.get("/ready");
  EXPECT_EQ(response.status, 503);
  EXPECT_THAT(response.body, HasSubstr("no token was generated for"));
  EXPECT_TRUE(response.headers.contains("retry-after"));
}

TEST(ApiOverload, waiting_for_the_helpers_is_bounded) {
  ApiServerOptions options;
  options.http.work_waiting_max = 0;
  ApiServer server(options);
  for (const auto& [path, body] : {std::pair<std::string, std::string>(kChat, chat()),
                                   {"/tokenize", R"({"prompt": "Once"})"}}) {
    const RawResponse response = server.post(path, body);
    EXPECT_EQ(response.status, 429) << path;
    EXPECT_TRUE(response.headers.contains("retry-after")) << path;
  }
}

}  // namespace
}  // namespace atl::test
