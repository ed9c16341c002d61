#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "pipeline/analysis/placement_steps.h"
#include "pipeline/analysis/statistics.h"

namespace switchyard {

/// How placements of a study are made.
struct PlacementChoice {
  PlacementMethod method = PlacementMethod::search;
  ObjectiveWeights weights;
  SearchEffort effort;
  CopyRule copies = CopyRule::by_token;
};

/// On paper: ranks 1, 2, 4, ... and steps of several sizes.
struct Simulation {
  struct Machine {
    PlacementTask task;
    std::vector<Placement> placements;  // [method] contiguous, and the chosen one; without layers where not defined
  };
  struct Figures {
    std::vector<LayerBalance> balance;  // [L]
    std::vector<LayerTraffic> traffic;  // [L], where token rows were replayed
  };
  std::vector<PlacementMethod> methods;
  std::vector<Machine> machines;
  std::vector<std::size_t> step_tokens;  // of all ranks together
  std::vector<std::size_t> steps;        // of each size
  std::vector<Figures> figures;          // [method, machine, step size]; empty where the method is not defined

  const Figures& at(std::size_t method, std::size_t machine, std::size_t size) const {
    return figures[(method * machines.size() + machine) * step_tokens.size() + size];
  }
};

/// The task of `ranks` virtual ranks, of as many a node as `largest` has. A rank never stays empty: where there are
/// fewer copies than ranks, replicas make up for it, one copy for each rank.
PlacementTask virtual_task(const PlacementTask& largest, int ranks, int experts);

/// Places `layers` on 1, 2, 4, ... up to largest.ranks virtual ranks and replays steps of each size: rows in order cut
/// into steps, or, without rows, `drawn` steps drawn by the layers' loads, which is a model.
Simulation simulate(std::span<const LayerDemand> layers, int top_k, const RoutedTokens* rows,
                    const PlacementTask& largest, const PlacementChoice& choice,
                    const std::vector<std::size_t>& step_tokens, std::size_t drawn,
                    const std::optional<CostModel>& cost);

/// How a placement ages. A block's balancedness: mean over layers of mean over largest rank load of its slots.
struct Drift {
  enum Policy : std::uint8_t { contiguous, fixed, periodic, oracle };
  static constexpr std::size_t kPolicies = 4;
  std::vector<std::uint64_t> block;               // [B] as the run numbers them
  std::vector<std::string> dataset;               // [B]
  std::vector<std::vector<double>> balancedness;  // [policy] of [B]; NaN where the policy has no fit yet
};
/// fixed: fitted on the first `every` blocks; periodic: every `every` blocks on those before; oracle: on the block
/// itself. Pairs are not known of blocks: search balances alone. Throws Error when the run has no more than `every`
/// blocks.
Drift placement_drift(const StepSlots& steps, const PlacementTask& task, const PlacementChoice& choice,
                      std::size_t every);

/// What a placement fitted on some text promises, and what it gives on other text: balancedness, mean over layers.
struct Holdout {
  struct Method {
    PlacementMethod method = PlacementMethod::contiguous;
    double predicted = 0;  // on the half of the documents that it is fitted on
    double held_out = 0;   // on the other half
    double best = 0;       // of the same method fitted on that other half
  };
  std::vector<Method> halves;                    // empty where documents are not known, as of published counts
  std::vector<std::vector<double>> by_datasets;  // [fitted on, placed] by the chosen method
};
/// Halves: groups of documents of even and odd number (/groups), of the datasets together.
Holdout placement_holdout(const Statistics& statistics, const std::vector<std::size_t>& datasets,
                          const PlacementTask& task, const PlacementChoice& choice,
                          const std::vector<PlacementMethod>& methods);

}  // namespace switchyard
