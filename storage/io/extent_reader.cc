#include "storage/io/extent_reader.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "base/check.h"
#include "base/log.h"
#include "base/memory.h"
#include "base/units.h"

namespace atl::storage {
namespace {

// One call takes at most this much: the kernel's own bound is just below 2 GiB.
constexpr size_t kReadBytesMax = 256 * kMiB;

class File {
 public:
  File(int fd, uint64_t bytes) : fd_(fd), bytes_(bytes) {}
  File(File&& other) noexcept : fd_(std::exchange(other.fd_, -1)), bytes_(other.bytes_) {}
  File& operator=(File&&) = delete;
  ~File() {
    if (fd_ >= 0) ::close(fd_);
  }
  int fd() const { return fd_; }
  uint64_t bytes() const { return bytes_; }

 private:
  int fd_;
  uint64_t bytes_;
};

File open_regular(const std::filesystem::path& path, int flags) {
  // O_NONBLOCK so that a pipe of that name does not hang us.
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | flags);
  if (fd < 0)
    throw LoadError(fmt::format("{}: cannot open: {}", path.string(), std::strerror(errno)));
  struct stat info {};
  if (::fstat(fd, &info) != 0 || !S_ISREG(info.st_mode)) {
    ::close(fd);
    throw LoadError(fmt::format("{}: not a regular file", path.string()));
  }
  return File(fd, static_cast<uint64_t>(info.st_size));
}

// Some file systems refuse O_DIRECT at open(), some only at the first read.
bool takes_direct_reads(const std::filesystem::path& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_DIRECT);
  if (fd < 0) return errno != EINVAL;
  HostBuffer page(kExtentAlign);
  const ssize_t got = ::pread(fd, page.data(), page.size(), 0);
  const bool refused = got < 0 && errno == EINVAL;
  ::close(fd);
  return !refused;
}

class PreadReader final : public ExtentReader {
 public:
  explicit PreadReader(std::vector<std::filesystem::path> paths) : paths_(std::move(paths)) {
    direct_ = std::all_of(paths_.begin(), paths_.end(), takes_direct_reads);
    if (!direct_) {
      log_info("{}: the file system refuses O_DIRECT: reading through the page cache",
               paths_.front().parent_path().string());
    }
    for (const std::filesystem::path& path : paths_) {
      files_.push_back(open_regular(path, direct_ ? O_DIRECT : 0));
    }
  }

  uint64_t file_bytes(size_t file) const override { return files_.at(file).bytes(); }
  int direct_fd(size_t file) const override { return direct_ ? files_.at(file).fd() : -1; }

  Status read(size_t file, uint64_t offset, std::span<std::byte> out) override {
    CHECK_EQ(offset % kExtentAlign, 0u);
    CHECK_EQ(out.size() % kExtentAlign, 0u);
    CHECK_EQ(reinterpret_cast<uintptr_t>(out.data()) % kExtentAlign, 0u);
    const int fd = files_.at(file).fd();
    size_t done = 0;
    while (done < out.size()) {
      const size_t step = std::min(out.size() - done, kReadBytesMax);
      const ssize_t got = ::pread(fd, out.data() + done, step, static_cast<off_t>(offset + done));
      if (got < 0 && errno == EINTR) continue;
      if (got <= 0) return failure(file, offset, done, out.size(), got < 0 ? errno : 0);
      done += static_cast<size_t>(got);
      // A short direct read ends inside a block only at the end of the file.
      if (direct_ && done % kExtentAlign != 0) return failure(file, offset, done, out.size(), 0);
    }
    if (!direct_) {
      (void)::posix_fadvise(fd, static_cast<off_t>(offset), static_cast<off_t>(out.size()),
                            POSIX_FADV_DONTNEED);
    }
    return {};
  }

 private:
  Status failure(size_t file, uint64_t offset, size_t done, size_t wanted, int error) const {
    return extent_error(paths_[file], offset, done, wanted, error);
  }

  const std::vector<std::filesystem::path> paths_;
  std::vector<File> files_;
  bool direct_ = true;
};

}  // namespace

Error extent_error(const std::filesystem::path& file, uint64_t offset, size_t done, size_t wanted,
                   int error) {
  return {error != 0 ? ErrorCode::kUnavailable : ErrorCode::kCorrupt,
          fmt::format("{}: read {} of {} bytes at offset {}: {}", file.string(), done, wanted,
                      offset, error != 0 ? std::strerror(error) : "the file shrank")};
}

std::unique_ptr<ExtentReader> open_extent_files(std::vector<std::filesystem::path> files) {
  return std::make_unique<PreadReader>(std::move(files));
}

}  // namespace atl::storage
