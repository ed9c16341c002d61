#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

namespace switchyard {

/// Which copy of a replicated expert a slot goes to. Both depend on the slot alone, so that no result depends on
/// timing.
enum class CopyRule : std::uint8_t {
  by_token,     // copy (t + r) mod n for the t-th token of rank r's step: n equal parts, also over ranks of few tokens
  local_first,  // the copy on the token's own rank where there is one, else as by_token: less traffic, parts may differ
};
/// "token" | "local"; throws UsageError naming the choices.
CopyRule parse_copy_rule(std::string_view text);
std::string_view to_string(CopyRule rule);

/// Which ranks hold each expert of one MoE layer, and the order of a rank's experts (ascending id). An expert may have
/// several copies, on different ranks. Copies are the layer's physical experts, numbered by expert, then rank: without
/// replicas a physical expert has its expert's id. Plain arithmetic.
class LayerPlacement {
 public:
  /// rank_of_expert: [n_experts], each in [0, n_ranks). Throws Error naming the expert whose rank is out of range.
  LayerPlacement(const std::vector<std::int32_t>& rank_of_expert, int n_ranks);
  /// ranks_of_expert: [n_experts], each expert's ranks, ascending, at least one. Throws Error naming the expert.
  LayerPlacement(const std::vector<std::vector<std::int32_t>>& ranks_of_expert, int n_ranks, CopyRule rule);

  int n_experts() const { return static_cast<int>(first_copy_.size()) - 1; }
  int n_physical() const { return static_cast<int>(rank_of_.size()); }
  bool has_replicas() const { return n_physical() > n_experts(); }
  CopyRule rule() const { return rule_; }
  int n_ranks() const { return n_ranks_; }
  /// Ranks of an expert's copies, ascending.
  std::span<const std::int32_t> ranks_of(int expert) const {
    return std::span(rank_of_).subspan(at(first_copy_, expert), at(first_copy_, expert + 1) - at(first_copy_, expert));
  }
  /// Rank of a physical expert, and the expert that it is a copy of.
  int rank_of(int physical) const { return rank_of_[static_cast<std::size_t>(physical)]; }
  int logical_of(int physical) const { return logical_of_[static_cast<std::size_t>(physical)]; }
  /// Position of a physical expert among its rank's experts.
  int local_index(int physical) const { return local_index_[static_cast<std::size_t>(physical)]; }
  /// Place of a physical expert: its position among all of them by rank, then expert. The order in which rows are sent.
  int place_of(int physical) const { return place_of_[static_cast<std::size_t>(physical)]; }
  /// The experts of a rank, ascending.
  std::span<const std::int32_t> experts_of(int rank) const { return experts_of_[static_cast<std::size_t>(rank)]; }
  /// The physical expert that a token of a rank's step goes to when it chose this expert.
  int physical_for(int expert, std::int64_t token, int source_rank) const {
    const std::size_t first = at(first_copy_, expert);
    const std::size_t copies = at(first_copy_, expert + 1) - first;
    if (copies == 1) return static_cast<int>(first);
    return static_cast<int>(first + copy_for(expert, copies, token, source_rank));
  }

 private:
  static std::size_t at(const std::vector<std::int32_t>& values, int i) {
    return static_cast<std::size_t>(values[static_cast<std::size_t>(i)]);
  }
  std::size_t copy_for(int expert, std::size_t copies, std::int64_t token, int source_rank) const;

  int n_ranks_;
  CopyRule rule_ = CopyRule::by_token;
  std::vector<std::int32_t> first_copy_;                                     // [n_experts + 1] physical id
  std::vector<std::int32_t> rank_of_, logical_of_, local_index_, place_of_;  // [n_physical]
  std::vector<std::vector<std::int32_t>> experts_of_;                        // [n_ranks]
};

/// Expert -> ranks for every MoE layer of a model; every layer has as many physical experts.
class ExpertPlacement {
 public:
  /// Rank r holds experts [r*E/R, (r+1)*E/R): runs whose lengths differ by at most one.
  /// Throws UsageError when there are more ranks than experts: a rank would hold nothing. No layers (a dense model): an
  /// empty placement.
  static ExpertPlacement contiguous(int n_layers, int n_experts, int n_ranks);
  /// Expert e on rank e mod R. Throws like contiguous.
  static ExpertPlacement round_robin(int n_layers, int n_experts, int n_ranks);
  /// Throws Error naming the layer whose ranks or physical experts are not as many as those of layer 0.
  explicit ExpertPlacement(std::vector<LayerPlacement> layers);

  int n_layers() const { return static_cast<int>(layers_.size()); }
  /// Of each layer; 0 without layers.
  int n_physical() const { return layers_.empty() ? 0 : layers_.front().n_physical(); }
  const LayerPlacement& layer(int moe_layer) const { return layers_[static_cast<std::size_t>(moe_layer)]; }

 private:
  std::vector<LayerPlacement> layers_;
};

}  // namespace switchyard
