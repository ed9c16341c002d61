#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "io/routing_writer.h"
#include "tests/io/record_support.h"

namespace switchyard::testing {

/// A run that was continued twice: on 2 ranks, on 3, on 1. Its documents have 5 tokens each; ids grow longer, the third
/// segment has no rows, and the fourth is compressed.
struct SmallRun {
  static constexpr std::uint64_t kDocuments = 9;
  static constexpr std::uint64_t kRows = kDocuments * 5;
  ModelFacts model = small_model(7, 2);
  std::vector<SegmentEntry> segments;
  std::vector<std::string> ids;
  std::vector<std::uint64_t> widths;  // ranks of each step
};

inline SmallRun write_small_run(const std::filesystem::path& out, RecordLevel level) {
  const std::vector<std::vector<std::string>> ids = {{"a", "bb"},
                                                     {"wiki/größe-0001", "wiki/zwei", "c"},
                                                     {},
                                                     {"d", "e", "a-much-longer-name-than-all-the-others", "f"}};
  const std::vector<std::uint64_t> ranks = {2, 3, 2, 1};
  const Communicator self = Communicator::self();
  SmallRun run;
  for (std::size_t i = 0; i < ids.size(); ++i) {
    const std::uint64_t first = run.ids.size();
    RankShare share = share_of_segment(run.model, level, first * 5, {ids[i].size() * 5}, 0, 1);
    share.contents.tables = segment_tables(ids[i], first, ranks[i]);
    run.segments.push_back(commit_segment(out, i, run.model, share.contents, {level, i == 3}, "{}", self));
    run.ids.insert(run.ids.end(), ids[i].begin(), ids[i].end());
    run.widths.insert(run.widths.end(), ids[i].size(), ranks[i]);
  }
  const std::vector<Table> tables = {
      {"/corpora/name", {"corpus"}, {2}, std::vector<std::string>{"wiki", "code"}, "1", "name of the corpus"},
      {"/corpora/tokens", {"corpus"}, {2}, std::vector<std::uint64_t>{25, 20}, "1", "tokens of the corpus"}};
  write_master(out, run.model, run.segments, tables);
  return run;
}

}  // namespace switchyard::testing
