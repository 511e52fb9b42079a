// Small file operations whose failures are LoadErrors with the file's name and the system's reason.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <utility>

namespace atl::storage {

// An open descriptor that closes itself.
class FileHandle {
 public:
  FileHandle() = default;
  FileHandle(int fd, std::filesystem::path path) : fd_(fd), path_(std::move(path)) {}
  FileHandle(FileHandle&& other) noexcept
      : fd_(std::exchange(other.fd_, -1)), path_(std::move(other.path_)) {}
  FileHandle& operator=(FileHandle&& other) noexcept {
    std::swap(fd_, other.fd_);
    std::swap(path_, other.path_);
    return *this;
  }
  ~FileHandle();

  bool is_open() const { return fd_ >= 0; }
  int fd() const { return fd_; }
  int release() { return std::exchange(fd_, -1); }  // to somebody who closes it
  const std::filesystem::path& path() const { return path_; }

 private:
  int fd_ = -1;
  std::filesystem::path path_;
};

// A regular file, for reading.
FileHandle open_for_reading(const std::filesystem::path& path);
uint64_t file_bytes(const FileHandle& file);
// All of out from `offset` on; LoadError if the file ends before.
void read_exactly(const FileHandle& file, uint64_t offset, std::span<std::byte> out);
// Bytes from `offset` on that were read into `out` before the file's end or an error, whose number
// is then in errno and *failed true.
size_t pread_all(int fd, uint64_t offset, std::span<std::byte> out, bool* failed);
// Whole pages around the range; a neighbour that shares an edge page reads it once more.
void drop_from_page_cache(int fd, uint64_t offset, uint64_t bytes);
// The whole of a file of at most bytes_max.
std::string read_whole_file(const std::filesystem::path& path, uint64_t bytes_max);

// An empty file, for writing; `flags` are added to those of open().
FileHandle create_file(const std::filesystem::path& path, int flags = 0);
void write_all(const FileHandle& file, uint64_t offset, std::span<const std::byte> data);
// Waits until the disk has it: a file's data and size, a directory's names.
void sync_file(const FileHandle& file);
void sync_directory(const std::filesystem::path& path);
// Replaces `path` in one step: it has the old contents, or all of the new ones on the disk.
void write_file_atomically(const std::filesystem::path& path, std::string_view contents);
// Gives an unfinished file its name, once all of it is on the disk, and that name to the disk.
void rename_durably(const std::filesystem::path& from, const std::filesystem::path& to);

[[noreturn]] void throw_file_error(const std::filesystem::path& path, const char* what, int error);

}  // namespace atl::storage
