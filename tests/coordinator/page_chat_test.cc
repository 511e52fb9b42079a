// The page's chat box in headless Chromium, driven by a page around it: what it sends, and what it
// shows of made-up answers.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <functional>
#include <future>
#include <memory>
#include <mutex>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "coordinator/api/page.h"
#include "http/http_server.h"
#include "tests/http/raw_http.h"
#include "tests/support/command.h"
#include "tests/support/temp_dir.h"

namespace atl::coordinator {
namespace {

using nlohmann::json;
using test::RawClient;
using test::RunningServer;
using testing::HasSubstr;
using testing::Not;
using Exchange = std::shared_ptr<http::HttpExchange>;

constexpr const char* kChromium = "/usr/bin/chromium";

// Loads the page in a frame, runs `script` there (d: its document, say(text): types and sends) and
// puts what is then asked for on itself.
std::string driver(const std::string& script) {
  return R"(<!doctype html><iframe id="f" src="/" width="1100" height="800"></iframe><pre id="out">nothing</pre><script>
const wait = ms => new Promise(next => setTimeout(next, ms));
async function until(holds) { for (let i = 0; i < 400 && !holds(); ++i) await wait(25); }
const frame = document.getElementById('f');
frame.onload = async () => {
  const d = frame.contentDocument, $ = id => d.getElementById(id);
  const idle = () => until(() => $('stop').disabled);
  const say = text => { $('say').value = text; $('send').click(); };
  const out = [];
  try { )" +
         script + R"( } catch (error) { out.push('threw ' + error); }
  document.getElementById('out').textContent = '<<' + out.join('|') + '>>';
};
</script>)";
}

class PageChat : public testing::Test {
 protected:
  void SetUp() override {
    if (access(kChromium, X_OK) != 0) GTEST_SKIP() << "no Chromium is installed";
    auto& server = server_.server();
    const auto html = [&server](const std::string& path, std::string body) {
      server.route("GET", path, [body = std::move(body)](const auto& exchange) {
        exchange->respond({.content_type = "text/html; charset=utf-8", .body = body});
      });
    };
    html("/", std::string(status_page()));
    set_html_ = [html](const std::string& body) { html("/driver", body); };
    server.route("GET", "/stats", [this](const auto& exchange) {
      exchange->respond({.status = known(exchange) ? 200 : 401, .body = stats_.dump()});
    });
    server.route("POST", "/v1/chat/completions", [this](const Exchange& exchange) {
      {
        const std::lock_guard lock(mutex_);
        bodies_.push_back(json::parse(exchange->request().body));
        keys_.emplace_back(exchange->request().header("authorization"));
      }
      answer_(exchange);
    });
  }

  // What the driver says in the end.
  std::string drive(const std::string& script) {
    set_html_(driver(script));
    server_.start();
    const test::TempDir profile;
    test::CommandOptions options;
    options.environment = {"HOME=" + (profile / "").string()};
    const auto result = test::run_command(
        {kChromium, "--headless=new", "--no-sandbox", "--disable-gpu",
         "--user-data-dir=" + (profile / "data").string(), "--virtual-time-budget=20000",
         "--dump-dom", "http://127.0.0.1:" + std::to_string(server_.port()) + "/driver"},
        options);
    EXPECT_EQ(result.exit_code, 0) << result.err;
    const size_t begin = result.out.find("&lt;&lt;"), end = result.out.find("&gt;&gt;");
    if (begin == std::string::npos || end == std::string::npos) return result.out;
    return result.out.substr(begin + 8, end - begin - 8);
  }

  bool known(const Exchange& exchange) const {
    return !asks_for_key_ || !exchange->request().header("authorization").empty();
  }
  static void send(const Exchange& exchange, const json& delta) {
    exchange->send_event(json{{"choices", {{{"index", 0}, {"delta", delta}}}}}.dump());
  }
  static void end(const Exchange& exchange) {
    exchange->send_event(
        json{{"choices", json::array()}, {"usage", {{"completion_tokens", 42}}}}.dump());
    exchange->send_event("[DONE]");
    exchange->end();
  }
  std::vector<json> bodies() {
    const std::lock_guard lock(mutex_);
    return bodies_;
  }

  std::function<void(const std::string&)> set_html_;
  std::function<void(const Exchange&)> answer_;
  json stats_ = json::object();
  bool asks_for_key_ = false;
  std::mutex mutex_;
  std::vector<json> bodies_;
  std::vector<std::string> keys_;
  RunningServer server_;
};

TEST_F(PageChat, streams_an_answer_with_its_reasoning_apart) {
  answer_ = [](const Exchange& exchange) {
    exchange->begin_events();
    send(exchange, {{"role", "assistant"}, {"content", ""}});
    send(exchange, {{"reasoning_content", "Let me "}});
    send(exchange, {{"reasoning_content", "see."}});
    send(exchange, {{"content", "Hello <b>"}});
    send(exchange, {{"content", "you</b>"}});
    end(exchange);
  };
  const std::string shown = drive(R"(
    say('Who?'); await until(() => !$('stop').disabled); await idle();
    say('And then?'); await idle();
    const answer = d.querySelector('#talk .assistant'), fold = answer.querySelector('details');
    out.push(d.querySelectorAll('#talk > div').length, fold.open, fold.querySelector('.reasoning').textContent,
             fold.querySelector('summary').textContent.slice(0, 12), answer.querySelector('.content').textContent,
             answer.querySelector('.content').children.length, answer.querySelector('.figures').textContent, $('say').value);)");
  EXPECT_THAT(
      shown,
      testing::StartsWith(
          "4|false|Let me see.|thought for |Hello &lt;b&gt;you&lt;/b&gt;|0|first token after "));
  EXPECT_THAT(shown, HasSubstr("tokens/s, 42 tokens|"));
  const std::vector<json> bodies = this->bodies();
  ASSERT_EQ(bodies.size(), 2u);
  EXPECT_EQ(bodies[0]["messages"], json::parse(R"([{"role": "user", "content": "Who?"}])"));
  EXPECT_EQ(bodies[0]["stream"], true);
  EXPECT_EQ(bodies[0]["max_tokens"], 1024);
  EXPECT_EQ(bodies[1]["messages"][1],
            json::parse(R"({"role": "assistant", "content": "Hello <b>you</b>"})"));
  EXPECT_EQ(bodies[1]["messages"][2]["content"], "And then?");
}

TEST_F(PageChat, stops_an_answer_and_the_server_learns_it) {
  // The server learns it when it will, perhaps after this function.
  const auto gone = std::make_shared<std::promise<void>>();
  answer_ = [gone](const Exchange& exchange) {
    exchange->on_gone([gone, exchange] { gone->set_value(); });
    exchange->begin_events();
    send(exchange, {{"content", "for ever"}});
  };
  const std::string shown = drive(R"(
    say('Go on'); await until(() => d.querySelector('#talk .content')); $('stop').click(); await idle();
    await wait(200);
    out.push(d.querySelector('#talk .content').textContent, d.querySelector('#talk .figures').textContent,
             $('send').disabled, $('stop').disabled, d.querySelectorAll('#talk .error').length);)");
  EXPECT_THAT(shown, HasSubstr("for ever|first token after "));
  EXPECT_THAT(shown, HasSubstr("stopped|false|true|0"));
  EXPECT_EQ(gone->get_future().wait_for(RawClient::kPatience), std::future_status::ready);
}

TEST_F(PageChat, tells_errors_before_and_within_an_answer) {
  int asked = 0;
  answer_ = [&](const Exchange& exchange) {
    if (++asked == 1) {
      exchange->respond({.status = 429, .body = R"({"error": {"message": "too <i>much</i>"}})"});
      return;
    }
    exchange->begin_events();
    send(exchange, {{"content", "So"}});
    if (asked == 2) exchange->send_event(R"({"error": {"message": "a node died"}})");
    exchange->end();
  };
  const std::string shown = drive(R"(
    say('one'); await until(() => d.querySelector('#talk .error')); await idle();
    out.push(d.querySelector('#talk .error').textContent, $('say').value);
    for (const n of [2, 3]) { say('two'); await until(() => d.querySelectorAll('#talk .error').length >= n); await idle(); }
    out.push(...[...d.querySelectorAll('#talk .error')].slice(1).map(e => e.textContent));)");
  EXPECT_EQ(
      shown,
      "too &lt;i&gt;much&lt;/i&gt;|one|a node died|The connection ended before the answer did.");
}

TEST_F(PageChat, begins_anew_and_uses_the_key) {
  asks_for_key_ = true;
  answer_ = [this](const Exchange& exchange) {
    if (!known(exchange)) {
      exchange->respond({.status = 401, .body = R"({"error": {"message": "no key"}})"});
      return;
    }
    exchange->begin_events();
    send(exchange, {{"content", "yes"}});
    end(exchange);
  };
  const std::string shown = drive(R"(
    say('one'); await until(() => d.querySelector('#talk .error')); await idle();
    out.push($('key-form').className);
    $('key').value = 'sk-a'; $('key-form').requestSubmit(); await wait(50);
    say('two'); await until(() => d.querySelector('#talk .content')); await idle();
    $('forget').click();
    out.push(d.querySelectorAll('#talk > div').length);
    $('max-tokens').value = 7; say('three'); await until(() => d.querySelector('#talk .content')); await idle();)");
  EXPECT_EQ(shown, "asked|0");
  ASSERT_EQ(bodies().size(), 3u);
  EXPECT_EQ(keys_.back(), "Bearer sk-a");
  EXPECT_EQ(bodies()[2]["messages"].size(), 1u);
  EXPECT_EQ(bodies()[2]["max_tokens"], 7);
}

TEST_F(PageChat, shows_waiting_times_errors_and_why_it_is_not_ready) {
  stats_ = {
      {"server", {{"state", "failing"}, {"not_ready_because", "no expert node is there: n1"}}},
      {"latency",
       {{"first_token", {{"count", 12}, {"p50_seconds", 0.25}, {"p99_seconds", 1.5}}},
        {"next_token", {{"count", 300}, {"p50_seconds", 0.0042}, {"p99_seconds", 0.1}}}}},
      {"answers", {{"200", 30}, {"400", 2}, {"429", 3}, {"499", 1}}}};
  const std::string shown = drive(R"(
    await until(() => $('errors').textContent !== '–');
    out.push(...['why', 'ttft', 'itl', 'latency-text', 'errors', 'answers'].map(id => $(id).textContent));)");
  EXPECT_EQ(
      shown,
      "not ready: no expert node is there: n1|250 ms|4.2 ms|medians of the last 12 answers and "
      "300 gaps; p99 1.50 s and 100 ms|5|30 × 200, 2 × 400, 3 × 429, 1 × client gone");
}

}  // namespace
}  // namespace atl::coordinator
