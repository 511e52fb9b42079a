// What a render holds at once, counted where memory is taken.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <malloc.h>

#include <algorithm>
#include <cstdlib>
#include <new>
#include <string>

#include "text/chat_template.h"

namespace {

size_t held = 0, held_max = 0;

}  // namespace

void* operator new(size_t bytes) {
  void* const memory = std::malloc(bytes);
  if (memory == nullptr) throw std::bad_alloc();
  held += malloc_usable_size(memory);
  held_max = std::max(held_max, held);
  return memory;
}
void operator delete(void* memory) noexcept {
  if (memory != nullptr) held -= malloc_usable_size(memory);
  std::free(memory);
}
void operator delete(void* memory, size_t) noexcept { operator delete(memory); }

namespace atl::text {
namespace {

using testing::HasSubstr;

constexpr size_t kMemoryMax = size_t{8} << 20;

struct Rendered {
  std::string text, error;
  size_t peak = 0;  // bytes beyond what was held before
};

Rendered render(const std::string& source, const std::string& variables = "{}") {
  const ChatTemplate parsed(source, "test", {.memory_bytes_max = kMemoryMax});
  const size_t before = held_max = held;
  const auto result = parsed.render(variables);
  const size_t peak = held_max - before;
  return {
      .text = result ? *result : "", .error = result ? "" : result.error().message, .peak = peak};
}

// Each has taken many times the limit, as only what was made in all had one.
TEST(ChatTemplateMemory, templates_that_multiply_end_before_they_take_more_than_they_may) {
  const std::string half_mebibyte = "{% set x = 'ab, ' * 131072 %}";
  for (const std::string& source : {
           std::string("{% set x = [1, 2] * 100000000 %}"),
           std::string("{% set x = [1] * 9223372036854775807 %}"),
           std::string("{% set s = namespace(v=[1]) %}{% for i in range(30) %}"
                       "{% set s.v = s.v + s.v %}{% endfor %}"),
           std::string("{{ 'x' * 1000000000 }}"),
           half_mebibyte + "{% set y = (x * 8).split(',') %}",
           half_mebibyte + "{% set y = (x * 8).replace('a', 'aaaaaaaaaaaaaaaa') %}",
           half_mebibyte + "{% set y = [x] * 64 %}{{ y | join }}",
           half_mebibyte + "{% set s = namespace(v=x) %}{% for i in range(30) %}"
                           "{% set s.v = s.v ~ s.v %}{% endfor %}",
           half_mebibyte + "{% set s = namespace(v=x) %}{% for i in range(30) %}"
                           "{% set s.v = s.v + s.v %}{% endfor %}",
           half_mebibyte + "{{ x | list | length }}",
           half_mebibyte + "{{ (x * 6) | upper }}",
           half_mebibyte + "{{ x | map('upper') | list }}",
           half_mebibyte + "{% set y = x.split(',') | map('length') | list | sort | list %}{{ y }}",
           half_mebibyte + "{{ x[::-1] }}",
           half_mebibyte + "{{ (x * 4) | escape | tojson }}",
           half_mebibyte + "{{ x | batch(1) | list | tojson }}",
           std::string("{% for i in range(9999999) %}{% macro m() %}{% endmacro %}{% endfor %}"),
           std::string("{% set s = namespace(v='') %}{% for i in range(9999999) %}"
                       "{% set s.v = [s.v, i] %}{% endfor %}"),
       }) {
    const Rendered out = render(source);
    EXPECT_NE(out.error, "") << source;
    EXPECT_LT(out.peak, kMemoryMax + kMemoryMax / 2) << source;
  }
  EXPECT_THAT(render("{{ [1, 2] * 100000000 }}").error, HasSubstr("takes too much memory"));
}

TEST(ChatTemplateMemory, what_is_gone_does_not_count) {
  const Rendered texts = render(
      "{% set y = 'ab' * 1000 %}{% for i in range(500) %}{% set x = y * 250 %}"
      "{{ x | length }}{% endfor %}");
  EXPECT_EQ(texts.error, "");
  EXPECT_EQ(texts.text.size(), 3000u);
  const Rendered lists = render(
      "{% set s = namespace(n=0) %}{% for i in range(300) %}"
      "{% set s.n = s.n + ('a b ' * 2000).split() | map('upper') | list | length %}{% endfor %}"
      "{{ s.n }}");
  EXPECT_EQ(lists.text, "1200000") << lists.error;
}

TEST(ChatTemplateMemory, messages_of_a_mebibyte_are_rendered) {
  const std::string long_text(1 << 20, 'x');
  const Rendered out = render(
      "{% for m in messages %}{{ '<' ~ m.role ~ '>' ~ m.content | trim ~ '\n' }}{% endfor %}",
      R"({"messages": [{"role": "user", "content": ")" + long_text + R"("}]})");
  EXPECT_EQ(out.error, "");
  EXPECT_EQ(out.text.size(), long_text.size() + 7);
}

}  // namespace
}  // namespace atl::text
