#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "parallel/communicator.h"
#include "parallel/node_map.h"
#include "pipeline/analysis/placement_search.h"
#include "pipeline/analysis/placement_steps.h"
#include "pipeline/model/model.h"
#include "pipeline/recorder.h"

namespace switchyard {

struct RebalanceOptions {
  std::uint64_t every = 0;  // blocks; 0: experts stay where they are
  PlacementMethod method = PlacementMethod::search;
  SearchEffort effort;
};

/// What it places experts on, of that placement: with nodes of equally many ranks, in order, traffic between them
/// counts as in `place`; else all ranks are taken for equally near. Throws UsageError when the method is not defined
/// for the model's experts, copies and ranks.
PlacementTask rebalance_task(const RebalanceOptions& options, const ExpertPlacement& placement, const NodeMap& nodes);

/// One change of places.
struct Rebalanced {
  ExpertMoves moves;
  double seconds = 0;  // finding the placement and moving experts
  // Mean over steps and layers of the mean over the largest rank load, of the steps that it was fitted on: as they
  // were run, and as they would have been.
  double balancedness_before = 0, balancedness_after = 0;
};

/// Sums of the changes of places of a run.
struct RebalanceTotals {
  std::uint64_t times = 0;
  ExpertMoves moves;
  double seconds = 0;
};

/// Places the experts of a running model anew, by the steps that were run since the last time. Rows do not depend on
/// it. Every rank fits a share of the layers.
class Rebalancer {
 public:
  /// Throws as rebalance_task.
  Rebalancer(Model& model, const RebalanceOptions& options, const NodeMap& nodes, const Communicator& comm);

  /// A block ended, on every rank.
  void count_block() { ++blocks_; }
  /// Whether the experts are to be placed anew once the finished blocks are committed: the same on all ranks.
  bool due() const { return options_.every > 0 && blocks_ >= options_.every; }
  /// What a segment recorded, before its experts move; rank 0's is used.
  void add(const RecordedBlocks& recorded);
  /// Collective, between two steps.
  Rebalanced rebalance();

 private:
  std::vector<LayerDemand> shared_demands();
  std::vector<LayerPlan> fitted(const std::vector<LayerPlan>& before, const std::vector<LayerDemand>& demands) const;

  Model& model_;
  RebalanceOptions options_;
  PlacementTask task_;
  const Communicator& comm_;
  std::uint64_t blocks_ = 0;
  StepSlots steps_;                         // rank 0: since the last time
  std::vector<std::vector<double>> pairs_;  // rank 0: [L] of [E, E], likewise
};

}  // namespace switchyard
