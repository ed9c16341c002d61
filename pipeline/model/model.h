#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string_view>

#include "io/checkpoint.h"
#include "parallel/communicator.h"
#include "parallel/expert_placement.h"
#include "parallel/expert_transport.h"
#include "pipeline/model/attention_kernel.h"
#include "pipeline/model/batch.h"
#include "pipeline/model/expert_moves.h"
#include "pipeline/model/grouped_matmul_kind.h"
#include "pipeline/model/kv_cache.h"
#include "pipeline/model/model_config.h"
#include "pipeline/model/routing.h"
#include "pipeline/model/step_times.h"

namespace switchyard {

/// What matmuls compute in. bf16: bf16 operands, f32 accumulation.
enum class Precision : std::uint8_t { bf16, f32 };

struct ModelOptions {
  Precision precision = Precision::bf16;
  Device device = Device::cpu;  // or gpu: that of this process (use_gpu)
  AttentionKernel attention = AttentionKernel::own;
  std::int64_t context = 0;                                        // tokens of the longest windows, if that is known
  GroupedMatmulKind grouped_matmul = GroupedMatmulKind::cublaslt;  // of GPUs, in bf16
  /// Rows of half of a batch's tokens fly while experts run on the other half's; of no effect on one rank.
  bool overlap = false;
};

/// Memory a rank needs, of its device, from the checkpoint's shapes alone (for --dry-run and the start-up table).
struct ModelMemory {
  std::uint64_t replicated_bytes = 0;  // embeddings, attention, routers, norms, head
  std::uint64_t expert_bytes = 0;      // this rank's experts
  std::uint64_t activation_bytes = 0;  // peak, for a batch of the given size whose slots are spread evenly
  std::uint64_t transport_bytes = 0;   // of them: rows sent and received
};

/// Told while weights are read: bytes of this rank's that are there, and of all.
using LoadProgress = std::function<void(std::uint64_t there, std::uint64_t all)>;

/// A decoder-only transformer whose routed experts are spread over ranks; everything else is replicated.
class Model {
 public:
  /// Reads the replicated part and this rank's experts. `comm` and `transport` outlive the model.
  /// Throws Error: a tensor that is missing or of another shape than the configuration says, a placement for another
  /// model or number of ranks, bf16 on a CPU without it.
  Model(const Checkpoint& checkpoint, const ModelConfig& config, const ExpertPlacement& placement,
        const Communicator& comm, ExpertTransport& transport, ModelOptions options,
        const LoadProgress& on_progress = {});
  ~Model();
  Model(Model&&) noexcept;

  /// Collective: each rank brings its own batch, which may be empty. `observer` sees every MoE layer's routing.
  /// Throws Error when a router gives NaN or infinity, naming layer and token, and when the batch is malformed.
  TokenLosses forward(const Batch& batch, RoutingObserver& observer);

  // The parts of forward, for passes that share what lies below a layer. embed and head are not collective.
  /// The batch's embeddings, [n, d_model] f32: what enters layer 0. Throws Error when the batch is malformed.
  Tensor embed(const Batch& batch);
  /// Collective. x [n, d_model] f32, what enters layer `first`, becomes what leaves layer `last` - 1; decoder layers.
  /// With a cache, windows continue its sequences: they see what passed these layers before, and are added to it.
  /// Throws Error when a window does not fit its sequence.
  void run_layers(Tensor& x, const Batch& batch, int first, int last, RoutingObserver& observer,
                  KvCache* cache = nullptr);
  /// Loss and arg-max of what left the last layer.
  TokenLosses head(TensorView x, const Batch& batch);
  /// A cache for sequences of at most so many tokens.
  KvCache make_cache(std::span<const std::int64_t> most_tokens) const;
  /// What each expert of a MoE layer that this rank holds, ascending, makes of rows [n, d_model] of the experts' type,
  /// in host memory, wherever a router would send them. on_expert gets its number on this rank, intermediate states
  /// activation(gate * x) [n, d_ff] f32 and outputs [n, d_model] as in a forward pass, in host memory. Not collective.
  void force_experts(
      int moe_layer, TensorView rows,
      const std::function<void(int local_expert, TensorView states, TensorView outputs)>& on_expert) const;

  /// Output logits [m, vocabulary] f32, in host memory, of rows of the last layer's hidden state x [n, d_model] f32.
  /// Not collective. For a few rows: forward never holds a batch's logits.
  Tensor logits(TensorView x, std::span<const std::int32_t> rows) const;

  const ModelConfig& config() const;
  /// Where experts are now; lives as long as the model.
  const ExpertPlacement& placement() const;
  /// Collective, between two steps. Experts go from rank to rank until they lie as `placement` says; results do not
  /// change. Throws Error: a placement for another model or number of ranks, ranks on CPUs of several kinds.
  ExpertMoves move_experts(const ExpertPlacement& placement);
  /// As ModelOptions::overlap, from the next step on. The same on all ranks.
  void set_overlap(bool overlap);
  /// Where the time went since embed, or forward, was called last.
  StepTimes take_times();
  /// Bytes of one dispatched row.
  std::uint64_t row_bytes() const;

  static ModelMemory memory(const ModelConfig& config, const ExpertPlacement& placement, int rank, ModelOptions options,
                            std::int64_t batch_tokens);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

/// bf16 where this CPU has AMX or AVX512-BF16, else f32.
Precision best_precision();

}  // namespace switchyard
