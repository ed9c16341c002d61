#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "io/corpus/corpus_spec.h"

namespace switchyard {

/// A file of a corpus, as it was when the corpus was listed.
struct CorpusFile {
  std::string path;  // not a filesystem::path, which takes several times the memory
  std::uint64_t bytes = 0;
};

/// A corpus' files in the order in which they are read. Listed once, then shared: there may be millions.
using CorpusFiles = std::shared_ptr<const std::vector<CorpusFile>>;

/// Lists a corpus, its files sorted by path, each looked at once. Throws Error when there is none, or one cannot be
/// read or is no regular file.
CorpusFiles list_files(const CorpusSpec& spec);

}  // namespace switchyard
