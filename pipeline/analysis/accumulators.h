#pragma once

#include <array>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "io/hdf5/table.h"
#include "io/routing_schema.h"
#include "parallel/communicator.h"
#include "pipeline/analysis/binning.h"
#include "pipeline/analysis/count_sum.h"
#include "pipeline/analysis/document_groups.h"
#include "pipeline/analysis/path_sketch.h"
#include "pipeline/analysis/sparse_counts.h"
#include "pipeline/analysis/table_index.h"

namespace switchyard {

/// Sizes that accumulators depend on. Two sets merge when theirs are equal.
struct AccumulatorShape {
  int layers = 0;      // L, MoE layers
  int experts = 0;     // E
  int top_k = 0;       // k
  int vocabulary = 0;  // V, rows of the token tables

  bool operator==(const AccumulatorShape&) const = default;
};

/// That of a model's record.
inline AccumulatorShape shape_of(const ModelFacts& model) {
  return {model.n_moe_layers(), model.n_experts, model.top_k, model.vocabulary};
}

inline constexpr std::size_t kPathCapacity = 16384;

/// Count, mean and sum of squared deviations of a stream of values, with its range; mean and range are NaN when there
/// was none. Merging is Chan, Golub and
/// LeVeque's update
/// ("Updating formulae and a pairwise algorithm for computing sample variances", 1979).
struct Moments {
  std::uint64_t n = 0;
  double mean = std::numeric_limits<double>::quiet_NaN();
  double m2 = 0;  // sum of (x - mean)^2
  double min = std::numeric_limits<double>::quiet_NaN();
  double max = std::numeric_limits<double>::quiet_NaN();

  static Moments of(std::span<const float> values);
  void merge(const Moments& other);
  /// Population standard deviation; NaN when n = 0.
  double deviation() const;
};

/// By which id a token table counts: the token itself, the one that follows it, the model's own guess of that one.
enum class TokenTable : std::uint8_t { input, target, predicted };
inline constexpr std::size_t kTokenTables = 3;
inline constexpr std::array<std::string_view, kTokenTables> kTokenTableNames = {"input", "target", "predicted"};

/// How much of a token table is kept: all of it, or the most frequent cells of each layer (misra_gries.h).
struct TableBound {
  std::uint64_t capacity = 0;             // most cells of a layer; 0: all
  std::vector<std::uint64_t> undercount;  // [L] a cell's true count is in [count, count + undercount]; 0: exact

  /// Takes in another table's bound: the tables' sum keeps as much as the smaller of them.
  void merge(const TableBound& other);
  bool operator==(const TableBound&) const = default;
};

/// Everything the record keeps of one dataset besides its rows: plain, mergeable data. merge() is exact for counts and
/// associative for moments up to rounding. Layer means MoE layer; slot j of a token is its j-th choice.
struct Accumulators {
  AccumulatorShape shape;

  // Counts, merged by addition.
  std::vector<std::uint64_t> tokens, windows, documents, targets, correct;  // [1] each; correct: arg-max = target
  std::vector<std::uint64_t> slot_count;                                    // [L, k, E]
  std::vector<std::uint64_t> position_count;                                // [L, kPositionBuckets, E] slots
  std::vector<std::uint64_t> coactivation;  // [L, E, E] ordered pairs of one token's experts; diagonal: slots
  std::vector<std::uint64_t> flow,
      flow_top1;  // [L-1, E, E] expert at layer l, expert at l+1: all k*k pairs; first choices only
  std::vector<std::uint64_t> repeat_pairs;               // [1] neighbouring tokens of one window
  std::vector<std::uint64_t> repeat_top1, repeat_any;    // [L] of those: same first choice; choices intersect
  std::vector<std::uint64_t> entropy_histogram;          // [L, bins] on [0, ln E]
  std::vector<std::uint64_t> margin_histogram;           // [L, bins] on [0, 1]
  std::vector<std::uint64_t> top_probability_histogram;  // [L, bins] on [0, 1]
  std::vector<std::uint64_t> weight_histogram;           // [L, k, bins] on [0, 1]
  std::vector<std::uint64_t> confident;                  // [L] tokens with top probability > kConfidentProbability

  // Sums.
  std::vector<double> weight_sum;       // [L, k, E] combine weights
  std::vector<double> probability_sum;  // [L, E]
  std::vector<double> z_sum;            // [L] of (logsumexp of the logits)^2

  // Moments.
  std::vector<Moments> entropy, margin, top_probability;  // [L]
  std::vector<Moments> loss;                              // [1] nats

  PathSketch paths;
  std::array<SparseCounts, kTokenTables> token_tables;  // cell = (layer * V + token) * E + expert
  std::array<TableBound, kTokenTables> token_bounds;
  SparseCounts group_counts;  // slots; cell = (layer * kDocumentGroups + group) * E + expert

  explicit Accumulators(const AccumulatorShape& shape = {});
  /// Throws Error when the shapes differ.
  void merge(const Accumulators& other);
  std::uint64_t n_tokens() const { return tokens[0]; }
  /// [E] slots of a layer, over all choices.
  std::vector<std::uint64_t> layer_counts(int layer) const;
  /// Collective: the sum of all ranks' accumulators, in rank order, on rank 0; the others' are left undefined.
  void reduce_to_root(const Communicator& comm);
};

/// The data sets of one or more datasets: a leading dimension `dataset`, below `root` ("/accumulators" in a segment, ""
/// in stats.h5).
std::vector<Table> to_tables(const std::vector<const Accumulators*>& datasets, const std::string& root);
/// The inverse, for all datasets of such tables (others are ignored). Throws Error naming a table that is missing or
/// has the wrong shape; with `whole` false a missing one leaves its field as it is when nothing was counted.
std::vector<Accumulators> from_tables(const std::vector<Table>& tables, const std::string& root,
                                      const AccumulatorShape& shape, bool whole = true);
/// Paths below the root of all tables that to_tables may make: what a file holds of them is all that from_tables reads.
std::vector<std::string> accumulator_paths();

/// Adds up what many files store of one dataset: what merging their from_tables would give, sooner.
class AccumulatorSum {
 public:
  explicit AccumulatorSum(const AccumulatorShape& shape) : sum_(shape) {}
  /// entry: place in the tables' leading dimension `dataset`. Throws as from_tables.
  void add(const TableIndex& tables, std::size_t entry, bool whole = true);
  /// The sum; to be called once, at the end.
  Accumulators take();

 private:
  void cut_to_capacity(std::size_t which);

  Accumulators sum_;  // but for the tables below
  std::array<CountSum, kTokenTables> token_tables_;
  CountSum group_counts_;
};

}  // namespace switchyard
