#include "pipeline/analysis/placement_methods.h"

#include <algorithm>
#include <functional>
#include <numeric>
#include <tuple>

#include "parallel/error.h"

namespace switchyard {
namespace {

/// Places of the values, largest first; equal ones keep their order.
std::vector<std::size_t> descending(std::span<const double> values) {
  std::vector<std::size_t> order(values.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return values[a] > values[b]; });
  return order;
}

/// Items of each pack, in the order that they were put there: equally many, the heaviest of those left into the
/// lightest pack that has room. Where a pack takes one item there is nothing to balance, and each keeps its place.
std::vector<std::vector<std::size_t>> pack_equally(std::span<const double> weight, std::size_t packs) {
  const std::size_t room = weight.size() / packs;
  std::vector<std::vector<std::size_t>> items(packs);
  if (room == 1) {
    for (std::size_t i = 0; i < packs; ++i) items[i] = {i};
    return items;
  }
  std::vector<double> sum(packs, 0);
  for (const std::size_t item : descending(weight)) {
    std::size_t lightest = packs;
    for (std::size_t p = 0; p < packs; ++p)
      if (items[p].size() < room && (lightest == packs || sum[p] < sum[lightest])) lightest = p;
    items[lightest].push_back(item);
    sum[lightest] += weight[item];
  }
  return items;
}

/// The expert whose copies carry most, among those with fewer than `most`.
std::size_t busiest(std::span<const double> load, const std::vector<int>& copies, int most) {
  std::size_t best = load.size();
  for (std::size_t e = 0; e < load.size(); ++e)
    if (copies[e] < most && (best == load.size() || load[e] / copies[e] > load[best] / copies[best])) best = e;
  return best;
}

/// Experts, then those that are copied, in the order in which replicate() chooses them.
std::vector<std::size_t> replicated_in_order(std::span<const double> load, std::size_t copies, int most) {
  std::vector<std::size_t> experts(load.size());
  std::iota(experts.begin(), experts.end(), std::size_t{0});
  std::vector<int> n_copies(load.size(), 1);
  while (experts.size() < copies) {
    experts.push_back(busiest(load, n_copies, most));
    ++n_copies[experts.back()];
  }
  return experts;
}

/// Expert of physical slot p before any load is known.
std::int32_t initial_expert(int p, std::span<const double> load) {
  return static_cast<std::int32_t>(static_cast<std::size_t>(p) % load.size());
}

/// What the pigeonhole principle says of R ranks and E single experts: of the j R + 1 heaviest, some rank holds j + 1;
/// and where every rank must be full, the heaviest lies with the lightest.
double pigeonhole_load(std::span<const double> load, const PlacementTask& task) {
  std::vector<double> sorted(load.begin(), load.end());
  std::sort(sorted.begin(), sorted.end(), std::greater<>());
  const auto ranks = static_cast<std::size_t>(task.ranks);
  double least = 0;
  for (std::size_t j = 1; j * ranks < sorted.size(); ++j) {
    const auto end = sorted.begin() + static_cast<std::ptrdiff_t>(j * ranks + 1);
    least = std::max(least, std::accumulate(end - static_cast<std::ptrdiff_t>(j) - 1, end, 0.0));
  }
  const auto room = static_cast<std::size_t>(task.capacity(static_cast<int>(load.size())));
  if (!sorted.empty() && room * ranks == sorted.size())
    least = std::max(
        least, std::accumulate(sorted.end() - static_cast<std::ptrdiff_t>(room) + 1, sorted.end(), sorted.front()));
  return least;
}

}  // namespace

LayerPlan place_contiguous(std::span<const double> load, const PlacementTask& task) {
  const int physical = task.physical(static_cast<int>(load.size()));
  std::vector<PlacedCopy> copies;
  for (std::int32_t rank = 0; rank < task.ranks; ++rank)
    while (static_cast<std::int64_t>(copies.size()) < std::int64_t{rank + 1} * physical / task.ranks)
      copies.push_back({initial_expert(static_cast<int>(copies.size()), load), rank});
  return plan_of(std::move(copies), load, task.ranks);
}

LayerPlan place_round_robin(std::span<const double> load, const PlacementTask& task) {
  const auto ranks = static_cast<std::size_t>(task.ranks);
  LayerPlan plan(load.size());
  std::vector<int> held(ranks, 0);
  for (int p = 0; p < task.physical(static_cast<int>(load.size())); ++p) {
    auto& of_expert = plan[static_cast<std::size_t>(initial_expert(p, load))];
    // Whose turn it is, but for ranks that hold more than others, or the expert already.
    const auto turn = [&](std::int32_t rank) {
      return std::tuple(std::count(of_expert.begin(), of_expert.end(), rank), held[static_cast<std::size_t>(rank)],
                        (rank + task.ranks - p % task.ranks) % task.ranks);
    };
    std::int32_t next = 0;
    for (std::int32_t rank = 1; rank < task.ranks; ++rank)
      if (turn(rank) < turn(next)) next = rank;
    of_expert.push_back(next);
    ++held[static_cast<std::size_t>(next)];
  }
  for (auto& of_expert : plan) std::sort(of_expert.begin(), of_expert.end());
  return plan;
}

std::vector<int> replicate(std::span<const double> load, int copies, int most) {
  std::vector<int> n_copies(load.size(), 1);
  for (int made = static_cast<int>(load.size()); made < copies; ++made) ++n_copies[busiest(load, n_copies, most)];
  return n_copies;
}

LayerPlan place_greedy(std::span<const double> load, const PlacementTask& task) {
  const auto experts = static_cast<int>(load.size());
  const std::vector<int> n_copies = replicate(load, task.physical(experts), task.ranks);
  std::vector<double> share(load.begin(), load.end());
  for (std::size_t e = 0; e < share.size(); ++e) share[e] /= n_copies[e];
  const int room = task.capacity(experts);
  std::vector<double> sum(static_cast<std::size_t>(task.ranks), 0);
  std::vector<int> held(sum.size(), 0);
  std::vector<PlacedCopy> placed;
  for (const std::size_t e : descending(share)) {
    std::vector<bool> has(sum.size(), false);
    for (int c = 0; c < n_copies[e]; ++c) {
      // A rank that has the expert already is taken only where no other has room; plan_of takes the two apart.
      std::size_t best = sum.size();
      for (std::size_t r = 0; r < sum.size(); ++r)
        if (held[r] < room &&
            (best == sum.size() || (has[best] && !has[r]) || (has[best] == has[r] && sum[r] < sum[best])))
          best = r;
      has[best] = true;
      sum[best] += share[e];
      ++held[best];
      placed.push_back({static_cast<std::int32_t>(e), static_cast<std::int32_t>(best)});
    }
  }
  return plan_of(std::move(placed), load, task.ranks);
}

std::vector<std::int32_t> eplb_layout(std::span<const double> load, const PlacementTask& task) {
  const auto groups = static_cast<std::size_t>(task.groups);
  const auto nodes = static_cast<std::size_t>(task.nodes);
  const std::size_t physical = load.size() + static_cast<std::size_t>(task.replicas);
  const std::size_t group_size = load.size() / groups;
  std::vector<double> group_load(groups, 0);
  for (std::size_t e = 0; e < load.size(); ++e) group_load[e / group_size] += load[e];

  std::vector<std::int32_t> layout;
  for (const std::vector<std::size_t>& of_node : pack_equally(group_load, nodes)) {
    std::vector<std::size_t> experts;
    for (const std::size_t group : of_node)
      for (std::size_t e = group * group_size; e < (group + 1) * group_size; ++e) experts.push_back(e);
    std::vector<double> node_load;
    for (const std::size_t e : experts) node_load.push_back(load[e]);

    const std::vector<std::size_t> copies = replicated_in_order(node_load, physical / nodes, task.ranks / task.nodes);
    std::vector<double> n_copies(experts.size(), 0);
    for (const std::size_t of : copies) ++n_copies[of];
    std::vector<double> copy_load;
    for (const std::size_t of : copies) copy_load.push_back(node_load[of] / n_copies[of]);

    for (const std::vector<std::size_t>& of_rank :
         pack_equally(copy_load, static_cast<std::size_t>(task.ranks) / nodes))
      for (const std::size_t copy : of_rank) layout.push_back(static_cast<std::int32_t>(experts[copies[copy]]));
  }
  return layout;
}

PlacementMethod parse_placement_method(std::string_view name, const char* option) {
  const auto found = std::find(kPlacementMethods.begin(), kPlacementMethods.end(), name);
  if (found != kPlacementMethods.end()) return static_cast<PlacementMethod>(found - kPlacementMethods.begin());
  std::string known;
  for (const std::string_view method : kPlacementMethods) known.append(known.empty() ? "" : ", ").append(method);
  throw UsageError("unknown method '" + std::string(name) + "'", option, "give one of " + known);
}

std::string_view to_string(PlacementMethod method) { return kPlacementMethods[static_cast<std::size_t>(method)]; }

std::optional<std::string> why_undefined(PlacementMethod method, const PlacementTask& task, int experts) {
  if (method != PlacementMethod::eplb && method != PlacementMethod::eplb_hierarchical) return std::nullopt;
  if (task.physical(experts) % task.ranks != 0)
    return std::to_string(task.physical(experts)) + " copies are not equally many on each of " +
           std::to_string(task.ranks) + " ranks";
  if (method == PlacementMethod::eplb) return std::nullopt;
  if (task.groups == 1) return "there is one group of experts (--groups)";
  if (task.groups % task.nodes != 0)
    return std::to_string(task.groups) + " groups are not equally many on each of " + std::to_string(task.nodes) +
           " nodes";
  if (task.physical(experts) > experts * (task.ranks / task.nodes))
    return std::to_string(task.physical(experts)) + " copies are more than one on each rank of an expert's node";
  return std::nullopt;
}

LayerPlan place_by(PlacementMethod method, std::span<const double> load, const PlacementTask& task) {
  if (method == PlacementMethod::contiguous) return place_contiguous(load, task);
  if (method == PlacementMethod::round_robin) return place_round_robin(load, task);
  if (method == PlacementMethod::greedy) return place_greedy(load, task);
  PlacementTask packed = task;
  if (method == PlacementMethod::eplb) packed.nodes = packed.groups = 1;
  const std::vector<std::int32_t> layout = eplb_layout(load, packed);
  const std::size_t of_rank = layout.size() / static_cast<std::size_t>(task.ranks);
  const std::size_t of_node = layout.size() / static_cast<std::size_t>(packed.nodes);
  const int ranks_of_node = task.ranks / packed.nodes;
  LayerPlan plan(load.size());
  for (std::size_t node = 0; node < static_cast<std::size_t>(packed.nodes); ++node) {
    std::vector<PlacedCopy> copies;
    for (std::size_t p = 0; p < of_node; ++p)
      copies.push_back({layout[node * of_node + p], static_cast<std::int32_t>(p / of_rank)});
    const LayerPlan within = plan_of(std::move(copies), load, ranks_of_node);  // what is taken apart stays on its node
    for (std::size_t e = 0; e < plan.size(); ++e)
      for (const std::int32_t rank : within[e])
        plan[e].push_back(rank + static_cast<std::int32_t>(node) * ranks_of_node);
  }
  return plan;
}

double least_largest_load(std::span<const double> load, const PlacementTask& task) {
  const std::vector<int> n_copies = replicate(load, task.physical(static_cast<int>(load.size())), task.ranks);
  double least = std::accumulate(load.begin(), load.end(), 0.0) / task.ranks;
  for (std::size_t e = 0; e < load.size(); ++e) least = std::max(least, load[e] / n_copies[e]);
  return task.replicas > 0 ? least : std::max(least, pigeonhole_load(load, task));
}

}  // namespace switchyard
