// `atoll chat`: through pipes as scripts use it, and on a terminal of the test's own.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <pty.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <fstream>
#include <future>
#include <nlohmann/json.hpp>

#include "tests/cli/scripted_api.h"
#include "tests/support/command.h"
#include "tests/support/temp_dir.h"

namespace atl::cli {
namespace {

using nlohmann::json;
using test::CommandOptions;
using test::CommandResult;
using test::ScriptedApi;
using testing::AllOf;
using testing::HasSubstr;
using testing::Not;
using testing::StartsWith;
using Exchange = ScriptedApi::Exchange;

std::string delta_event(const json& delta, const json& finish = json()) {
  return json{{"choices", {{{"index", 0}, {"delta", delta}, {"finish_reason", finish}}}}}.dump();
}

// A server that repeats what it is told, in pieces of some characters. "think" makes it reason
// first, "fail" fails, "break" fails in the middle, "hang" never ends, "evil" sends controls.
class Parrot {
 public:
  Parrot()
      : api_("/v1/chat/completions", [this](const Exchange& e, const json& b) { say(e, b); }) {}

  ScriptedApi& api() { return api_; }
  json messages(size_t request) const { return api_.bodies().at(request)["messages"]; }
  bool gone() {
    return gone_.get_future().wait_for(test::RawClient::kPatience) == std::future_status::ready;
  }

 private:
  void say(const Exchange& exchange, const json& body) {
    const std::string text = body["messages"].back()["content"];
    if (text == "fail") {
      return exchange->respond({.status = 400, .body = R"({"error":{"message":"no such luck"}})"});
    }
    exchange->begin_events();
    exchange->send_event(delta_event({{"role", "assistant"}}));
    if (text == "break") {
      exchange->send_event(delta_event({{"content", "some"}}));
      exchange->send_event(R"({"error":{"message":"lost a node"}})");
      return exchange->end();
    }
    if (text == "hang") {
      exchange->on_gone([this] { gone_.set_value(); });
      exchange->send_event(delta_event({{"content", "partial"}}));
      hanging_ = exchange;
      return;
    }
    if (text == "think") exchange->send_event(delta_event({{"reasoning_content", "hmm"}}));
    if (text == "evil")
      exchange->send_event(delta_event({{"content", "\x1b]0;owned\x07\xc2\x9b"}}));
    exchange->send_event(delta_event({{"content", "you said "}}));
    exchange->send_event(delta_event({{"content", text}}));
    exchange->send_event(delta_event(json::object(), "stop"));
    exchange->send_event("[DONE]");
    exchange->end();
  }

  std::promise<void> gone_;
  Exchange hanging_;
  ScriptedApi api_;
};

CommandResult chat(const std::vector<std::string>& arguments, const std::string& input) {
  std::vector<std::string> argv = {ATOLL_BINARY, "chat"};
  argv.insert(argv.end(), arguments.begin(), arguments.end());
  CommandOptions options;
  options.stdin_text = input;
  return test::run_command(argv, options);
}

TEST(ChatPipe, sends_line_by_line_with_all_that_was_said_before) {
  Parrot parrot;
  const CommandResult result =
      chat({parrot.api().url() + "/v1", "--system", "be brief", "--max-tokens", "9",
            "--temperature", "0.5", "--top-p", "0.9", "--seed", "3"},
           "hello\n\n\xc3\xa4\xe6\xbc\xa2\xf0\x9f\x98\x80 world");
  ASSERT_EQ(result.exit_code, 0) << result.err;
  EXPECT_EQ(result.out, "you said hello\nyou said \xc3\xa4\xe6\xbc\xa2\xf0\x9f\x98\x80 world\n");
  EXPECT_EQ(result.err, "");
  const auto bodies = parrot.api().bodies();
  ASSERT_EQ(bodies.size(), 2u);
  EXPECT_EQ(bodies[0]["model"], "toy");
  EXPECT_EQ(bodies[0]["stream"], true);
  EXPECT_EQ(bodies[0]["max_tokens"], 9);
  EXPECT_EQ(bodies[0]["temperature"], 0.5);
  EXPECT_EQ(bodies[0]["top_p"], 0.9);
  EXPECT_EQ(bodies[0]["seed"], 3);
  EXPECT_EQ(parrot.messages(0), json::parse(R"([{"role":"system","content":"be brief"},
                            {"role":"user","content":"hello"}])"));
  ASSERT_EQ(parrot.messages(1).size(), 4u);
  EXPECT_EQ(parrot.messages(1)[2],
            json::parse(R"({"role":"assistant","content":"you said hello"})"));
}

TEST(ChatPipe, prints_the_answer_without_reasoning_and_colours) {
  Parrot parrot;
  EXPECT_EQ(chat({parrot.api().url()}, "think\n").out, "you said think\n");
}

TEST(ChatPipe, takes_a_line_of_a_megabyte_and_bytes_that_are_not_UTF_8) {
  Parrot parrot;
  const std::string line(1 << 20, 'l');
  EXPECT_EQ(chat({parrot.api().url()}, line + "\n").out, "you said " + line + "\n");
  const CommandResult result = chat({parrot.api().url()},
                                    "a\xff"
                                    "b\n");
  EXPECT_EQ(result.out,
            "you said a\xef\xbf\xbd"
            "b\n");
}

TEST(ChatPipe, commands_change_the_conversation) {
  Parrot parrot;
  const test::TempDir dir;
  const std::string file = (dir / "saved.json").string();
  const CommandResult result =
      chat({parrot.api().url()}, "one\n/clear\n/system be kind\ntwo\n/save " + file +
                                     "\n/system\n//three\n/quit\nfour\n");
  ASSERT_EQ(result.exit_code, 0) << result.err;
  EXPECT_EQ(result.out, "you said one\nyou said two\nyou said /three\n");
  EXPECT_EQ(parrot.messages(1), json::parse(R"([{"role":"system","content":"be kind"},
                                                {"role":"user","content":"two"}])"));
  EXPECT_EQ(parrot.messages(2).front()["content"], "two");
  const json saved = json::parse(std::ifstream(file));
  EXPECT_EQ(saved["model"], "toy");
  EXPECT_EQ(saved["messages"].size(), 3u);
}

TEST(ChatPipe, errors_are_one_line_each_and_leave_the_conversation_as_it_was) {
  Parrot parrot;
  const CommandResult result = chat({parrot.api().url()}, "fail\nbreak\n/nonsense\nfine\n");
  EXPECT_EQ(result.exit_code, 1);
  EXPECT_THAT(result.out, testing::EndsWith("you said fine\n"));
  EXPECT_THAT(result.err, AllOf(HasSubstr("status 400: no such luck\n"), HasSubstr("lost a node\n"),
                                HasSubstr("/nonsense: no such")));
  EXPECT_EQ(parrot.messages(2).size(), 1u);
}

TEST(ChatPipe, sends_the_key_of_a_file) {
  Parrot parrot;
  const test::TempDir dir;
  const std::string file = (dir / "keys").string();
  std::ofstream(file) << "# keys\n\nalice sesame  # hers\n";
  EXPECT_EQ(chat({parrot.api().url(), "--api-key-file", file}, "x\n").exit_code, 0);
  EXPECT_EQ(parrot.api().authorization(), "Bearer sesame");
}

TEST(ChatPipe, what_it_can_not_talk_to_is_one_line) {
  EXPECT_THAT(chat({"https://x"}, "").err, HasSubstr("https is not supported"));
  EXPECT_THAT(chat({"/no/such/dir"}, "").err, HasSubstr("neither a URL"));
  for (const char* name : {"org/name", "https://huggingface.co/org/name"}) {
    EXPECT_THAT(chat({name}, "").err,
                HasSubstr("huggingface-cli download org/name --local-dir name"));
  }
  EXPECT_THAT(chat({"http://127.0.0.1:1"}, "").err, HasSubstr("refused"));
  EXPECT_EQ(chat({"http://127.0.0.1:1"}, "").exit_code, 1);
}

TEST(ChatModel, starts_a_server_for_a_directory_and_ends_it) {
  const std::string model = std::string(ATOLL_SOURCE_DIR) + "/tests/models/tiny-fp8";
  const CommandResult result =
      chat({model, "--max-tokens", "4", "--seed", "1", "--", "--threads", "1"}, "hello\n");
  ASSERT_EQ(result.exit_code, 0) << result.err;
  EXPECT_NE(result.out, "\n");
  const CommandResult wrong = chat({model, "--", "--no-such-option"}, "hello\n");
  EXPECT_EQ(wrong.exit_code, 1);
  EXPECT_THAT(wrong.err, HasSubstr("did not start"));
}

// A program on a terminal.
class Terminal {
 public:
  explicit Terminal(std::vector<std::string> argv) {
    std::vector<char*> pointers;
    for (std::string& argument : argv) pointers.push_back(argument.data());
    pointers.push_back(nullptr);
    winsize size{24, 100, 0, 0};
    pid_ = forkpty(&fd_, nullptr, nullptr, &size);
    if (pid_ == 0) {
      setenv("TERM", "xterm", 1);
      setenv("LC_ALL", "C.UTF-8", 1);
      unsetenv("NO_COLOR");
      execv(pointers[0], pointers.data());
      _exit(127);
    }
  }
  ~Terminal() {
    if (pid_ > 0) kill(pid_, SIGKILL);
    if (pid_ > 0) waitpid(pid_, nullptr, 0);
    close(fd_);
  }

  void type(std::string_view keys) {
    ASSERT_EQ(write(fd_, keys.data(), keys.size()), ssize_t(keys.size()));
  }
  // What is shown up to this text, since the last call; empty if it doesn't come.
  std::string shown_until(std::string_view text) {
    while (shown_.find(text) == std::string::npos) {
      if (!read_more()) return "";
    }
    const size_t end = shown_.find(text) + text.size();
    const std::string before = shown_.substr(0, end);
    shown_.erase(0, end);
    return before;
  }
  int exit_code() {
    while (read_more()) {
    }
    int status = 0;
    waitpid(pid_, &status, 0);
    pid_ = -1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  }
  const std::string& rest() const { return shown_; }

 private:
  bool read_more() {
    pollfd p{fd_, POLLIN, 0};
    if (poll(&p, 1, static_cast<int>(test::RawClient::kPatience.count())) != 1) return false;
    char bytes[4096];
    const ssize_t got = read(fd_, bytes, sizeof(bytes));
    if (got <= 0) return false;
    shown_.append(bytes, static_cast<size_t>(got));
    return true;
  }

  int fd_ = -1;
  pid_t pid_ = -1;
  std::string shown_;
};

TEST(ChatTerminal, shows_reasoning_dimmed_and_folds_it) {
  Parrot parrot;
  Terminal terminal({ATOLL_BINARY, "chat", parrot.api().url()});
  terminal.shown_until("> ");
  terminal.type("think\r");
  const std::string shown = terminal.shown_until("you said think\r\n");
  EXPECT_THAT(shown, HasSubstr("\x1b[2mhmm\r\x1b[J\x1b[0m\x1b[2m(thought for "));
  EXPECT_THAT(shown, HasSubstr(" s, 3 characters; /reasoning shows them)\x1b[0m\r\nyou said "));
  terminal.shown_until("> ");
  terminal.type("/reasoning\r");
  EXPECT_NE(terminal.shown_until("\x1b[2mhmm\x1b[0m\r\n"), "");
  terminal.shown_until("> ");
  terminal.type("no thought\r");
  terminal.shown_until("you said no thought\r\n");
  terminal.shown_until("> ");
  terminal.type("/reasoning\r");
  EXPECT_NE(terminal.shown_until("(the last reply had none)"), "");
}

TEST(ChatTerminal, keeps_reasoning_if_asked_to_and_leaves_by_quit) {
  Parrot parrot;
  Terminal terminal({ATOLL_BINARY, "chat", parrot.api().url(), "--show-reasoning"});
  EXPECT_THAT(terminal.shown_until("> "), HasSubstr("Talking to toy"));
  terminal.type("think\r");
  const std::string shown = terminal.shown_until("you said think\r\n");
  EXPECT_THAT(shown, HasSubstr("\x1b[2mhmm\x1b[0m\r\nyou said "));
  terminal.shown_until("> ");
  terminal.type("/quit\r");
  EXPECT_EQ(terminal.exit_code(), 0);
}

TEST(ChatTerminal, edits_a_line_with_characters_of_several_bytes) {
  if (!ATOLL_HAS_LINE_EDITOR) GTEST_SKIP() << "built without libedit";
  Parrot parrot;
  Terminal terminal({ATOLL_BINARY, "chat", parrot.api().url()});
  terminal.shown_until("> ");
  // Two such characters, one rubbed out, then the cursor to the left and one more.
  terminal.type(
      "\xc3\xa4\xe6\xbc\xa2\x7f"
      "z\x1b[D"
      "b\r");
  terminal.shown_until(
      "you said \xc3\xa4"
      "bz\r\n");
  terminal.shown_until("> ");
  terminal.type("\x1b[A\r");  // the line before
  EXPECT_NE(terminal.shown_until("you said \xc3\xa4"
                                 "bz\r\n"),
            "");
  terminal.shown_until("> ");
  terminal.type("\x04");  // Ctrl-D
  EXPECT_EQ(terminal.exit_code(), 0);
}

TEST(ChatTerminal, Ctrl_C_stops_the_reply_and_not_the_program) {
  if (!ATOLL_HAS_LINE_EDITOR) GTEST_SKIP() << "built without libedit";
  Parrot parrot;
  Terminal terminal({ATOLL_BINARY, "chat", parrot.api().url()});
  terminal.shown_until("> ");
  terminal.type("hang\r");
  ASSERT_NE(terminal.shown_until("partial"), "");
  terminal.type("\x03");
  EXPECT_NE(terminal.shown_until("(stopped)"), "");
  EXPECT_TRUE(parrot.gone());
  terminal.shown_until("> ");
  terminal.type("on we go\r");
  EXPECT_NE(terminal.shown_until("you said on we go"), "");
  EXPECT_EQ(parrot.messages(1)[1]["content"], "partial");
  terminal.shown_until("> ");
  terminal.type("half a line\x03");  // thrown away
  terminal.shown_until("> ");
  terminal.type("\x03");
  EXPECT_NE(terminal.shown_until("once more"), "");
  terminal.shown_until("> ");
  terminal.type("\x03");
  EXPECT_EQ(terminal.exit_code(), 0);
  EXPECT_EQ(parrot.api().bodies().size(), 2u);
}

TEST(ChatTerminal, what_is_typed_during_a_reply_stands_in_the_next_prompt) {
  if (!ATOLL_HAS_LINE_EDITOR) GTEST_SKIP() << "built without libedit";
  Parrot parrot;
  Terminal terminal({ATOLL_BINARY, "chat", parrot.api().url()});
  terminal.shown_until("> ");
  terminal.type("hang\r");
  ASSERT_NE(terminal.shown_until("partial"), "");
  terminal.type("typed \xc3\xa4x\x7f ahead");
  terminal.type("\x03");
  const std::string shown = terminal.shown_until("> ");
  EXPECT_THAT(shown, HasSubstr("(stopped)"));
  EXPECT_THAT(shown, Not(HasSubstr("ahead"))) << "in the middle of the reply";
  EXPECT_NE(terminal.shown_until(" ahead"), "");
  terminal.type("\r");
  EXPECT_NE(terminal.shown_until("you said typed \xc3\xa4 ahead\r\n"), "");
}

TEST(ChatTerminal, lines_that_end_with_a_backslash_go_on) {
  Parrot parrot;
  Terminal terminal({ATOLL_BINARY, "chat", parrot.api().url()});
  terminal.shown_until("> ");
  terminal.type("one\\\r");
  terminal.shown_until("| ");
  terminal.type("two\r");
  EXPECT_NE(terminal.shown_until("you said one\r\ntwo\r\n"), "");
}

TEST(ChatTerminal, controls_in_a_reply_do_not_reach_the_terminal) {
  Parrot parrot;
  Terminal terminal({ATOLL_BINARY, "chat", parrot.api().url()});
  terminal.shown_until("> ");
  terminal.type("evil\r");
  const std::string shown = terminal.shown_until("you said evil");
  EXPECT_THAT(shown, HasSubstr("]0;ownedyou said evil"));
  EXPECT_THAT(shown, Not(HasSubstr("\x07")));
  EXPECT_THAT(shown, Not(HasSubstr("\xc2\x9b")));
}

}  // namespace
}  // namespace atl::cli
