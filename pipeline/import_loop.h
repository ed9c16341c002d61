#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <set>
#include <string>
#include <vector>

#include "io/routing_writer.h"
#include "io/served/served_reader.h"
#include "pipeline/analysis/live_accumulators.h"
#include "pipeline/route_loop.h"

namespace switchyard {

struct ImportOptions {
  ModelFacts model;  // as far as it is known
  ServedFormat format;
  std::filesystem::path out;
  std::uint64_t next_segment = 0;       // segments committed before
  std::vector<std::string> categories;  // met before, in the order of their numbers
  bool compress = false;
  TokenTableChoice tables;
  std::uint64_t segment_tokens = 1 << 22;       // a segment is committed behind the line that brings so many tokens ...
  std::uint64_t segment_bytes = 256ULL << 20U;  // ... or so many bytes of experts
};

struct ImportOutcome {
  bool stopped = false;  // by a signal: the run is not complete
  std::uint64_t session_tokens = 0;
  double seconds = 0;  // wall
};

/// What a record of served lines has no columns for.
std::set<RowField> absent_fields(const ServedFormat& format);

/// Makes segments of a run with one corpus out of lines, from `start` on, in this process alone. A line is never cut in
/// two; where segments end depends on the lines alone, but for a stop signal: then what was read is committed.
ImportOutcome import_lines(ServedReader& lines, const ImportOptions& options, const SourcePosition& start,
                           const std::function<void(const RouteProgress&)>& on_line);

}  // namespace switchyard
