#pragma once

#include <string>
#include <utility>
#include <vector>

#include "io/hdf5/table.h"
#include "io/routing_schema.h"
#include "io/tokenizer/tokenizer.h"
#include "pipeline/experiments/probe.h"

namespace switchyard {

/// Mean intermediate states are kept while those of all datasets take no more: 64 MiB.
inline constexpr std::uint64_t kMostStateBytes = 64 << 20;

/// Everything probe.h5 holds but /model (io/README.md). moe_layers: those probed, indices among the model's; names: of
/// the datasets; tokenizer: nullptr when there is none.
std::vector<Table> probe_tables(const std::vector<ProbedDataset>& datasets, const std::vector<std::string>& names,
                                const ModelFacts& model, const std::vector<int>& moe_layers,
                                const Tokenizer* tokenizer);

/// What each group of probe.h5 is about.
std::vector<std::pair<std::string, std::string>> probe_group_descriptions();

}  // namespace switchyard
