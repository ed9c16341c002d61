#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "io/hdf5/table.h"
#include "parallel/communicator.h"
#include "pipeline/analysis/compare.h"

namespace switchyard {

/// How far two runs, say of two checkpoints, choose the same experts for the same tokens of one corpus.
struct Saturation {
  std::string corpus;
  std::uint64_t tokens = 0;
  std::vector<double> value;     // [L] mean over tokens of |S_t and S'_t| / k (Muennighoff et al., OLMoE, 2024)
  std::vector<double> low;       // [L] bootstrap percentile interval over groups of documents; NaN for fewer than two
  std::vector<double> high;      // [L]
  std::vector<double> expected;  // [L] for independent choices of the same usage: sum_e (c_e / T) (c'_e / T) / k
};

/// Collective. Of the corpora of two runs, whose routing.h5 are given; ranks share the rows. The result is whole on
/// rank 0. Throws Error when a run holds no token rows, when they are of models of other shape, or when the tokens are
/// not the same, naming the first that differs.
std::vector<Saturation> router_saturation(const std::filesystem::path& first, const std::filesystem::path& second,
                                          const CompareOptions& options, const Communicator& comm);

/// /saturation/*, each [corpus, layer].
std::vector<Table> saturation_tables(const std::vector<Saturation>& corpora);

}  // namespace switchyard
