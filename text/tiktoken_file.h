// Reads what Kimi's repositories have in place of a tokenizer.json: tiktoken.model, lines of a
// token's bytes in base64 and its rank, and tokenizer_config.json with the special tokens.
//
// The ids of tiktoken: a piece that is a token is that; else the two neighbours whose bytes
// together are the token of the lowest rank are joined, whichever two they are, so each way to cut
// a token in two is a rule of its rank. Ids behind the ranks that the config doesn't name are
// <|reserved_token_ID|>, as in tokenization_kimi.py (moonshotai, class TikTokenTokenizer), whose
// pattern cuts the text. What it does beyond that is not done: it cuts runs of 25,000 characters
// without white space.
#pragma once

#include <filesystem>

#include "text/tokenizer_file.h"

namespace atl::text {

// Of a directory with tiktoken.model. Throws LoadError, one line that names the file and what is
// wrong in it; a tokenizer_config.json of another class is refused by its name.
TokenizerFile read_tiktoken_file(const std::filesystem::path& model_dir);

}  // namespace atl::text
