#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "parallel/communicator.h"
#include "parallel/expert_placement.h"
#include "parallel/tensor.h"
#include "pipeline/experiments/exact_sum.h"
#include "pipeline/experiments/forced_experts.h"

namespace switchyard {

/// What forcing every expert of a layer on every token of a dataset shows (Lo et al., A Closer Look into
/// Mixture-of-Experts in Large Language Models, 2024). Formulas: pipeline/analysis/README.md. NaN without tokens.
struct ProbedLayer {
  std::vector<double> output_cosine, output_angular;  // [E, E] means over tokens
  std::vector<std::uint64_t> norm_score_rank;         // [E, E] tokens x experts by (rank of norm, rank of score)
  std::vector<double> output_norm, output_norm_std;   // [E]
  std::vector<float> intermediate_mean;               // [E, d_ff]
  std::vector<double> intermediate_cosine;            // [E, E] of those means
  std::vector<double> sparsity;                       // [E] shares
};

/// Sums of one layer and dataset on one rank: of outputs those of its tokens, of intermediate states those of its
/// experts (16 bytes a neuron). Equal bits for any batches and ranks.
class ProbeSums {
 public:
  /// where: the layer, for errors.
  ProbeSums(const LayerPlacement& placement, int rank, std::int64_t d_ff, std::string where);

  /// states [n, d_ff] of one of this rank's experts. Throws Error when one is not finite.
  void add_states(int local_expert, TensorView states);
  /// scores: [outputs.n_tokens(), E] router probabilities of those tokens. Throws Error when an output is not finite.
  void add_outputs(const ExpertOutputs& outputs, TensorView scores);

  /// Collective: all ranks' sums as figures of n_tokens tokens, whole on rank 0.
  ProbedLayer finish(std::uint64_t n_tokens, const Communicator& comm) const;

 private:
  void add_norms_and_ranks(std::span<const double> norms, std::span<const float> scores);

  const LayerPlacement* placement_;
  std::size_t n_experts_, d_ff_;
  std::string where_;
  std::vector<std::int32_t> my_experts_;
  std::vector<ExactSum> cosine_, angular_;     // [E, E], expert2 <= expert alone
  std::vector<ExactSum> norm_, norm_squared_;  // [E]
  std::vector<std::uint64_t> ranks_;           // [E, E]
  std::vector<ExactSum> states_;               // [local experts, d_ff]
  std::vector<std::uint64_t> sparse_;          // [E] elements near 0
};

/// Place of each value when they are sorted, the largest at 0; of equal ones the first comes first.
std::vector<std::size_t> descending_ranks(std::span<const double> values);

}  // namespace switchyard
