#include "storage/io/extent_queue.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <condition_variable>
#include <cstddef>
#include <cstring>
#include <functional>
#include <map>
#include <mutex>
#include <random>

#include "base/memory.h"
#include "storage/io/extent_pieces.h"
#include "tests/support/temp_dir.h"

namespace atl::storage {
namespace {

namespace fs = std::filesystem;
using test::TempDir;
using test::write_file;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StartsWith;

constexpr size_t kPage = kExtentAlign;
constexpr size_t kFilePages = 1500;

std::string noise(size_t bytes, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::string out(bytes, '\0');
  for (size_t i = 0; i + 8 <= bytes; i += 8) {
    const uint64_t word = random();
    std::memcpy(&out[i], &word, 8);
  }
  return out;
}

// Two files of noise.
struct Files {
  explicit Files(const fs::path& where) {
    for (const uint64_t seed : {1, 2}) {
      contents.push_back(noise(kFilePages * kPage, seed));
      paths.push_back(where / fmt::format("file{}", seed));
      write_file(paths.back(), contents.back());
    }
  }
  std::string_view at(size_t file, uint64_t offset, size_t bytes) const {
    return std::string_view(contents[file]).substr(offset, bytes);
  }
  std::vector<std::string> contents;
  std::vector<fs::path> paths;
};

std::string_view view(const ExtentPart& part) {
  return {reinterpret_cast<const char*>(part.data), part.bytes};
}

// Waits for parts and keeps what was said of them.
class Told {
 public:
  ExtentQueue::Done of(size_t request) {
    return [this, request](size_t part, const Status& status) {
      const std::lock_guard lock(mutex_);
      said_[{request, part}].push_back(status);
      ++count_;
      changed_.notify_all();
    };
  }
  void wait_for(size_t count) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return count_ >= count; });
  }
  size_t count() {
    const std::lock_guard lock(mutex_);
    return count_;
  }
  // What was said, once.
  Status status(size_t request, size_t part) {
    const std::lock_guard lock(mutex_);
    const std::vector<Status>& said = said_[{request, part}];
    if (said.size() == 1) return said[0];
    return Error{ErrorCode::kInternal, fmt::format("told {} times", said.size())};
  }
  std::string message(size_t request, size_t part) {
    const Status s = status(request, part);
    return s ? "ok" : s.error().message;
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::map<std::pair<size_t, size_t>, std::vector<Status>> said_;
  size_t count_ = 0;
};

// The same for the ring and for threads.
class ExtentQueueWays : public ::testing::TestWithParam<bool> {
 protected:
  void SetUp() override {
    reader_ = open_extent_files(files_.paths);
    if (uses_ring() && !make()->describe().starts_with("io_uring")) {
      GTEST_SKIP() << "no io_uring here, or no direct reads in the directory for temporary files";
    }
  }
  bool uses_ring() const { return GetParam(); }
  std::unique_ptr<ExtentQueue> make(ExtentQueueOptions options = {.piece_bytes = 8 * kPage,
                                                                  .in_flight_bytes = 64 * kPage}) {
    if (!uses_ring()) options.io = PackIo::kThreads;
    return make_extent_queue(*reader_, files_.paths, options);
  }

  TempDir dir_;
  Files files_{dir_.path()};
  std::unique_ptr<ExtentReader> reader_;
};

INSTANTIATE_TEST_SUITE_P(Ways, ExtentQueueWays, ::testing::Bool(),
                         [](const auto& info) { return info.param ? "ring" : "threads"; });

TEST_P(ExtentQueueWays, reads_parts_of_any_size_and_place_and_tells_each_once) {
  std::mt19937 random(3);
  const auto up_to = [&](size_t n) { return random() % n; };
  for (const size_t piece_pages : {1, 8, 300}) {
    SCOPED_TRACE(piece_pages);
    const auto queue =
        make({.piece_bytes = piece_pages * kPage, .in_flight_bytes = 3 * piece_pages * kPage});
    Told told;
    HostBuffer memory(size_t{64} << 20);
    std::memset(memory.data(), 0x5a, memory.size());
    size_t memory_page = 0;
    std::vector<std::pair<size_t, std::vector<ExtentPart>>> requests;  // and their file
    size_t num_parts = 0;
    while (memory_page + kFilePages < memory.size() / kPage) {
      std::vector<ExtentPart> parts;
      for (size_t page = up_to(100); page < kFilePages;) {
        const size_t pages = std::min(1 + up_to(up_to(4) == 0 ? 400 : 4), kFilePages - page);
        memory_page += up_to(2);  // neighbours in memory, or a page between that must stay
        parts.push_back({page * kPage, memory.data() + memory_page * kPage, pages * kPage});
        memory_page += pages;
        page += pages + (up_to(2) == 0 ? 0 : up_to(200));
        if (memory_page + kFilePages >= memory.size() / kPage) break;
      }
      if (parts.empty()) break;
      num_parts += parts.size();
      requests.emplace_back(up_to(2), std::move(parts));
    }
    for (size_t r = 0; r < requests.size(); ++r) {
      const auto urgency = r % 2 == 0 ? ReadUrgency::kNow : ReadUrgency::kAhead;
      const uint64_t ticket =
          queue->start(requests[r].first, requests[r].second, urgency, told.of(r));
      if (r % 3 == 0) queue->raise(ticket);
    }
    told.wait_for(num_parts);
    ASSERT_GT(num_parts, 100u);
    std::string expected(memory.size(), 0x5a);
    for (size_t r = 0; r < requests.size(); ++r) {
      for (size_t p = 0; p < requests[r].second.size(); ++p) {
        EXPECT_EQ(told.message(r, p), "ok");
        const ExtentPart& part = requests[r].second[p];
        const std::string_view bytes = files_.at(requests[r].first, part.offset, part.bytes);
        expected.replace(static_cast<size_t>(part.data - memory.data()), bytes.size(), bytes);
      }
    }
    const std::string_view found{memory.as<const char>(), memory.size()};
    EXPECT_EQ(found == expected, true);
  }
}

TEST_P(ExtentQueueWays, joins_more_neighbours_than_one_read_takes) {
  const auto queue = make({.piece_bytes = 16 * kMiB, .in_flight_bytes = 16 * kMiB});
  HostBuffer memory(2 * 700 * kPage);
  std::vector<ExtentPart> parts;
  for (size_t p = 0; p < 700; ++p) {
    parts.push_back({(100 + p) * kPage, memory.data() + 2 * p * kPage, kPage});
  }
  Told told;
  queue->start(1, parts, ReadUrgency::kNow, told.of(0));
  told.wait_for(parts.size());
  for (size_t p = 0; p < parts.size(); ++p) {
    ASSERT_EQ(told.message(0, p), "ok");
    ASSERT_EQ(view(parts[p]) == files_.at(1, parts[p].offset, kPage), true) << p;
  }
}

TEST_P(ExtentQueueWays, a_file_that_shrinks_fails_the_parts_behind_its_end) {
  for (const size_t more : {size_t{0}, size_t{512}, size_t{1000}}) {
    SCOPED_TRACE(more);
    fs::resize_file(files_.paths[0], 100 * kPage + more);
    const auto queue = make();
    HostBuffer memory(64 * kPage);
    Told told;
    // Apart from each other, so that each is a read.
    queue->start(0,
                 {{10 * kPage, memory.data(), 4 * kPage},
                  {98 * kPage, memory.data() + 8 * kPage, 4 * kPage},
                  {200 * kPage, memory.data() + 16 * kPage, 4 * kPage}},
                 ReadUrgency::kNow, told.of(0));
    queue->start(1, {{98 * kPage, memory.data() + 24 * kPage, 4 * kPage}}, ReadUrgency::kNow,
                 told.of(1));
    told.wait_for(4);
    EXPECT_EQ(told.message(0, 0), "ok");
    EXPECT_EQ(told.message(1, 0), "ok");
    for (const size_t part : {1, 2}) {
      const Status status = told.status(0, part);
      ASSERT_FALSE(status);
      EXPECT_EQ(status.error().code, ErrorCode::kCorrupt);
      EXPECT_THAT(status.error().message,
                  AllOf(StartsWith(files_.paths[0].string() + ": read "),
                        HasSubstr(fmt::format("of 16384 bytes at offset {}: the file shrank",
                                              (part == 1 ? 98 : 200) * kPage))));
    }
  }
}

TEST_P(ExtentQueueWays, ends_with_reads_under_way_and_writes_nothing_afterwards) {
  HostBuffer memory(kFilePages * kPage);
  std::mt19937 random(7);
  for (int round = 0; round < 30; ++round) {
    auto queue = make({.piece_bytes = 16 * kPage, .in_flight_bytes = 256 * kPage});
    Told told;
    std::vector<ExtentPart> parts;
    for (size_t page = 0; page + 10 <= kFilePages; page += 10) {
      parts.push_back({page * kPage, memory.data() + page * kPage, 10 * kPage});
    }
    for (int r = 0; r < 4; ++r) queue->start(0, parts, ReadUrgency::kAhead, told.of(0));
    told.wait_for(random() % 100);
    if (round % 2 == 0) queue->stop();  // then start() does nothing
    if (round % 2 == 0) queue->start(0, parts, ReadUrgency::kNow, told.of(1));
    queue.reset();
    const size_t count = told.count();
    ASSERT_LE(count, 4 * parts.size());
    std::memset(memory.data(), 0x5a, memory.size());
    // Reads that were still going on would come before this one.
    queue = make();
    Told later;
    HostBuffer other(kPage);
    queue->start(0, {{0, other.data(), kPage}}, ReadUrgency::kNow, later.of(0));
    later.wait_for(1);
    const std::string_view found{memory.as<const char>(), memory.size()};
    EXPECT_EQ(found.find_first_not_of('\x5a'), found.npos);
    EXPECT_EQ(told.count(), count);
  }
}

TEST_P(ExtentQueueWays, may_be_asked_for_more_from_done) {
  const auto queue = make();
  HostBuffer memory(kPage);
  Told told;
  std::function<void(size_t, const Status&)> again;
  std::atomic<uint64_t> page{0};
  again = [&](size_t part, const Status& status) {
    EXPECT_TRUE(status);
    if (++page == 200) return told.of(0)(part, status);
    queue->start(0, {{page * kPage, memory.data(), kPage}}, ReadUrgency::kNow, again);
  };
  queue->start(0, {{0, memory.data(), kPage}}, ReadUrgency::kNow, again);
  told.wait_for(1);
  EXPECT_EQ(std::memcmp(memory.data(), files_.contents[0].data() + 199 * kPage, kPage), 0);
}

// Faults of the ring, by what we take its results for.
class ExtentQueueRing : public ExtentQueueWays {};
INSTANTIATE_TEST_SUITE_P(Ways, ExtentQueueRing, ::testing::Values(true),
                         [](const auto&) { return "ring"; });

// Ten parts of five pages, one after the other in the file.
std::vector<ExtentPart> ten_parts(HostBuffer& memory) {
  std::vector<ExtentPart> parts;
  for (size_t p = 0; p < 10; ++p) {
    parts.push_back({5 * p * kPage, memory.data() + 6 * p * kPage, 5 * kPage});
  }
  return parts;
}

TEST_P(ExtentQueueRing, goes_on_after_short_interrupted_and_refused_reads) {
  std::mt19937 random(5);
  std::atomic<int> faults{0};
  const auto queue =
      make({.piece_bytes = 8 * kPage,
            .in_flight_bytes = 32 * kPage,
            .filter = [&](size_t, uint64_t, int result) {
              ++faults;
              switch (random() % 4) {
                case 0:
                  return -EINTR;
                case 1:
                  return -EAGAIN;
                case 2:
                  if (result >= static_cast<int>(2 * kPage)) {
                    // Never 0: that would be the end of the file.
                    return static_cast<int>((1 + random() % (result / kPage - 1)) * kPage);
                  }
              }
              --faults;
              return result;
            }});
  HostBuffer memory(60 * kPage);
  const std::vector<ExtentPart> parts = ten_parts(memory);
  Told told;
  for (size_t r = 0; r < 20; ++r) {
    std::memset(memory.data(), 0, memory.size());
    queue->start(0, parts, ReadUrgency::kNow, told.of(r));
    told.wait_for(10 * (r + 1));
    for (size_t p = 0; p < parts.size(); ++p) {
      ASSERT_EQ(told.message(r, p), "ok");
      ASSERT_EQ(view(parts[p]) == files_.at(0, parts[p].offset, parts[p].bytes), true) << p;
    }
  }
  EXPECT_GT(faults, 100);
}

// May the memory of these pages be pinned? Containers often allow some KiB only.
bool may_pin(size_t pages) {
  HostBuffer memory(pages * kPage);
  const bool may = ::mlock(memory.data(), memory.size()) == 0;
  ::munlock(memory.data(), memory.size());
  return may;
}

TEST_P(ExtentQueueRing, reads_to_the_pages_that_were_registered) {
  constexpr size_t kBufferPages = 16;
  if (!may_pin(4 * kBufferPages)) GTEST_SKIP() << "memory must not be pinned here (ulimit -l)";
  const auto queue = make({.piece_bytes = 8 * kPage,
                           .io = PackIo::kRegistered,
                           .registered_buffer_bytes = kBufferPages * kPage});
  EXPECT_THAT(queue->describe(), Not(HasSubstr("registered")));
  HostBuffer memory(4 * kBufferPages * kPage - kPage);  // the last buffer is shorter
  queue->use_memory(memory.span());
  EXPECT_THAT(queue->describe(), HasSubstr(", memory registered"));
  HostBuffer other(2 * kPage);
  const std::vector<ExtentPart> inside = {{0, memory.data(), 16 * kPage},
                                          {20 * kPage, memory.data() + 24 * kPage, 8 * kPage},
                                          {40 * kPage, memory.data() + 55 * kPage, 8 * kPage}};
  const std::vector<ExtentPart> across = {{80 * kPage, memory.data() + 44 * kPage, 8 * kPage}};
  const std::vector<ExtentPart> outside = {{3 * kPage, other.data(), 2 * kPage}};
  const auto is_right = [&](const ExtentPart& part) {
    return view(part) == files_.at(1, part.offset, part.bytes);
  };
  Told told;
  size_t request = 0, num_parts = 0;
  const auto read = [&](const std::vector<ExtentPart>& parts) {
    queue->start(1, parts, ReadUrgency::kNow, told.of(request));
    told.wait_for(num_parts += parts.size());
    for (size_t p = 0; p < parts.size(); ++p) EXPECT_EQ(told.message(request, p), "ok");
    ++request;
  };
  for (const auto& parts : {inside, across, outside}) {
    read(parts);
    for (const ExtentPart& part : parts) EXPECT_TRUE(is_right(part)) << part.offset;
  }
  // Other pages take the place of those that were registered: a read by address finds the new ones,
  // one to a registered buffer those that the kernel holds.
  ASSERT_EQ(::madvise(memory.data(), memory.size(), MADV_DONTNEED), 0);
  read(inside);
  for (const ExtentPart& part : inside) {
    EXPECT_TRUE(view(part) == std::string(part.bytes, '\0')) << part.offset;
  }
  read(across);
  EXPECT_TRUE(is_right(across[0]));
}

TEST_P(ExtentQueueRing, an_io_error_fails_the_parts_of_its_piece_only) {
  // Pieces of 8 pages: the third, pages 16-23, has parts 3 and 4 (pages 15-24) in it.
  const auto queue = make({.piece_bytes = 8 * kPage,
                           .in_flight_bytes = 32 * kPage,
                           .filter = [](size_t, uint64_t offset, int result) {
                             return offset == 16 * kPage ? -EIO : result;
                           }});
  HostBuffer memory(60 * kPage);
  const std::vector<ExtentPart> parts = ten_parts(memory);
  Told told;
  queue->start(1, parts, ReadUrgency::kNow, told.of(0));
  told.wait_for(10);
  for (size_t p = 0; p < 10; ++p) {
    if (p != 3 && p != 4) {
      EXPECT_EQ(told.message(0, p), "ok");
      EXPECT_EQ(view(parts[p]) == files_.at(1, parts[p].offset, parts[p].bytes), true);
      continue;
    }
    ASSERT_FALSE(told.status(0, p));
    EXPECT_EQ(told.status(0, p).error().code, ErrorCode::kUnavailable);
    EXPECT_EQ(told.message(0, p),
              fmt::format("{}: read 0 of 32768 bytes at offset 65536: Input/output error",
                          files_.paths[1].string()));
  }
}

TEST_P(ExtentQueueRing, reads_ahead_end_though_little_of_them_is_under_way) {
  const auto queue = make(
      {.piece_bytes = 8 * kPage, .in_flight_bytes = 64 * kPage, .ahead_in_flight_bytes = kPage});
  HostBuffer memory(60 * kPage);
  const std::vector<ExtentPart> parts = ten_parts(memory);
  Told told;
  queue->start(0, parts, ReadUrgency::kAhead, told.of(0));
  told.wait_for(10);
  for (size_t p = 0; p < 10; ++p) EXPECT_EQ(told.message(0, p), "ok");
}

TEST_P(ExtentQueueRing, does_not_try_for_ever) {
  std::atomic<int> tries{0};
  const auto queue = make({.filter = [&](size_t, uint64_t, int) {
    ++tries;
    return -EAGAIN;
  }});
  HostBuffer memory(kPage);
  Told told;
  queue->start(0, {{0, memory.data(), kPage}}, ReadUrgency::kNow, told.of(0));
  told.wait_for(1);
  EXPECT_EQ(told.status(0, 0).error().code, ErrorCode::kUnavailable);
  EXPECT_THAT(told.message(0, 0), HasSubstr("Resource temporarily unavailable"));
  EXPECT_EQ(tries, 17);
}

// Holds the first read until it is let go; keeps the pages in the order in which they are read.
class HeldReader final : public ExtentReader {
 public:
  uint64_t file_bytes(size_t) const override { return kFilePages * kPage; }
  Status read(size_t, uint64_t offset, std::span<std::byte>) override {
    std::unique_lock lock(mutex_);
    pages_.push_back(offset / kPage);
    changed_.notify_all();
    changed_.wait(lock, [&] { return let_go_; });
    if (offset == fail_at_ * kPage) return Error{ErrorCode::kUnavailable, "as asked for"};
    return {};
  }
  void wait_until_reading() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return !pages_.empty(); });
  }
  void let_go() {
    const std::lock_guard lock(mutex_);
    let_go_ = true;
    changed_.notify_all();
  }
  void fail_at(size_t page) { fail_at_ = page; }
  std::vector<size_t> pages() {
    const std::lock_guard lock(mutex_);
    return pages_;
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<size_t> pages_;
  size_t fail_at_ = SIZE_MAX;
  bool let_go_ = false;
};

TEST(ExtentQueue, somebody_who_waits_overtakes_at_the_next_piece) {
  HeldReader reader;
  const auto queue = make_extent_queue(reader, {"file"}, {.piece_bytes = kPage, .num_threads = 1});
  HostBuffer memory(4 * kPage);
  Told told;
  const auto start = [&](size_t page, size_t pages, ReadUrgency urgency) {
    return queue->start(0, {{page * kPage, memory.data(), pages * kPage}}, urgency, told.of(page));
  };
  start(10, 3, ReadUrgency::kAhead);
  reader.wait_until_reading();
  start(20, 2, ReadUrgency::kAhead);
  const uint64_t third = start(30, 2, ReadUrgency::kAhead);
  start(40, 2, ReadUrgency::kNow);
  start(50, 1, ReadUrgency::kNow);
  queue->raise(third);
  queue->raise(third);
  queue->raise(12345);
  reader.let_go();
  told.wait_for(5);
  EXPECT_THAT(reader.pages(), ElementsAre(10, 40, 41, 50, 30, 31, 11, 12, 20, 21));
}

TEST(ExtentQueue, threads_pass_on_errors_of_the_part_they_belong_to) {
  HeldReader reader;
  reader.fail_at(12);
  reader.let_go();
  const auto queue = make_extent_queue(reader, {"file"}, {.piece_bytes = kPage});
  HostBuffer memory(16 * kPage);
  Told told;
  queue->start(0,
               {{10 * kPage, memory.data(), 2 * kPage},
                {12 * kPage, memory.data() + 2 * kPage, 4 * kPage},
                {16 * kPage, memory.data() + 6 * kPage, 2 * kPage}},
               ReadUrgency::kNow, told.of(0));
  told.wait_for(3);
  EXPECT_EQ(told.message(0, 0), "ok");
  EXPECT_EQ(told.message(0, 1), "as asked for");
  EXPECT_EQ(told.message(0, 2), "ok");
}

TEST(ExtentPieces, are_cut_at_their_size_and_at_gaps_and_joined_in_memory) {
  std::byte* const base = nullptr;
  ExtentPieces pieces(4 * kPage);
  auto request = std::make_shared<ExtentRequest>();
  // 6 pages, their neighbours of 1 page elsewhere, a gap, 2 pages.
  request->parts = {{0, base + 8 * kPage, 6 * kPage},
                    {6 * kPage, base, kPage},
                    {9 * kPage, base + 32 * kPage, 2 * kPage}};
  pieces.add(request, ReadUrgency::kNow);
  const auto next = [&] {
    ExtentPiece piece;
    if (!pieces.next(&piece)) return std::string("none");
    std::string text = fmt::format("{}+{}:", piece.offset / kPage, piece.bytes / kPage);
    for (const iovec& memory : piece.memory) {
      text += fmt::format(" {}+{}", (static_cast<std::byte*>(memory.iov_base) - base) / kPage,
                          memory.iov_len / kPage);
    }
    return text;
  };
  EXPECT_EQ(next(), "0+4: 8+4");
  EXPECT_EQ(next(), "4+3: 12+2 0+1");
  EXPECT_EQ(next(), "9+2: 32+2");
  EXPECT_EQ(next(), "none");
}

TEST(ExtentPieces, reads_ahead_wait_where_they_must) {
  ExtentPieces pieces(kPage);
  const auto add = [&](uint64_t page, ReadUrgency urgency) {
    auto request = std::make_shared<ExtentRequest>();
    request->ticket = page;
    request->parts = {{page * kPage, nullptr, kPage}};
    pieces.add(request, urgency);
  };
  const auto next = [&](AheadReads ahead) {
    ExtentPiece piece;
    return pieces.next(&piece, ahead) ? static_cast<int>(piece.offset / kPage) : -1;
  };
  add(1, ReadUrgency::kAhead);
  add(2, ReadUrgency::kAhead);
  EXPECT_EQ(next(AheadReads::kMustWait), -1);
  add(3, ReadUrgency::kNow);
  pieces.raise(2);
  EXPECT_EQ(next(AheadReads::kMustWait), 3);
  EXPECT_EQ(next(AheadReads::kMustWait), 2);
  EXPECT_EQ(next(AheadReads::kMustWait), -1);
  EXPECT_EQ(next(AheadReads::kMayStart), 1);
  EXPECT_EQ(next(AheadReads::kMayStart), -1);
}

// Runs in a child process: the exit code.
int exit_code_of(const std::function<int()>& work) {
  const pid_t pid = ::fork();
  if (pid == 0) ::_exit(work());
  int status = 0;
  ::waitpid(pid, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

// From now on the kernel answers this to io_uring_setup(), as container runtimes have it do.
bool refuse_io_uring(unsigned error) {
  sock_filter code[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, __NR_io_uring_setup, 0, 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | error),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  const sock_fprog program{4, code};
  return ::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
         ::prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0;
}

constexpr int kNotPossible = 77;

// 0: read rightly in a way that begins so.
int read_all(const Files& files, const std::string& way) {
  const auto reader = open_extent_files(files.paths);
  const auto queue = make_extent_queue(*reader, files.paths);
  if (!queue->describe().starts_with(way)) {
    std::fprintf(stderr, "found: %s\n", queue->describe().c_str());
    return 1;
  }
  HostBuffer memory(kFilePages * kPage);
  Told told;
  queue->start(1, {{0, memory.data(), memory.size()}}, ReadUrgency::kNow, told.of(0));
  told.wait_for(1);
  if (told.message(0, 0) != "ok") return 2;
  return std::memcmp(memory.data(), files.contents[1].data(), memory.size()) == 0 ? 0 : 3;
}

TEST(ExtentQueue, reads_with_threads_where_io_uring_is_refused) {
  const TempDir dir;
  const Files files(dir.path());
  for (const unsigned error : {EPERM, ENOSYS}) {
    const int code = exit_code_of([&] {
      if (!refuse_io_uring(error)) return kNotPossible;
      return read_all(files, "4 threads with pread, ");
    });
    if (code == kNotPossible) GTEST_SKIP() << "no seccomp here";
    EXPECT_EQ(code, 0);
  }
}

// From now on this process may lock no more than a ring takes. Capabilities: root may in spite of
// the limit.
bool forbid_pinning() {
  const rlimit little{kMiB, kMiB};
  __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
  __user_cap_data_struct no_capabilities[2] = {};
  return ::setrlimit(RLIMIT_MEMLOCK, &little) == 0 &&
         ::syscall(SYS_capset, &header, no_capabilities) == 0;
}

TEST(ExtentQueue, says_why_memory_is_not_registered) {
  const TempDir dir;
  const Files files(dir.path());
  const auto error_of = [&](const std::function<bool()>& prepare) {
    int ends[2];
    EXPECT_EQ(::pipe(ends), 0);
    const int code = exit_code_of([&] {
      const auto reader = open_extent_files(files.paths);
      if (reader->direct_fd(0) < 0 || !prepare()) return kNotPossible;
      std::string error;
      try {
        const auto queue = make_extent_queue(*reader, files.paths, {.io = PackIo::kRegistered});
        HostBuffer memory(4 * kMiB);
        queue->use_memory(memory.span());
      } catch (const LoadError& e) {
        error = e.what();
      }
      return ::write(ends[1], error.data(), error.size()) >= 0 ? 0 : 1;
    });
    ::close(ends[1]);
    std::string error(4096, '\0');
    error.resize(static_cast<size_t>(std::max<ssize_t>(0, ::read(ends[0], error.data(), 4096))));
    ::close(ends[0]);
    return code == kNotPossible ? "not possible" : error;
  };
  const std::string pinning = error_of(forbid_pinning);
  const std::string ring = error_of([] { return refuse_io_uring(EPERM); });
  if (pinning == "not possible") GTEST_SKIP() << "no direct reads here";
  EXPECT_EQ(
      pinning,
      "io_uring cannot register 4.00 MiB of memory: Cannot allocate memory: raise the limit on "
      "locked memory (`ulimit -l`, in KiB), or leave '--io registered' out");
  if (ring == "not possible") GTEST_SKIP() << "no seccomp here";
  EXPECT_EQ(ring,
            fmt::format("{}: cannot read into registered memory: the kernel refuses io_uring: "
                        "Operation not permitted: leave '--io registered' out, to read without",
                        dir.path().string()));
}

TEST(ExtentQueue, reads_through_the_page_cache_where_direct_reads_are_refused) {
  const TempDir dir;
  const int code = exit_code_of([&] {
    // ramfs knows no direct reads; tmpfs does from Linux 6.6 on.
    const bool root = ::unshare(CLONE_NEWNS) == 0;
    if (!root && ::unshare(CLONE_NEWUSER | CLONE_NEWNS) != 0) return kNotPossible;
    if (::mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0) return kNotPossible;
    if (::mount("ramfs", dir.path().c_str(), "ramfs", 0, nullptr) != 0) return kNotPossible;
    return read_all(Files(dir.path()), "4 threads with pread, through the page cache");
  });
  if (code == kNotPossible) GTEST_SKIP() << "no mount allowed here";
  EXPECT_EQ(code, 0);
}

}  // namespace
}  // namespace atl::storage
