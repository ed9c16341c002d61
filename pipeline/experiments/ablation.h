#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string_view>
#include <vector>

#include "pipeline/model/model.h"

namespace switchyard {

/// zero: the expert's output is 0, all weights stay. drop: the expert is masked before the top k are chosen, and
/// weights are made of the chosen ones' as the family does. flip: the runner-up takes the place of every token's k-th
/// expert.
enum class AblationMode : std::uint8_t { zero, drop, flip };
/// "zero" | "drop" | "flip"; throws UsageError naming the choices.
AblationMode parse_ablation_mode(std::string_view text);
std::string_view to_string(AblationMode mode);

/// What is done to a model, one change at a time: each variant at each layer.
struct AblationPlan {
  AblationMode mode = AblationMode::zero;
  std::vector<int> layers;   // MoE layers, by their index among those, ascending
  std::vector<int> experts;  // ascending; a variant each; of no meaning for flip, whose only variant is the layer's

  std::size_t variants() const { return mode == AblationMode::flip ? 1 : experts.size(); }
};

/// Throws UsageError when the mode needs a runner-up and the model sends every token to all experts of a layer.
void require_runner_up(AblationMode mode, const ModelConfig& config);

// What is known of windows, in order. Sums of a window are made token by token on one rank, so that they are the same
// bits for any spread of windows over ranks and batches.

/// The model as it is, over the tokens that have a next one.
struct WindowScore {
  double loss = 0;  // nats, sum
  std::uint64_t tokens = 0;
  std::uint64_t right = 0;  // the next token is the arg-max
};
/// The changed model on the same tokens.
struct AblatedScore {
  double loss = 0;           // nats, sum
  std::uint32_t lost = 0;    // right before, wrong now
  std::uint32_t gained = 0;  // wrong before, right now
};
/// What the router and an expert did in the model as it is, over all tokens.
struct ExpertUse {
  std::uint64_t count = 0;   // tokens that chose the expert
  double weight = 0;         // sum of g, their combine weights
  double weighted_norm = 0;  // sum of g ||f(x)||, f(x) the expert's output
  double norm = 0;           // sum of ||f(x)||
};
struct WindowSums {
  std::vector<WindowScore> baseline;  // [windows]
  std::vector<AblatedScore> ablated;  // [windows, layers, variants]
  std::vector<ExpertUse> use;         // [windows, layers, experts of the model]
};

/// Runs batches through a model, on its device, and through each of its changed versions. What lies below a changed
/// layer is computed once for all: a layer l of L costs variants x (L - l) / L forward passes, all together one more.
class AblationSweep {
 public:
  /// Throws as require_runner_up. `model` outlives this.
  AblationSweep(Model& model, AblationPlan plan);

  /// Collective. Adds the batch's windows to `sums`. on_variant is called after each change on each layer and says, the
  /// same on all ranks, whether to go on; false leaves `sums` unfinished and returns false.
  bool step(const Batch& batch, WindowSums& sums, const std::function<bool()>& on_variant);

  /// Memory that a step takes besides a forward pass's of a batch of so many tokens.
  static std::uint64_t bytes(const ModelConfig& config, std::int64_t batch_tokens);

  const AblationPlan& plan() const { return plan_; }
  const ModelConfig& config() const { return model_.config(); }

 private:
  Model& model_;
  AblationPlan plan_;
};

}  // namespace switchyard
