#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

namespace switchyard {

/// A run's committed segments, in order, and the corpus of each.
struct CorpusSegments {
  std::vector<std::filesystem::path> files;
  std::vector<std::string> corpora;
};

/// corpus: only its segments. Throws Error when the folder holds no run, or none such.
CorpusSegments segments_of(const std::filesystem::path& run, const std::optional<std::string>& corpus);

}  // namespace switchyard
