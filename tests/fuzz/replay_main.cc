// Runs a fuzz target where there is no libFuzzer (GCC): every file of a corpus as it is, then
// changed copies of them, the same ones each time.
//
//   fuzz_wire CORPUS_DIR [RUNS [SEED]]
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace {

using Bytes = std::vector<uint8_t>;
using Random = std::mt19937_64;

constexpr size_t kInputBytesMax = 64 * 1024;

std::vector<Bytes> read_corpus(const char* directory) {
  std::vector<std::filesystem::path> files;
  for (const auto& entry : std::filesystem::directory_iterator(directory)) {
    files.push_back(entry.path());
  }
  std::sort(files.begin(), files.end());
  std::vector<Bytes> corpus;
  for (const auto& path : files) {
    std::ifstream in(path, std::ios::binary);
    corpus.emplace_back(std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>());
  }
  return corpus;
}

// One small change: a byte, a stretch taken out, doubled, or taken from another input.
void change(Bytes& bytes, const std::vector<Bytes>& corpus, Random& random) {
  const auto place = [&](size_t size) { return static_cast<size_t>(random() % (size + 1)); };
  switch (random() % 6) {
    case 0:
      if (!bytes.empty()) bytes[random() % bytes.size()] = static_cast<uint8_t>(random());
      return;
    case 1:
      if (!bytes.empty()) bytes[random() % bytes.size()] ^= uint8_t{1} << random() % 8;
      return;
    case 2: {  // numbers that something may trip over
      static constexpr uint64_t kNumbers[] = {0,          1,      UINT64_MAX, INT64_MAX,
                                              UINT32_MAX, 0x8000, 0xFF};
      uint64_t number = kNumbers[random() % std::size(kNumbers)];
      const size_t at = place(bytes.size());
      for (size_t i = at; i < std::min(at + 8, bytes.size()); ++i, number >>= 8) {
        bytes[i] = static_cast<uint8_t>(number);
      }
      return;
    }
    case 3: {
      size_t begin = place(bytes.size()), end = place(bytes.size());
      if (begin > end) std::swap(begin, end);
      bytes.erase(bytes.begin() + static_cast<ptrdiff_t>(begin),
                  bytes.begin() + static_cast<ptrdiff_t>(end));
      return;
    }
    case 4: {
      size_t begin = place(bytes.size()), end = place(bytes.size());
      if (begin > end) std::swap(begin, end);
      const Bytes part(bytes.begin() + static_cast<ptrdiff_t>(begin),
                       bytes.begin() + static_cast<ptrdiff_t>(end));
      bytes.insert(bytes.begin() + static_cast<ptrdiff_t>(end), part.begin(), part.end());
      return;
    }
    default: {
      const Bytes& other = corpus[random() % corpus.size()];
      size_t begin = place(other.size()), end = place(other.size());
      if (begin > end) std::swap(begin, end);
      bytes.insert(bytes.begin() + static_cast<ptrdiff_t>(place(bytes.size())),
                   other.begin() + static_cast<ptrdiff_t>(begin),
                   other.begin() + static_cast<ptrdiff_t>(end));
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) {
    std::fprintf(stderr, "usage: %s CORPUS_DIR [RUNS [SEED]]\n", argv[0]);
    return 2;
  }
  const std::vector<Bytes> corpus = read_corpus(argv[1]);
  if (corpus.empty()) {
    std::fprintf(stderr, "%s: no files\n", argv[1]);
    return 2;
  }
  const int64_t runs = argc > 2 ? std::atoll(argv[2]) : 1000;
  Random random(argc > 3 ? std::strtoull(argv[3], nullptr, 10) : 1);
  for (const Bytes& bytes : corpus) LLVMFuzzerTestOneInput(bytes.data(), bytes.size());
  for (int64_t run = 0; run < runs; ++run) {
    Bytes bytes = corpus[random() % corpus.size()];
    for (uint64_t changes = 1 + random() % 8; changes > 0; --changes) change(bytes, corpus, random);
    if (bytes.size() > kInputBytesMax) bytes.resize(kInputBytesMax);
    LLVMFuzzerTestOneInput(bytes.data(), bytes.size());
  }
  std::printf("%zu inputs, %lld changed ones\n", corpus.size(), static_cast<long long>(runs));
  return 0;
}
