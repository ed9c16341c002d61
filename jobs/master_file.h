#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "io/routing_writer.h"
#include "io/tokenizer/tokenizer.h"

namespace switchyard {

/// Writes OUT/routing.h5 of a run: its segments with /corpora/* and, where there is a tokenizer (nullptr: none), the
/// vocabulary. names: of the corpora. Rank 0 only.
void write_run_master(const std::filesystem::path& out, const ModelFacts& model, std::vector<std::string> names,
                      const std::vector<SegmentEntry>& segments, const Tokenizer* tokenizer);

}  // namespace switchyard
