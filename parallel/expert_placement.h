#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace switchyard {

/// Which rank holds each expert of one MoE layer, and the order of a rank's experts (ascending id). Plain arithmetic.
class LayerPlacement {
 public:
  /// rank_of_expert: [n_experts], each in [0, n_ranks). Throws Error naming the expert whose rank is out of range.
  LayerPlacement(std::vector<std::int32_t> rank_of_expert, int n_ranks);

  int n_experts() const { return static_cast<int>(rank_of_.size()); }
  int n_ranks() const { return n_ranks_; }
  int rank_of(int expert) const { return rank_of_[static_cast<std::size_t>(expert)]; }
  /// Position of an expert among its rank's experts.
  int local_index(int expert) const { return local_index_[static_cast<std::size_t>(expert)]; }
  /// The experts of a rank, ascending.
  std::span<const std::int32_t> experts_of(int rank) const { return experts_of_[static_cast<std::size_t>(rank)]; }

 private:
  int n_ranks_;
  std::vector<std::int32_t> rank_of_, local_index_;
  std::vector<std::vector<std::int32_t>> experts_of_;
};

/// Expert -> rank for every MoE layer of a model.
class ExpertPlacement {
 public:
  /// Rank r holds experts [r*E/R, (r+1)*E/R): runs whose lengths differ by at most one.
  /// Throws UsageError when there are more ranks than experts: a rank would hold nothing. No layers (a dense model): an
  /// empty placement.
  static ExpertPlacement contiguous(int n_layers, int n_experts, int n_ranks);
  /// Expert e on rank e mod R. Throws like contiguous.
  static ExpertPlacement round_robin(int n_layers, int n_experts, int n_ranks);
  explicit ExpertPlacement(std::vector<LayerPlacement> layers);

  int n_layers() const { return static_cast<int>(layers_.size()); }
  const LayerPlacement& layer(int moe_layer) const { return layers_[static_cast<std::size_t>(moe_layer)]; }

 private:
  std::vector<LayerPlacement> layers_;
};

}  // namespace switchyard
