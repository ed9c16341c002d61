#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

#include "parallel/communicator.h"
#include "parallel/expert_placement.h"
#include "parallel/tensor.h"
#include "pipeline/model/model.h"

namespace switchyard {

/// The outputs of all experts of a layer for tokens of this rank.
class ExpertOutputs {
 public:
  /// from: [R] what each rank sent, its experts ascending, each [n_tokens, width] of `type`.
  ExpertOutputs(std::vector<std::vector<std::byte>> from, const LayerPlacement& placement, DType type,
                std::int64_t n_tokens, std::int64_t width)
      : from_(std::move(from)), placement_(&placement), type_(type), n_tokens_(n_tokens), width_(width) {}

  std::int64_t n_tokens() const { return n_tokens_; }
  std::int64_t width() const { return width_; }
  /// A token's outputs by expert, into [n_experts, width] f32.
  void copy_token(std::int64_t token, float* to) const;

 private:
  std::vector<std::vector<std::byte>> from_;
  const LayerPlacement* placement_;
  DType type_;
  std::int64_t n_tokens_, width_;
};

/// Receives what forced experts compute, chunk by chunk.
struct ForcedExpertsSink {
  /// Where the expert is: its intermediate states [n, d_ff] f32 of tokens of all ranks.
  std::function<void(int local_expert, TensorView states)> states;
  /// Where the tokens are: outputs for this rank's rows from `first_row` on. None on a rank whose rows are used up.
  std::function<void(std::int64_t first_row, const ExpertOutputs& outputs)> outputs;
};

inline constexpr std::int64_t kForcedChunkBytes = 64 << 20;

/// Collective. Sends every rank's rows through every routed expert of a MoE layer, wherever the router sent them;
/// shared experts take no part. Experts stay where they are: a row travels once to each other rank, and an output once
/// to its token's rank. That is the least by which all pairs of a token's outputs can meet: of two outputs that never
/// travel, both are on one rank, so that all outputs but those of one rank must travel.
///
/// rows: [n, d_model] of the experts' type, in host memory; n may differ between ranks and be 0. Rows are taken in
/// chunks such that the outputs of a chunk for one rank take at most chunk_bytes (or are of one token); with copies on
/// the way a rank holds about four times as much, and besides d_ff floats for each row of the chunk of all ranks.
void run_forced_experts(const Model& model, const LayerPlacement& placement, int moe_layer, TensorView rows,
                        const ForcedExpertsSink& sink, const Communicator& comm,
                        std::int64_t chunk_bytes = kForcedChunkBytes);

/// GPU memory that a rank's experts take for a chunk.
std::uint64_t forced_experts_bytes(const ModelConfig& config, Precision precision, int n_ranks,
                                   std::int64_t chunk_bytes = kForcedChunkBytes);

}  // namespace switchyard
