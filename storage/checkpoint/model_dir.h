// What somebody gave as a model, looked at before anything in it is parsed: the usual mistakes end
// in one line that says what it is and how to get a model from it.
#pragma once

#include <filesystem>
#include <optional>
#include <span>
#include <string>

namespace atl::storage {

// LoadError unless `path` is a directory whose small files (configs, tokenizer, index of the
// shards) are here themselves where they are, not as git-lfs pointers. A name or address on Hugging
// Face and files are told apart.
void require_directory(const std::filesystem::path& path);

// As require_directory(), and it has a config.json. A Hugging Face cache, a directory around the
// model, GGUF and adapters are told apart.
void require_model_dir(const std::filesystem::path& path);

// How to get the model that is meant, if the text looks like a model's name or address on Hugging
// Face: "download it first: huggingface-cli download ...".
std::optional<std::string> download_hint(const std::string& text);
bool is_hugging_face_address(const std::string& text);  // "https://huggingface.co/..." and the like

// LoadError for a directory that has neither model.safetensors nor an index of shards: GGUF or
// PyTorch files only, shards without their index, or none.
[[noreturn]] void refuse_without_weights(const std::filesystem::path& dir);

// LoadError if some of these files of the directory are missing or git-lfs pointers: how many of
// how many, the first names, how to go on. In a directory that was downloaded, the unfinished
// downloads are counted, too.
void require_shards(const std::filesystem::path& dir, std::span<const std::string> files);

}  // namespace atl::storage
