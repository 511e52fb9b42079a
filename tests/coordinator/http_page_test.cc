// The page at `/` in headless Chromium, against made-up statistics.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>
#include <nlohmann/json.hpp>
#include <string>

#include "coordinator/api/page.h"
#include "http/http_server.h"
#include "tests/http/raw_http.h"
#include "tests/support/command.h"
#include "tests/support/temp_dir.h"

namespace atl::coordinator {
namespace {

using nlohmann::json;
using test::RunningServer;
using testing::HasSubstr;
using testing::Not;

std::string chromium() {
  for (const char* path :
       {"/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"}) {
    if (access(path, X_OK) == 0) return path;
  }
  return "";
}

json made_up_stats(int polls) {
  json rows = json::array();
  for (int expert = 0; expert < 256; ++expert) rows.push_back(expert == 17 ? 5000 : 100);
  json experts = json::array();
  for (int layer = 3; layer < 61; ++layer) experts.push_back({{"layer", layer}, {"rows", rows}});
  experts[10]["rows"][40] = 9000;
  const std::string evil = "<img src=x onerror=\"document.title='owned'\">";
  return {{"model",
           {{"name", "toy-model"},
            {"layers", 61},
            {"experts", 256},
            {"experts_per_token", 8},
            {"context_tokens", 131072}}},
          {"server",
           {{"version", "9.8.7"},
            {"uptime_seconds", 3725},
            {"state", "draining"},
            {"connections", 12}}},
          {"requests",
           {{"running", 3},
            {"waiting", 21},
            {"finished", 1234567},
            {"failed", 4},
            {"cancelled", 5},
            {"preempted", 6},
            {"list",
             {{{"id", "req-abc"},
               {"client", evil},
               {"state", "running"},
               {"prompt_tokens", 4321},
               {"cached_tokens", 64},
               {"generated_tokens", 77},
               {"age_seconds", 2.5}}}}}},
          {"tokens", {{"prompt", 2000}, {"cached", 500}, {"generated", 100 * polls}}},
          {"cache", {{"blocks", 200}, {"used", 50}, {"kept", 100}}},
          {"nodes",
           {{{"name", "n0"},
             {"alive", true},
             {"tiles", 4},
             {"threads", 32},
             {"rows", 70000},
             {"dispatches", 900},
             {"bytes_out", 1 << 30},
             {"bytes_in", 3 << 20},
             {"hits", 75},
             {"misses", 25},
             {"bytes_read", 5 << 20},
             {"resident_bytes", 7 << 20}},
            {{"name", "n1"}, {"alive", false}, {"lost_because", "no heartbeat"}}}},
          {"experts", experts}};
}

class PageTest : public testing::Test {
 protected:
  void SetUp() override {
    if (chromium().empty()) GTEST_SKIP() << "no Chromium is installed";
    server_.server().route("GET", "/", [](const auto& exchange) {
      exchange->respond(
          {.content_type = "text/html; charset=utf-8", .body = std::string(status_page())});
    });
    server_.server().route("GET", "/stats", [this](const auto& exchange) {
      ++polls_;
      exchange->respond({.status = status_, .body = stats_});
      if (status_ == 200) stats_ = made_up_stats(polls_ + 1).dump();
    });
  }
  // The page's elements after some seconds of its own time.
  std::string dom() {
    server_.start();
    const test::TempDir profile;
    test::CommandOptions options;
    options.environment = {"HOME=" + (profile / "").string()};
    const auto result =
        test::run_command({chromium(), "--headless=new", "--no-sandbox", "--disable-gpu",
                           "--user-data-dir=" + (profile / "data").string(),
                           "--virtual-time-budget=5000", "--window-size=1200,900", "--dump-dom",
                           "http://127.0.0.1:" + std::to_string(server_.port()) + "/"},
                          options);
    EXPECT_EQ(result.exit_code, 0) << result.err;
    return result.out;
  }

  std::atomic<int> polls_ = 0;
  int status_ = 200;
  std::string stats_ = made_up_stats(1).dump();
  RunningServer server_;
};

TEST_F(PageTest, shows_what_the_server_tells) {
  const std::string page = dom();
  EXPECT_GE(polls_, 3);  // it asks again and again
  for (const char* text : {"<h1 id=\"name\">toy-model</h1>",
                           "class=\"state draining\">draining<",
                           "61 layers, 8 of 256 experts per token, context 131,072 tokens",
                           "Atoll 9.8.7, up 1 h 2 min, 12 connections",
                           "id=\"running\">3<",
                           "id=\"waiting\">21<",
                           "1,234,567 finished, 4 failed, 5 cancelled, 6 preempted",
                           "id=\"cache\">25.0 %<",
                           "50 of 200 blocks used, 100 kept",
                           "id=\"cached\">25.0 %<",
                           ">req-abc<",
                           ">4,321<",
                           ">2.5 s<",
                           ">n0<",
                           ">alive<",
                           ">lost: no heartbeat<",
                           ">70,000<",
                           ">1.0 GiB<",
                           ">3.0 MiB<",
                           ">75.0 %<",
                           "data-layers=\"58\"",
                           "data-experts=\"256\"",
                           "Busiest: layer 13, expert 40 with 9,000 rows"}) {
    EXPECT_THAT(page, HasSubstr(text));
  }
  EXPECT_THAT(page, Not(HasSubstr("id=\"rate\">–<")));  // a rate from the second answer on
}

TEST_F(PageTest, shows_names_of_strangers_as_text) {
  const std::string page = dom();
  EXPECT_THAT(page, HasSubstr("&lt;img src=x onerror="));
  EXPECT_THAT(page, Not(HasSubstr("<img")));
  EXPECT_THAT(page, HasSubstr("<title>toy-model · Atoll</title>"));
}

TEST_F(PageTest, asks_for_a_key_where_the_server_wants_one) {
  status_ = 401;
  stats_ = "{}";
  const std::string page = dom();
  EXPECT_THAT(page, HasSubstr("<form id=\"key-form\" class=\"asked\">"));
  EXPECT_THAT(page, HasSubstr("The server asks for an API key."));
}

TEST_F(PageTest, says_so_when_the_server_has_trouble) {
  stats_ = "{";
  status_ = 500;
  EXPECT_THAT(dom(), HasSubstr("The server answered with status 500."));
}

TEST_F(PageTest, survives_statistics_without_anything_in_them) {
  stats_ = "{}";
  status_ = 203;  // ok, and the made-up ones don't follow
  const std::string page = dom();
  EXPECT_THAT(page, HasSubstr("None at the moment."));
  EXPECT_THAT(page, HasSubstr("No expert was asked for."));
  EXPECT_THAT(page, Not(HasSubstr("NaN")));
  EXPECT_THAT(page, Not(HasSubstr("undefined<")));
}

TEST(Page, needs_nothing_from_outside) {
  const std::string page(status_page());
  EXPECT_THAT(page, testing::StartsWith("<!doctype html>"));
  EXPECT_THAT(page, testing::EndsWith("</html>\n"));
  for (const char* text : {"http://", "https://", " src=", "@import", "innerHTML", "eval("}) {
    EXPECT_THAT(page, Not(HasSubstr(text)));
  }
}

}  // namespace
}  // namespace atl::coordinator
