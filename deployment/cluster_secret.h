// What coordinator and nodes of a cluster on one machine know each other by, as long as there are
// no certificates: 32 hexadecimal digits in a file that only this user may read.
#pragma once

#include <filesystem>
#include <string>

namespace atl::deployment {

// Makes the file if it isn't there; of several processes that do so at once all get the same
// secret. LoadError if it can't be made or read, belongs to somebody else, may be read by others or
// holds something else.
std::string cluster_secret(const std::filesystem::path& file);

}  // namespace atl::deployment
