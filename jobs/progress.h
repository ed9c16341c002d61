#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <vector>

#include "pipeline/route_loop.h"

namespace switchyard {

/// What is known of a corpus before it is routed, to tell how far a run is.
struct CorpusExtent {
  std::string name;
  CorpusFiles files;
  std::uint64_t max_tokens = 0;  // 0: no limit
};

/// Shows progress on stderr: a bar that is redrawn on a terminal, a line a minute in a log.
class ProgressBar {
 public:
  ProgressBar(std::vector<CorpusExtent> corpora, bool quiet);
  void update(const RouteProgress& progress);
  /// Share of the work that is done, 0 to 1: bytes of text read, corpora weighed by their size.
  double fraction(const RouteProgress& progress) const;
  /// Clears the bar's line.
  void finish();

 private:
  std::vector<CorpusExtent> corpora_;
  std::vector<std::vector<std::uint64_t>> file_begin_;  // bytes of a corpus before each file, and of all
  std::vector<double> weight_;                          // share of the work, by corpus
  bool quiet_;
  bool terminal_;
  double first_fraction_ = -1;
  std::chrono::steady_clock::time_point start_, shown_;
};

/// Shows how far bytes are copied, on stderr: redrawn on a terminal, a line every ten seconds in a log.
class CopyProgress {
 public:
  CopyProgress(std::string what, bool quiet);
  void update(std::uint64_t copied, std::uint64_t all);
  /// Clears the line.
  void finish() const;

 private:
  std::string what_;
  bool quiet_;
  bool terminal_;
  std::chrono::steady_clock::time_point start_, shown_;
};

}  // namespace switchyard
