#include "parallel/expert_placement.h"

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

/// The same placement in every layer.
std::vector<LayerPlacement> repeated(const std::vector<std::int32_t>& rank_of_expert, int n_ranks, int n_layers) {
  return {static_cast<std::size_t>(n_layers), LayerPlacement(rank_of_expert, n_ranks)};
}

}  // namespace

LayerPlacement::LayerPlacement(std::vector<std::int32_t> rank_of_expert, int n_ranks)
    : n_ranks_(n_ranks), rank_of_(std::move(rank_of_expert)) {
  if (n_ranks < 1) throw Error("a placement needs at least one rank, not " + std::to_string(n_ranks));
  experts_of_.resize(static_cast<std::size_t>(n_ranks));
  local_index_.reserve(rank_of_.size());
  for (std::size_t expert = 0; expert < rank_of_.size(); ++expert) {
    const std::int32_t rank = rank_of_[expert];
    if (rank < 0 || rank >= n_ranks) {
      throw Error("expert " + std::to_string(expert) + " is placed on rank " + std::to_string(rank) +
                  ", but there are " + std::to_string(n_ranks) + " ranks");
    }
    auto& local = experts_of_[static_cast<std::size_t>(rank)];
    local_index_.push_back(static_cast<std::int32_t>(local.size()));
    local.push_back(static_cast<std::int32_t>(expert));
  }
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
  }
}

}  // namespace switchyard
