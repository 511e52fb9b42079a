// The way of an ExtentQueue through io_uring.
#pragma once

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "storage/io/extent_queue.h"

namespace atl::storage {

// nullptr, with the reason in *refused, where the kernel or a container refuses io_uring or a file
// can't be read directly (ExtentReader::direct_fd() is -1). Arguments as make_extent_queue().
std::unique_ptr<ExtentQueue> try_make_uring_queue(ExtentReader& reader,
                                                  std::vector<std::filesystem::path> files,
                                                  const ExtentQueueOptions& options,
                                                  std::string* refused);

}  // namespace atl::storage
