#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include "io/hdf5/table.h"
#include "pipeline/analysis/statistics.h"

namespace switchyard {

/// Slots of one dataset by group of documents (document_groups.h): what is resampled. Only groups that have slots.
struct GroupedSlots {
  std::string name;
  int layers = 0;             // L, MoE layers
  int experts = 0;            // E
  std::vector<double> slots;  // [groups, L, E] whole numbers

  std::size_t row() const { return static_cast<std::size_t>(layers) * static_cast<std::size_t>(experts); }
  std::size_t groups() const { return row() == 0 ? 0 : slots.size() / row(); }
};

GroupedSlots grouped_slots(const Dataset& dataset);

/// The datasets of stats files, in order. A name that occurs in several files is preceded by its file's. Throws Error
/// for a file that is not there, holds no groups of documents, or is of a model with other layers or experts.
std::vector<GroupedSlots> read_grouped_slots(const std::vector<std::filesystem::path>& files);

struct CompareOptions {
  int bootstrap = 1000;      // resamples of each dataset's groups
  int permutations = 1000;   // of the groups of a pair
  double confidence = 0.95;  // of intervals
  std::uint64_t seed = 0;    // the same seed gives the same figures, on any number of threads and ranks
};

/// Usage of the experts, resampled: groups of documents drawn with replacement, as many as there are (Efron, 1979).
/// [bootstrap, L, E], the shares of a layer sum to 1. A dataset's draws depend on the seed and its name alone. Empty
/// for fewer than two groups.
std::vector<float> bootstrap_usage(const GroupedSlots& dataset, const CompareOptions& options);

/// One distance between two datasets at one layer.
struct Distance {
  double value = 0;  // of the observed usage
  double bias = 0;   // mean of the resamples minus `value`: how much noise alone adds
  double low = 0;    // basic bootstrap interval (Davison and Hinkley, 1997, eq. 5.6): it mirrors the resamples at
  double high = 0;   // `value`, which takes the bias away; not below 0. NaN without two groups on both sides
  double p = 0;      // permutation test: (1 + permutations at least as far) / (1 + permutations); NaN as above
  double q = 0;      // p adjusted over layers (Benjamini and Hochberg, 1995)
};

/// [L] each. Nats: Jensen-Shannon divergence of usage; total variation: half the sum of |differences|.
struct PairDistances {
  std::vector<Distance> jensen_shannon, total_variation;
};

/// a_usage, b_usage: bootstrap_usage of each. The permutation test deals the groups of both datasets anew into two
/// heaps of the same sizes. It is exact when groups are exchangeable, that is while both datasets have about as many
/// documents to a group.
PairDistances compare_pair(const GroupedSlots& a, const GroupedSlots& b, std::span<const float> a_usage,
                           std::span<const float> b_usage, const CompareOptions& options);

/// Benjamini and Hochberg's adjusted p-values, in the order given; NaN stays NaN and does not count.
std::vector<double> benjamini_hochberg(std::span<const double> p);

/// 1/2 sum |p - q|, in [0, 1].
double total_variation(std::span<const double> p, std::span<const double> q);

/// Figures of all datasets together: /specialisation/* (usage over the pooled usage) and /dataset_information/*
/// (I(expert; dataset) by layer, with its bias).
std::vector<Table> pooled_tables(const std::vector<GroupedSlots>& datasets);

/// /compare/{jsd,tv} and their _bias, _low, _high, _p, _q, each [dataset, dataset2, layer]: symmetric, NaN on the
/// diagonal. pairs: those of (0, 1), (0, 2), ..., (1, 2), ...
std::vector<Table> distance_tables(const std::vector<GroupedSlots>& datasets, const std::vector<PairDistances>& pairs);

}  // namespace switchyard
