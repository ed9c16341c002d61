#include "parallel/expert_placement.h"

#include <algorithm>
#include <functional>
#include <string>
#include <utility>

#include "parallel/error.h"

namespace switchyard {
namespace {

void check_ranks(int n_experts, int n_ranks) {
  if (n_ranks < 1) throw UsageError("experts need at least one rank, not " + std::to_string(n_ranks));
  if (n_ranks > n_experts) {
    throw UsageError(
        std::to_string(n_ranks) + " ranks for " + std::to_string(n_experts) + " experts: a rank would hold none", {},
        "run on at most " + std::to_string(n_experts) + " ranks");
  }
}

std::vector<std::vector<std::int32_t>> as_lists(const std::vector<std::int32_t>& rank_of_expert) {
  std::vector<std::vector<std::int32_t>> lists;
  lists.reserve(rank_of_expert.size());
  for (const std::int32_t rank : rank_of_expert) lists.push_back({rank});
  return lists;
}

/// The same placement in every layer.
std::vector<LayerPlacement> repeated(const std::vector<std::int32_t>& rank_of_expert, int n_ranks, int n_layers) {
  return {static_cast<std::size_t>(n_layers), LayerPlacement(rank_of_expert, n_ranks)};
}

}  // namespace

CopyRule parse_copy_rule(std::string_view text) {
  if (text == "token") return CopyRule::by_token;
  if (text == "local") return CopyRule::local_first;
  throw UsageError("unknown rule '" + std::string(text) + "'", "--copies", "give token or local");
}

std::string_view to_string(CopyRule rule) { return rule == CopyRule::by_token ? "token" : "local"; }

LayerPlacement::LayerPlacement(const std::vector<std::int32_t>& rank_of_expert, int n_ranks)
    : LayerPlacement(as_lists(rank_of_expert), n_ranks, CopyRule::by_token) {}

LayerPlacement::LayerPlacement(const std::vector<std::vector<std::int32_t>>& ranks_of_expert, int n_ranks,
                               CopyRule rule)
    : n_ranks_(n_ranks), rule_(rule), first_copy_(1, 0) {
  if (n_ranks < 1) throw Error("a placement needs at least one rank, not " + std::to_string(n_ranks));
  experts_of_.resize(static_cast<std::size_t>(n_ranks));
  for (std::size_t expert = 0; expert < ranks_of_expert.size(); ++expert) {
    const std::vector<std::int32_t>& ranks = ranks_of_expert[expert];
    const std::string name = "expert " + std::to_string(expert);
    if (ranks.empty()) throw Error(name + " is placed on no rank");
    if (std::ranges::adjacent_find(ranks, std::greater_equal<>()) != ranks.end())
      throw Error("the ranks of " + name + " do not ascend: a rank holds one copy of an expert at most");
    for (const std::int32_t rank : ranks) {
      if (rank < 0 || rank >= n_ranks)
        throw Error(name + " is placed on rank " + std::to_string(rank) + ", but there are " + std::to_string(n_ranks) +
                    " ranks");
      auto& local = experts_of_[static_cast<std::size_t>(rank)];
      rank_of_.push_back(rank);
      logical_of_.push_back(static_cast<std::int32_t>(expert));
      local_index_.push_back(static_cast<std::int32_t>(local.size()));
      local.push_back(static_cast<std::int32_t>(expert));
    }
    first_copy_.push_back(static_cast<std::int32_t>(rank_of_.size()));
  }
  std::vector<std::int32_t> first_place(experts_of_.size() + 1, 0);
  for (std::size_t rank = 0; rank < experts_of_.size(); ++rank)
    first_place[rank + 1] = first_place[rank] + static_cast<std::int32_t>(experts_of_[rank].size());
  for (std::size_t p = 0; p < rank_of_.size(); ++p)
    place_of_.push_back(first_place[static_cast<std::size_t>(rank_of_[p])] + local_index_[p]);
}

std::size_t LayerPlacement::copy_for(int expert, std::size_t copies, std::int64_t token, int source_rank) const {
  if (rule_ == CopyRule::local_first) {
    const std::span<const std::int32_t> ranks = ranks_of(expert);
    const auto local = std::ranges::find(ranks, source_rank);
    if (local != ranks.end()) return static_cast<std::size_t>(local - ranks.begin());
  }
  return (static_cast<std::size_t>(token) + static_cast<std::size_t>(source_rank)) % copies;
}

ExpertPlacement ExpertPlacement::contiguous(int n_layers, int n_experts, int n_ranks) {
  if (n_layers > 0) check_ranks(n_experts, n_ranks);
  std::vector<std::int32_t> rank_of;
  for (std::int64_t rank = 0; rank < n_ranks; ++rank) {
    const std::int64_t end = (rank + 1) * n_experts / n_ranks;
    rank_of.resize(static_cast<std::size_t>(end), static_cast<std::int32_t>(rank));
  }
  return ExpertPlacement(repeated(rank_of, n_ranks, n_layers));
}

ExpertPlacement ExpertPlacement::round_robin(int n_layers, int n_experts, int n_ranks) {
  if (n_layers > 0) check_ranks(n_experts, n_ranks);
  std::vector<std::int32_t> rank_of;
  for (std::int32_t expert = 0; expert < n_experts; ++expert) rank_of.push_back(expert % n_ranks);
  return ExpertPlacement(repeated(rank_of, n_ranks, n_layers));
}

ExpertPlacement::ExpertPlacement(std::vector<LayerPlacement> layers) : layers_(std::move(layers)) {
  for (std::size_t layer = 1; layer < layers_.size(); ++layer) {
    if (layers_[layer].n_ranks() != layers_[0].n_ranks()) {
      throw Error("MoE layer " + std::to_string(layer) + " is placed on " + std::to_string(layers_[layer].n_ranks()) +
                  " ranks, layer 0 on " + std::to_string(layers_[0].n_ranks()));
    }
    if (layers_[layer].n_physical() != layers_[0].n_physical()) {
      throw Error("MoE layer " + std::to_string(layer) + " has " + std::to_string(layers_[layer].n_physical()) +
                  " copies of experts, layer 0 " + std::to_string(layers_[0].n_physical()));
    }
  }
}

}  // namespace switchyard
