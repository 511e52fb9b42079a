#include "http/event_splitter.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace atl::http {
namespace {

using testing::ElementsAre;

class Events {
 public:
  explicit Events(size_t event_bytes_max = 1000) : splitter_(event_bytes_max) {}
  bool feed(std::string_view bytes) {
    return splitter_.feed(bytes, [this](std::string_view data) { all.emplace_back(data); });
  }
  std::vector<std::string> all;

 private:
  EventSplitter splitter_;
};

const std::string kStream =
    ": comment\n\ndata: one\n\nevent: x\ndata:two\nid: 7\n\ndata: a\r\ndata:  b\r\n\r\n"
    "data\n\ndata: \xc3\xa4\r\rdata: not ended\n";

TEST(EventSplitter, gives_the_same_events_for_every_split) {
  for (size_t split = 0; split <= kStream.size(); ++split) {
    Events events;
    ASSERT_TRUE(events.feed(std::string_view(kStream).substr(0, split)));
    ASSERT_TRUE(events.feed(std::string_view(kStream).substr(split)));
    EXPECT_THAT(events.all, ElementsAre("one", "two", "a\n b", "", "\xc3\xa4")) << split;
  }
}

TEST(EventSplitter, gives_the_same_events_byte_by_byte) {
  Events events;
  for (const char byte : kStream) ASSERT_TRUE(events.feed({&byte, 1}));
  EXPECT_THAT(events.all, ElementsAre("one", "two", "a\n b", "", "\xc3\xa4"));
}

TEST(EventSplitter, refuses_an_event_that_is_too_long_however_it_comes) {
  EXPECT_TRUE(Events(100).feed("data: " + std::string(90, 'x') + "\n\n"));
  EXPECT_FALSE(Events(100).feed("data: " + std::string(100, 'x')));
  Events lines(100);
  bool fed = true;
  for (int i = 0; i < 100 && fed; ++i) fed = lines.feed("data: abc\n");
  EXPECT_FALSE(fed);
}

}  // namespace
}  // namespace atl::http
