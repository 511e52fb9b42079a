#include "text/stop_strings.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <string>
#include <vector>

namespace atl::text {
namespace {

// What comes of the text when it is cut before each of these places.
std::string passed(const std::vector<std::string>& stops, const std::string& text,
                   const std::vector<size_t>& cuts, bool* found) {
  StopStrings filter(stops);
  std::string out;
  size_t begin = 0;
  for (const size_t cut : cuts) {
    out += filter.push(text.substr(begin, cut - begin));
    begin = cut;
  }
  out += filter.push(text.substr(begin));
  out += filter.flush();
  *found = filter.found();
  return out;
}

std::string passed(const std::vector<std::string>& stops, const std::string& text) {
  bool found = false;
  return passed(stops, text, {}, &found);
}

TEST(StopStrings, passes_everything_without_any) {
  StopStrings filter({});
  EXPECT_EQ(filter.push("abc"), "abc");
  EXPECT_EQ(filter.flush(), "");
  EXPECT_FALSE(filter.found());
}

TEST(StopStrings, cuts_at_the_one_that_ends_first) {
  EXPECT_EQ(passed({"world"}, "hello world and more"), "hello ");
  EXPECT_EQ(passed({"more", "and"}, "hello and more"), "hello ");
  EXPECT_EQ(passed({"abcd", "c"}, "abcd"), "ab");
  EXPECT_EQ(passed({"c", "abc"}, "abc"), "");
  EXPECT_EQ(passed({"aab"}, "aaab"), "a");
}

TEST(StopStrings, holds_back_no_more_than_what_may_be_one) {
  StopStrings filter({"END"});
  EXPECT_EQ(filter.push("one E"), "one ");
  EXPECT_EQ(filter.push("N"), "");
  EXPECT_EQ(filter.push("E"), "EN");
  EXPECT_EQ(filter.push("x"), "Ex");
  EXPECT_EQ(filter.push("EN"), "");
  EXPECT_EQ(filter.flush(), "EN");
}

TEST(StopStrings, says_nothing_after_one) {
  StopStrings filter({"END"});
  EXPECT_EQ(filter.push("a END b"), "a ");
  EXPECT_TRUE(filter.found());
  EXPECT_EQ(filter.push("c"), "");
  EXPECT_EQ(filter.flush(), "");
}

TEST(StopStrings, does_not_care_where_text_is_cut) {
  std::mt19937 random(7);
  int num_found = 0;
  for (int round = 0; round < 5000; ++round) {
    const auto word = [&](size_t length) {
      std::string text;
      for (size_t i = 0; i < length; ++i) text += static_cast<char>('a' + random() % 2);
      return text;
    };
    std::vector<std::string> stops;
    for (uint32_t i = 1 + random() % 3; i > 0; --i) stops.push_back(word(1 + random() % 5));
    const std::string text = word(random() % 12);
    std::vector<size_t> cuts;
    for (uint32_t i = random() % 6; i > 0; --i) cuts.push_back(random() % (text.size() + 1));
    std::sort(cuts.begin(), cuts.end());
    bool found_whole = false, found_cut = false;
    const std::string whole = passed(stops, text, {}, &found_whole);
    EXPECT_EQ(passed(stops, text, cuts, &found_cut), whole) << text;
    EXPECT_EQ(found_cut, found_whole);
    num_found += found_whole;
    for (const std::string& stop : stops) EXPECT_EQ(whole.find(stop), std::string::npos);
    EXPECT_TRUE(found_whole || whole == text);
  }
  EXPECT_GT(num_found, 1000);
}

}  // namespace
}  // namespace atl::text
