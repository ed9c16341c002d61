#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "parallel/communicator.h"
#include "pipeline/block_source.h"
#include "pipeline/experiments/probe_sums.h"
#include "pipeline/model/model.h"
#include "pipeline/route_loop.h"

namespace switchyard {

struct ProbeOptions {
  Precision precision = Precision::f32;  // the model's
  std::vector<int> moe_layers;           // to probe, indices among MoE layers, ascending, at least one
  std::int64_t batch_tokens = 0;         // most tokens of a rank's step
  std::uint64_t shown_tokens = 0;        // of each dataset, whose choices are kept one by one
};

/// A token whose choices are kept.
struct ShownToken {
  std::uint32_t id = 0;
  std::uint32_t position = 0;  // in its window
  std::string document;        // the document's id
};

/// A corpus that was probed.
struct ProbedDataset {
  std::uint64_t tokens = 0;
  std::uint64_t documents = 0;
  std::vector<ProbedLayer> layers;          // as ProbeOptions::moe_layers
  std::vector<ShownToken> shown;            // its first tokens
  std::vector<std::uint64_t> shown_expert;  // [shown, layers, k] by weight descending
  std::vector<double> shown_weight;         // [shown, layers, k] combine weights
};

/// Collective. Runs every token of the source through the model, up to the last layer asked for, and in each of those
/// layers also through every expert. One entry for each of n_datasets corpora, whole on rank 0; equal bits for any
/// number of ranks, placement, transport and batch_tokens. on_step: called on rank 0.
std::vector<ProbedDataset> probe_experts(BlockSource& source, std::size_t n_datasets, Model& model,
                                         const ExpertPlacement& placement, const ProbeOptions& options,
                                         const std::function<void(const RouteProgress&)>& on_step,
                                         const Communicator& comm);

}  // namespace switchyard
