#include "text/pre_tokenizer.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <fmt/core.h>
#include <pcre2.h>

#include <algorithm>

#include "text/regex_translation.h"
#include "text/utf8.h"

namespace atl::text {
namespace {

// The published patterns have less than 1 KiB (DeepSeek-V2's largest, about 10 KiB, lists letters).
constexpr size_t kPatternBytesMax = 64 * 1024;
// Backtracking steps of one match: enough for any linear pattern on its text, and an end to others.
constexpr uint64_t kMatchStepsMin = 10'000'000;
constexpr uint64_t kMatchStepsPerByte = 64;
constexpr size_t kJitStackBytesStart = 32 * 1024;
constexpr size_t kJitStackBytesMax = 16 * 1024 * 1024;
constexpr size_t kMatchesBetweenLooks = 4096;  // at a request to stop
constexpr int kStopped = -10'000;              // none of PCRE2's errors
constexpr uint32_t kHeapKiBMax = 64 * 1024;    // of the interpreter, where there is no JIT

template <auto Free>
struct Freed {
  template <typename T>
  void operator()(T* p) const {
    Free(p);
  }
};
using Code = std::unique_ptr<pcre2_code, Freed<pcre2_code_free>>;
using CompileContext = std::unique_ptr<pcre2_compile_context, Freed<pcre2_compile_context_free>>;
using MatchContext = std::unique_ptr<pcre2_match_context, Freed<pcre2_match_context_free>>;
using MatchData = std::unique_ptr<pcre2_match_data, Freed<pcre2_match_data_free>>;
using JitStack = std::unique_ptr<pcre2_jit_stack, Freed<pcre2_jit_stack_free>>;

std::string pcre2_message(int code) {
  PCRE2_UCHAR buffer[256];
  if (pcre2_get_error_message(code, buffer, sizeof buffer) < 0) return std::to_string(code);
  return reinterpret_cast<const char*>(buffer);
}

PcreProperties properties_of_this_pcre2() {
  char version[32] = {};
  if (pcre2_config(PCRE2_CONFIG_UNICODE_VERSION, version) <= 0) return PcreProperties::kUnknown;
  const std::string_view text(version);
  if (text == "14.0.0") return PcreProperties::kUnicode14;
  if (text == "16.0.0") return PcreProperties::kUnicode16;
  return PcreProperties::kUnknown;
}

Code compile(const SplitPattern& split) {
  if (split.text.empty()) throw LoadError("the pattern is empty");
  if (split.text.size() > kPatternBytesMax) {
    throw LoadError(
        fmt::format("the pattern has {} bytes, more than {}", split.text.size(), kPatternBytesMax));
  }
  const bool literal = split.kind == SplitPattern::Kind::kLiteral;
  const std::string pattern =
      literal ? split.text : translate_pattern(split.text, properties_of_this_pcre2());
  const CompileContext context(pcre2_compile_context_create(nullptr));
  pcre2_set_newline(context.get(), PCRE2_NEWLINE_LF);
  // Ruby's ^ and $ match at every line.
  const uint32_t options = literal ? PCRE2_UTF | PCRE2_LITERAL : PCRE2_UTF | PCRE2_MULTILINE;
  int error = 0;
  PCRE2_SIZE offset = 0;
  Code code(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(), options,
                          &error, &offset, context.get()));
  if (!code) throw LoadError(pcre2_message(error));
  // Without JIT (not built in, or no executable memory) pcre2_match interprets: slower, the same.
  pcre2_jit_compile(code.get(), PCRE2_JIT_COMPLETE);
  return code;
}

// What matching needs besides the pattern; one per call of split().
struct Matcher {
  MatchData data{pcre2_match_data_create(1, nullptr)};
  MatchContext context{pcre2_match_context_create(nullptr)};
  JitStack stack{pcre2_jit_stack_create(kJitStackBytesStart, kJitStackBytesMax, nullptr)};
  std::stop_token stop;
  size_t num_matches = 0;  // looked for

  explicit Matcher(size_t text_bytes) {
    CHECK(data && context);
    const uint64_t steps = kMatchStepsMin + kMatchStepsPerByte * text_bytes;
    pcre2_set_match_limit(context.get(),
                          static_cast<uint32_t>(std::min<uint64_t>(steps, UINT32_MAX)));
    pcre2_set_heap_limit(context.get(), kHeapKiBMax);
    if (stack) pcre2_jit_stack_assign(context.get(), nullptr, stack.get());
  }

  // 1 or 0: [begin, end) of the first match from `from` on, or none; below 0: PCRE2's error.
  int find(const pcre2_code* code, std::string_view text, size_t from, size_t* begin, size_t* end) {
    const int rc = pcre2_match(code, reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), from,
                               PCRE2_NO_UTF_CHECK, data.get(), context.get());
    if (rc == PCRE2_ERROR_NOMATCH) return 0;
    if (rc < 0) return rc;
    const PCRE2_SIZE* offsets = pcre2_get_ovector_pointer(data.get());
    *begin = offsets[0];
    *end = offsets[1];
    return 1;
  }
};

// Appends the pieces of one piece. 0, kStopped, or PCRE2's error.
int split_piece(const pcre2_code* code, std::string_view piece, Matcher& matcher,
                std::vector<std::string_view>& out) {
  const auto append = [&](size_t begin, size_t end) {
    if (end > begin) out.push_back(piece.substr(begin, end - begin));
  };
  size_t done = 0;  // everything before is in `out`
  size_t from = 0;
  while (from < piece.size()) {
    if (++matcher.num_matches % kMatchesBetweenLooks == 0 && matcher.stop.stop_requested()) {
      return kStopped;
    }
    size_t begin = 0;
    size_t end = 0;
    const int found = matcher.find(code, piece, from, &begin, &end);
    if (found < 0) return found;
    if (found == 0) break;
    if (end <= begin) {
      // An empty match cuts here; the search goes on behind the next character.
      append(done, begin);
      done = begin;
      if (begin == piece.size()) break;
      from = begin + next_utf8_unit(piece.substr(begin)).num_bytes;
      continue;
    }
    append(done, begin);
    append(begin, end);
    done = from = end;
  }
  append(done, piece.size());
  return 0;
}

}  // namespace

struct PreTokenizer::Impl {
  std::vector<Code> splits;
};

PreTokenizer::PreTokenizer(const std::vector<SplitPattern>& splits) {
  auto impl = std::make_unique<Impl>();
  for (size_t i = 0; i < splits.size(); ++i) {
    try {
      impl->splits.push_back(compile(splits[i]));
    } catch (const LoadError& error) {
      throw LoadError(fmt::format("split {}: {}", i, error.what()));
    }
  }
  impl_ = std::move(impl);
}

PreTokenizer::~PreTokenizer() = default;
PreTokenizer::PreTokenizer(PreTokenizer&&) noexcept = default;
PreTokenizer& PreTokenizer::operator=(PreTokenizer&&) noexcept = default;

Result<std::vector<std::string_view>> PreTokenizer::split(std::string_view text,
                                                          std::stop_token stop) const {
  std::vector<std::string_view> pieces;
  if (text.empty()) return pieces;
  pieces.push_back(text);
  Matcher matcher(text.size());
  matcher.stop = std::move(stop);
  std::vector<std::string_view> next;
  for (size_t i = 0; i < impl_->splits.size(); ++i) {
    next.clear();
    for (std::string_view piece : pieces) {
      const int rc = split_piece(impl_->splits[i].get(), piece, matcher, next);
      if (rc == kStopped) return Error{ErrorCode::kUnavailable, "tokenizing was stopped"};
      if (rc < 0) {
        return Error{
            ErrorCode::kInvalid,
            fmt::format("pre-tokenizer split {} gave up on the {} bytes from byte {} on: {}", i,
                        piece.size(), piece.data() - text.data(), pcre2_message(rc))};
      }
    }
    pieces.swap(next);
  }
  return pieces;
}

}  // namespace atl::text
