#include "storage/io/file_io.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>

#include "base/result.h"

namespace atl::storage {

FileHandle::~FileHandle() {
  if (fd_ >= 0) ::close(fd_);
}

void throw_file_error(const std::filesystem::path& path, const char* what, int error) {
  throw LoadError(fmt::format("{}: cannot {}: {}", path.string(), what, std::strerror(error)));
}

FileHandle open_for_reading(const std::filesystem::path& path) {
  // O_NONBLOCK so that a pipe of that name does not hang us.
  FileHandle file(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK), path);
  if (!file.is_open()) throw_file_error(path, "open", errno);
  struct stat info {};
  if (::fstat(file.fd(), &info) != 0) throw_file_error(path, "stat", errno);
  if (!S_ISREG(info.st_mode)) throw LoadError(fmt::format("{}: not a regular file", path.string()));
  return file;
}

uint64_t file_bytes(const FileHandle& file) {
  struct stat info {};
  if (::fstat(file.fd(), &info) != 0) throw_file_error(file.path(), "stat", errno);
  return static_cast<uint64_t>(info.st_size);
}

void read_exactly(const FileHandle& file, uint64_t offset, std::span<std::byte> out) {
  size_t done = 0;
  while (done < out.size()) {
    const ssize_t got =
        ::pread(file.fd(), out.data() + done, out.size() - done, static_cast<off_t>(offset + done));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) throw_file_error(file.path(), "read", errno);
    if (got == 0) {
      throw LoadError(fmt::format("{}: read {} of {} bytes at offset {}: the file is too short",
                                  file.path().string(), done, out.size(), offset));
    }
    done += static_cast<size_t>(got);
  }
}

size_t pread_all(int fd, uint64_t offset, std::span<std::byte> out, bool* failed) {
  size_t done = 0;
  *failed = false;
  while (done < out.size()) {
    const ssize_t got =
        ::pread(fd, out.data() + done, out.size() - done, static_cast<off_t>(offset + done));
    if (got < 0 && errno == EINTR) continue;
    *failed = got < 0;
    if (got <= 0) break;
    done += static_cast<size_t>(got);
  }
  return done;
}

void drop_from_page_cache(int fd, uint64_t offset, uint64_t bytes) {
  constexpr uint64_t kPageBytes = 4096;
  const uint64_t begin = offset / kPageBytes * kPageBytes;
  const uint64_t end = (offset + bytes + kPageBytes - 1) / kPageBytes * kPageBytes;
  (void)::posix_fadvise(fd, static_cast<off_t>(begin), static_cast<off_t>(end - begin),
                        POSIX_FADV_DONTNEED);
}

std::string read_whole_file(const std::filesystem::path& path, uint64_t bytes_max) {
  const FileHandle file = open_for_reading(path);
  const uint64_t bytes = file_bytes(file);
  if (bytes > bytes_max) {
    throw LoadError(
        fmt::format("{}: {} bytes, expected at most {}", path.string(), bytes, bytes_max));
  }
  std::string contents(bytes, '\0');
  read_exactly(file, 0, std::as_writable_bytes(std::span(contents)));
  return contents;
}

FileHandle create_file(const std::filesystem::path& path, int flags) {
  FileHandle file(::open(path.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC | flags, 0644), path);
  if (!file.is_open()) throw_file_error(path, "create", errno);
  return file;
}

void write_all(const FileHandle& file, uint64_t offset, std::span<const std::byte> data) {
  while (!data.empty()) {
    const ssize_t put = ::pwrite(file.fd(), data.data(), data.size(), static_cast<off_t>(offset));
    if (put < 0 && errno == EINTR) continue;
    if (put < 0) throw_file_error(file.path(), "write", errno);
    if (put == 0) throw_file_error(file.path(), "write", ENOSPC);
    offset += static_cast<uint64_t>(put);
    data = data.subspan(static_cast<size_t>(put));
  }
}

void sync_file(const FileHandle& file) {
  if (::fsync(file.fd()) != 0) throw_file_error(file.path(), "write to the disk", errno);
}

void sync_directory(const std::filesystem::path& path) {
  const FileHandle dir(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC), path);
  if (!dir.is_open()) throw_file_error(path, "open", errno);
  sync_file(dir);
}

void write_file_atomically(const std::filesystem::path& path, std::string_view contents) {
  const std::filesystem::path unfinished = path.string() + ".tmp";
  {
    const FileHandle file = create_file(unfinished);
    write_all(file, 0, std::as_bytes(std::span(contents)));
    sync_file(file);
  }
  rename_durably(unfinished, path);
}

void rename_durably(const std::filesystem::path& from, const std::filesystem::path& to) {
  if (std::rename(from.c_str(), to.c_str()) != 0) throw_file_error(to, "rename", errno);
  sync_directory(to.has_parent_path() ? to.parent_path() : ".");
}

}  // namespace atl::storage
