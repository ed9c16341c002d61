#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "parallel/expert_placement.h"
#include "pipeline/analysis/placement_figures.h"

namespace switchyard {

/// Slots of each expert by step: what a placement's balance over time is made of.
struct StepSlots {
  std::size_t layers = 0, experts = 0;
  std::vector<std::uint32_t> slots;   // [steps, L, E]
  std::vector<std::uint64_t> block;   // [steps] of a run; empty where steps are of none
  std::vector<std::string> datasets;  // [steps] corpus that the step is of, likewise

  std::size_t steps() const { return layers == 0 ? 0 : slots.size() / (layers * experts); }
  /// [E] of a step and layer.
  std::span<const std::uint32_t> at(std::size_t step, std::size_t layer) const {
    return std::span(slots).subspan((step * layers + layer) * experts, experts);
  }
};

/// Adds steps of which the slots of each physical expert are known, copies of an expert added up. slots: [steps, L, P];
/// logical: [L, P] the expert that each is a copy of.
void add_slots(std::span<const std::uint32_t> slots, std::span<const std::uint16_t> logical, StepSlots& steps);

/// The steps of a run's /dispatch, in order, copies of an expert added up. corpus: only its steps. Throws Error when
/// the folder holds no run, or one that no ranks routed.
StepSlots recorded_steps(const std::filesystem::path& run, const std::optional<std::string>& corpus);

/// Gives each layer's demand `most` of the steps, evenly spaced, or all when there are fewer; those without slots are
/// left out.
void add_steps(const StepSlots& steps, std::size_t most, std::vector<LayerDemand>& layers);

/// Experts of a run's tokens, in corpus order.
struct RoutedTokens {
  int top_k = 0;
  std::size_t n_experts = 0;
  std::vector<std::vector<std::uint16_t>> experts;  // [L] of [tokens, k]

  std::size_t tokens() const { return experts.empty() ? 0 : experts.front().size() / static_cast<std::size_t>(top_k); }
};

/// The first `most` token rows of a run, of one corpus or of all. Throws Error when the record holds none.
RoutedTokens read_routed_tokens(const std::filesystem::path& run, const std::optional<std::string>& corpus,
                                std::uint64_t most);

/// Steps of step_tokens tokens each, cut in order; the rest is left out unless it is all there is.
StepSlots cut_into_steps(const RoutedTokens& routed, std::size_t step_tokens);

/// A model where no steps were recorded: slots drawn independently by each layer's load (multinomial), of a fixed seed.
/// Tokens of real text are alike, so that real steps are less balanced than these.
StepSlots drawn_steps(std::span<const LayerDemand> layers, int top_k, std::uint64_t step_tokens, std::size_t steps,
                      std::uint64_t seed);

/// Of one layer, over steps with at least a slot; r_g the slots of rank g in a step.
struct LayerBalance {
  double balancedness_mean = 0;   // mean of (mean_g r + 1e-5) / (max_g r + 1e-5)
  double balancedness_ratio = 0;  // sum of mean_g r over sum of max_g r
  double imbalance_p50 = 0, imbalance_p90 = 0, imbalance_p99 = 0, imbalance_max = 0;  // of max_g r / mean_g r - 1
  double straggler_share = 0;  // sum of slowest minus mean rank over sum of the slowest, seconds by `cost`, or slots
};
std::vector<LayerBalance> balance_over_steps(const StepSlots& steps, std::span<const LayerPlan> plans, int ranks,
                                             const std::optional<CostModel>& cost);
/// The mean over layers of each figure.
LayerBalance mean_over_layers(std::span<const LayerBalance> layers);

/// Where a layer's tokens go, by replay.
struct LayerTraffic {
  double ranks_per_token = 0, nodes_per_token = 0;                // distinct ones that hold its copies
  double remote_slots_per_token = 0;                              // copies on another rank than the token
  double remote_node_slots_per_token = 0;                         // on another node
  double remote_ranks_per_token = 0, remote_nodes_per_token = 0;  // distinct other ranks, nodes
  double received_max_over_mean = 0;  // remote slots that a rank receives in a step: largest over mean, mean over steps
};
/// Tokens of a step lie on ranks in equal runs: token i of n on rank i R / n. Each takes the copy of an expert that it
/// would take in a run.
std::vector<LayerTraffic> replay_traffic(const RoutedTokens& routed, std::span<const LayerPlan> plans,
                                         const PlacementTask& task, CopyRule rule, std::size_t step_tokens);
/// The mean over layers of each figure.
LayerTraffic mean_over_layers(std::span<const LayerTraffic> layers);

}  // namespace switchyard
