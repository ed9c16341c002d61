#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "pipeline/analysis/placement_plan.h"

namespace switchyard {

/// Ways to place a layer's experts by their load alone. load: [E] slots of each expert, or any weights of at least 0.
/// Ties go to the lower id, so that plans are the same everywhere.

/// Copy p is of expert p mod E; ranks take equal runs of copies, [r P / R, (r + 1) P / R): what serving engines begin
/// with.
LayerPlan place_contiguous(std::span<const double> load, const PlacementTask& task);
/// The same copies, dealt to ranks in turn.
LayerPlan place_round_robin(std::span<const double> load, const PlacementTask& task);
/// Copies by replicate(), then the one of largest load to the rank of least load that has room for it and lacks its
/// expert (longest processing time first: Graham, 1969).
LayerPlan place_greedy(std::span<const double> load, const PlacementTask& task);

/// Copies of each expert, [E], `copies` in all: one each, and each further one to the expert of largest load per copy
/// that has fewer than `most`. No other numbers make the largest load per copy smaller.
std::vector<int> replicate(std::span<const double> load, int copies, int most);

/// Expert of each physical slot, [P]; rank r holds slots [r P / R, (r + 1) P / R). As DeepSeek describe EPLB: groups of
/// experts are packed onto nodes, experts replicated within each node, copies packed onto its ranks. Packing puts the
/// heaviest of what is left into the lightest pack that has room; with one group and one node it is EPLB's global
/// policy. No expert gets more copies than its node has ranks; two on one rank are possible. Needs task.groups to
/// divide E, task.nodes the groups, task.ranks P.
std::vector<std::int32_t> eplb_layout(std::span<const double> load, const PlacementTask& task);

enum class PlacementMethod : std::uint8_t { contiguous, round_robin, greedy, eplb, eplb_hierarchical, search };
inline constexpr std::array<std::string_view, 6> kPlacementMethods = {"contiguous", "round_robin",       "greedy",
                                                                      "eplb",       "eplb_hierarchical", "search"};
/// Throws UsageError naming the option and the choices.
PlacementMethod parse_placement_method(std::string_view name, const char* option = "--method");
std::string_view to_string(PlacementMethod method);
/// Why a method is not defined for the task, or nothing where it is.
std::optional<std::string> why_undefined(PlacementMethod method, const PlacementTask& task, int experts);
/// A layer's plan by any method but `search`, which must be defined.
LayerPlan place_by(PlacementMethod method, std::span<const double> load, const PlacementTask& task);

/// No plan of the task has a largest rank load below this: the mean over ranks; the largest load of a copy, as
/// replicate() leaves it; and without replicas, the least that the pigeonhole principle puts together on one rank.
double least_largest_load(std::span<const double> load, const PlacementTask& task);

}  // namespace switchyard
