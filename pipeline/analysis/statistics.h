#pragma once

#include <optional>
#include <string>
#include <vector>

#include "io/hdf5/table.h"
#include "io/routing_schema.h"
#include "pipeline/analysis/accumulators.h"
#include "pipeline/analysis/cost.h"
#include "pipeline/analysis/document_usage.h"
#include "pipeline/analysis/rank_load.h"
#include "pipeline/analysis/rank_time.h"

namespace switchyard {

/// One phase of a routed corpus, ready for statistics.
struct Dataset {
  std::string name;
  Accumulators accumulators;
  RankLoad ranks;
  RankTime time;
  Cost cost = {};
  std::vector<DocumentUsage> documents = {};  // the first ones, where they were asked for
};

/// What stats.h5 is made of: datasets of one model.
struct Statistics {
  ModelFacts model;
  std::vector<Dataset> datasets;
  std::vector<std::string> vocabulary;  // text of each token id, for people; empty when no tokenizer was there
  std::optional<double> peak_flops;     // of one rank, FLOP/s, when it is known
};

/// Everything stats.h5 holds: the accumulators themselves (so that files merge), and the figures made of them, named
/// with their unit. Definitions: pipeline/analysis/README.md.
std::vector<Table> statistics_tables(const Statistics& statistics);

/// The inverse. file: named in errors. Throws Error naming a table that is missing or wrong.
Statistics from_statistics_tables(const std::vector<Table>& tables, const std::string& file);

/// What each group of stats.h5 is about.
std::vector<std::pair<std::string, std::string>> statistics_group_descriptions();

/// How much of a token's routing follows from its id alone, from one layer's table [V, E] of counts (sparse rows).
struct VocabularySpecialisation {
  double mean = 0;              // over ids with at least min_count slots, of max_e N[v, e] / N[v]
  double weighted = 0;          // the same, weighted by N[v]
  double baseline = 0;          // `mean` after shuffling slots' experts over tokens: what counts alone would give
  double information = 0;       // I(expert; token id), nats, plug-in
  double information_bias = 0;  // Miller-Madow's correction, to be subtracted
  std::uint64_t ids = 0;        // that took part
};
/// table: cells = (layer * V + token) * E + expert, of which `layer`'s are used. The shuffle is seeded and repeatable.
VocabularySpecialisation vocabulary_specialisation(const SparseCounts& table, const AccumulatorShape& shape, int layer,
                                                   std::uint64_t min_count, std::uint64_t seed);

}  // namespace switchyard
