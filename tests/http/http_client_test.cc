// The client against the server, and against sockets that misbehave.

#include "http/http_client.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <future>
#include <optional>
#include <thread>
#include <vector>

#include "http/http_server.h"
#include "tests/http/raw_http.h"

namespace atl::http {
namespace {

using std::chrono::milliseconds;
using test::RunningServer;
using testing::ElementsAre;
using testing::HasSubstr;

HttpUrl local(uint16_t port, std::string path = "") { return {"127.0.0.1", port, std::move(path)}; }

// Accepts one connection at a time, reads what is there and says `answer` to each.
class ScriptedSocket {
 public:
  explicit ScriptedSocket(std::vector<std::string> answers) : answers_(std::move(answers)) {
    fd_ = socket(AF_INET, SOCK_STREAM, 0);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof(address);
    EXPECT_EQ(bind(fd_, reinterpret_cast<sockaddr*>(&address), size), 0);
    EXPECT_EQ(listen(fd_, 8), 0);
    getsockname(fd_, reinterpret_cast<sockaddr*>(&address), &size);
    port_ = ntohs(address.sin_port);
    thread_ = std::thread([this] { serve(); });
  }
  ~ScriptedSocket() {
    thread_.join();
    close(fd_);
  }
  uint16_t port() const { return port_; }

 private:
  void serve() {
    for (const std::string& answer : answers_) {
      const int client = accept(fd_, nullptr, nullptr);
      char bytes[4096];
      recv(client, bytes, sizeof(bytes), 0);
      send(client, answer.data(), answer.size(), MSG_NOSIGNAL);
      close(client);
    }
  }
  std::vector<std::string> answers_;
  int fd_ = -1;
  uint16_t port_ = 0;
  std::thread thread_;
};

class HttpClientTest : public testing::Test {
 protected:
  HttpClientTest() {
    HttpServer& server = running_.server();
    server.route("GET", "/v1/hello", [](const auto& exchange) {
      exchange->respond({.content_type = "text/plain", .body = "hello", .headers = {{"X-A", "1"}}});
    });
    server.route("POST", "/echo", [](const auto& exchange) {
      exchange->respond({.body = exchange->request().body});
    });
    server.route("GET", "/events", [](const auto& exchange) {
      exchange->begin_events();
      for (const char* event : {"one", "two", "[DONE]"}) exchange->send_event(event);
      exchange->end();
    });
    server.route("GET", "/hang", [this](const auto& exchange) {
      exchange->on_gone([this] { gone_.set_value(); });
      exchange->begin_events();
      exchange->send_event("first");
      hanging_ = exchange;
    });
    server.route("GET", "/never", [this](const auto& exchange) { hanging_ = exchange; });
    running_.start();
  }

  std::shared_ptr<HttpExchange> hanging_;
  std::promise<void> gone_;
  RunningServer running_;
};

TEST_F(HttpClientTest, asks_with_the_urls_path_and_reads_status_fields_and_body) {
  HttpClient client(local(running_.port(), "/v1"));
  const auto answer = client.ask({.path = "/hello"});
  ASSERT_TRUE(answer) << answer.error().message;
  EXPECT_EQ(answer->status, 200);
  EXPECT_EQ(answer->body, "hello");
  EXPECT_EQ(answer->header("x-a"), "1");
  EXPECT_EQ(client.ask({.path = "/nothing"})->status, 404);
  const auto head = client.ask({.method = "HEAD", .path = "/hello"});
  ASSERT_TRUE(head) << head.error().message;
  EXPECT_EQ(head->header("Content-Length"), "5");
  EXPECT_EQ(running_.server().stats().accepted, 1u);
}

TEST_F(HttpClientTest, posts_megabytes_and_reads_them_back) {
  HttpClient client(local(running_.port()));
  const std::string body(3 << 20, 'm');
  const auto answer = client.ask({.method = "POST", .path = "/echo", .body = body});
  ASSERT_TRUE(answer) << answer.error().message;
  EXPECT_EQ(answer->body, body);
}

TEST_F(HttpClientTest, delivers_events_one_by_one) {
  HttpClient client(local(running_.port()));
  std::vector<std::string> events;
  const auto answer = client.ask({.path = "/events"}, [&](std::string_view data, auto arrived) {
    EXPECT_LE(arrived, std::chrono::steady_clock::now());
    events.emplace_back(data);
  });
  ASSERT_TRUE(answer) << answer.error().message;
  EXPECT_THAT(events, ElementsAre("one", "two", "[DONE]"));
  EXPECT_EQ(answer->body, "");
}

TEST_F(HttpClientTest, many_requests_are_under_way_at_once) {
  HttpClient client(local(running_.port()));
  int done = 0, hanging = 0;
  for (int i = 0; i < 200; ++i) {
    client.start({.method = "POST", .path = "/echo", .body = std::to_string(i)}, {},
                 [&done, i](Result<HttpAnswer> answer) {
                   ASSERT_TRUE(answer) << answer.error().message;
                   EXPECT_EQ(answer->body, std::to_string(i));
                   ++done;
                 });
  }
  const auto id = client.start({.path = "/never"}, {}, [&](Result<HttpAnswer> answer) {
    EXPECT_FALSE(answer);
    ++hanging;
  });
  // The one that hangs is given up when the others are done, however long a slow machine takes.
  std::function<void()> cancel_when_done = [&] {
    if (done == 200) {
      client.cancel(id);
    } else {
      client.call_after(milliseconds(10), cancel_when_done);
    }
  };
  client.call_after(milliseconds(10), cancel_when_done);
  client.run();
  EXPECT_EQ(done, 200);
  EXPECT_EQ(hanging, 1);
}

TEST_F(HttpClientTest, cancel_inside_an_event_closes_the_connection) {
  HttpClient client(local(running_.port()));
  HttpClient::RequestId id = 0;
  std::optional<Error> error;
  int events = 0;
  id = client.start(
      {.path = "/hang"},
      [&](std::string_view, auto) {
        ++events;
        client.cancel(id);
      },
      [&](Result<HttpAnswer> answer) { error = answer.error(); });
  client.run();
  EXPECT_EQ(events, 1);
  ASSERT_TRUE(error);
  EXPECT_EQ(error->code, ErrorCode::kUnavailable);
  EXPECT_EQ(gone_.get_future().wait_for(test::RawClient::kPatience), std::future_status::ready);
}

TEST_F(HttpClientTest, a_silent_server_is_a_timeout) {
  HttpClientOptions options;
  options.silence_timeout = milliseconds(30);
  HttpClient client(local(running_.port()), options);
  const auto answer = client.ask({.path = "/never"});
  ASSERT_FALSE(answer);
  EXPECT_EQ(answer.error().code, ErrorCode::kTimeout);
  HttpClient patient(local(running_.port()));
  const auto late = patient.ask({.path = "/never", .timeout = milliseconds(30)});
  ASSERT_FALSE(late);
  EXPECT_EQ(late.error().code, ErrorCode::kTimeout);
}

TEST_F(HttpClientTest, an_answer_longer_than_allowed_is_an_error) {
  HttpClientOptions options;
  options.body_bytes_max = 100;
  HttpClient client(local(running_.port()), options);
  EXPECT_TRUE(client.ask({.method = "POST", .path = "/echo", .body = std::string(100, 'x')}));
  const auto answer =
      client.ask({.method = "POST", .path = "/echo", .body = std::string(101, 'x')});
  ASSERT_FALSE(answer);
  EXPECT_EQ(answer.error().code, ErrorCode::kOverloaded);
}

TEST(HttpClient, a_server_that_is_not_there_is_named) {
  uint16_t free_port = 0;
  { free_port = RunningServer().port(); }
  HttpClient client(local(free_port));
  const auto answer = client.ask({.path = "/x"});
  ASSERT_FALSE(answer);
  EXPECT_EQ(answer.error().code, ErrorCode::kUnavailable);
  EXPECT_THAT(answer.error().message, HasSubstr("127.0.0.1:" + std::to_string(free_port) + "/x"));
  EXPECT_THAT(answer.error().message, HasSubstr("refused"));
}

TEST(HttpClient, an_idle_connection_that_the_server_closed_is_replaced) {
  ScriptedSocket server({"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\na",
                         "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nb"});
  HttpClient client(local(server.port()));
  EXPECT_EQ(client.ask({})->body, "a");
  EXPECT_EQ(client.ask({})->body, "b");
}

TEST(HttpClient, answers_without_length_and_interim_answers_are_read) {
  ScriptedSocket server({"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n\r\nto the end"});
  HttpClient client(local(server.port()));
  const auto answer = client.ask({});
  ASSERT_TRUE(answer) << answer.error().message;
  EXPECT_EQ(answer->body, "to the end");
}

TEST(HttpClient, what_is_cut_short_or_not_HTTP_is_an_error) {
  ScriptedSocket server(
      {"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc", "SSH-2.0-x\r\n\r\n", ""});
  const auto error_of_next = [&] {
    const auto answer = HttpClient(local(server.port())).ask({});
    return answer ? "no error" : answer.error().message;
  };
  EXPECT_THAT(error_of_next(), HasSubstr("ended before the answer did"));
  EXPECT_THAT(error_of_next(), HasSubstr("not an answer of HTTP"));
  EXPECT_THAT(error_of_next(), HasSubstr("without an answer"));
}

TEST(HttpUrl, takes_hosts_ports_and_paths) {
  const auto parsed = [](std::string_view text) {
    const auto url = parse_http_url(text);
    return url ? url->host + "|" + std::to_string(url->port) + "|" + url->path
               : url.error().message;
  };
  EXPECT_EQ(parsed("http://localhost"), "localhost|80|");
  EXPECT_EQ(parsed("http://10.0.0.1:8080/v1/"), "10.0.0.1|8080|/v1");
  EXPECT_EQ(parsed("http://[::1]:81"), "::1|81|");
  EXPECT_THAT(parsed("https://x"), HasSubstr("https is not supported"));
  for (const char* bad : {"", "x:80", "ftp://x", "http://", "http://:80", "http://x:0",
                          "http://x:", "http://x:99999", "http://x:8o", "http://[::1",
                          "http://[::1]81", "http://u@x", "http://x/?a", "http://x y"}) {
    EXPECT_FALSE(parse_http_url(bad)) << bad;
  }
}

}  // namespace
}  // namespace atl::http
