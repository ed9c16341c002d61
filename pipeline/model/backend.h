#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "parallel/exchange_plan.h"
#include "parallel/tensor.h"
#include "pipeline/model/attention_kernel.h"
#include "pipeline/model/batch.h"
#include "pipeline/model/checkpoint_tensors.h"
#include "pipeline/model/grouped_matmul_kind.h"
#include "pipeline/model/kv_cache.h"
#include "pipeline/model/model_config.h"
#include "pipeline/model/routing.h"
#include "pipeline/model/step_times.h"

/// What a forward pass computes with: the operations of kernels/ where a model's tensors lie, and weights in the form
/// that those want. The pass (model.cc) is written once against it. Tensors that go in and come out are on the
/// backend's device, but where it says "host". In every operation a row's bits depend on that row alone.
namespace switchyard {

/// Weights [n_out, n_in] of a product.
class Matrix {
 public:
  virtual ~Matrix() = default;
  /// in [n, n_in] -> [n, n_out] f32.
  virtual Tensor multiply(TensorView in) const = 0;
  /// x [n, n_out] f32 += in [n, n_in] * weights.
  virtual void add_product(Tensor& x, TensorView in) const = 0;
};

/// Weights of a root-mean-square norm.
class Norm {
 public:
  virtual ~Norm() = default;
  /// x [n, d] f32 / sqrt(mean(x^2) + epsilon) * weight -> [n, d] of type `out`.
  virtual Tensor apply(TensorView x, DType out) const = 0;
};

class Embedding {
 public:
  virtual ~Embedding() = default;
  /// tokens [n], host -> [n, d] f32, with the model's scale.
  virtual Tensor rows(std::span<const std::uint32_t> tokens) const = 0;
};

class Router {
 public:
  virtual ~Router() = default;
  /// h [n, d] f32 -> what it decides. Throws Error naming `where` and the token when a logit is not finite; a GPU's is
  /// found in SentSlots::rows_by_place.
  virtual Routing route(TensorView h, const std::string& where) const = 0;
};

/// The gated feed-forward block of a dense layer, or of a MoE layer's shared experts.
class FeedForward {
 public:
  virtual ~FeedForward() = default;
  /// x [n, d] f32 += block(h), h [n, d] of the weights' type.
  virtual void add_to(Tensor& x, TensorView h) const = 0;
};

/// A rank's experts of one MoE layer.
class Experts {
 public:
  virtual ~Experts() = default;
  /// The next one's weights, until there are as many as was said.
  virtual void add(FfnTensors weights) = 0;
  virtual std::size_t size() const = 0;
  /// rows [n, d] of the weights' type -> [n, d] of the same type; counts: ArrivedRows::counts.
  virtual Tensor run(TensorView rows, std::span<const std::int32_t> counts) const = 0;
  /// rows [n, d] of the weights' type -> the i-th's intermediate states activation(gate * x), [n, d_ff] f32.
  virtual Tensor gate_states(TensorView rows, std::size_t expert) const = 0;

  // Between two steps, experts that change ranks. Their weights are parts of host memory, as many and as large on all
  // ranks.
  /// Those of the i-th, for another rank to have. Until rearrange.
  virtual std::vector<std::span<std::byte>> leaving(std::size_t expert) = 0;
  /// Room for those of one that another rank sends. Until rearrange.
  virtual std::vector<std::span<std::byte>> room_for_one() = 0;
  /// Experts become these: i below size() is the i-th until now, size() + j what came into the j-th room. Those that
  /// are not named, and the rooms, are gone.
  virtual void rearrange(std::span<const std::size_t> which) = 0;
};

/// The output head, [vocabulary, d].
class Head {
 public:
  /// Columns of the vocabulary whose logits a GPU holds at once.
  static constexpr std::int64_t kColumns = 8192;

  virtual ~Head() = default;
  /// h [n, d] of its type; targets [n], host, as in Batch. Never holds a batch's logits.
  virtual TokenLosses losses(TensorView h, std::span<const std::int64_t> targets) const = 0;
  /// [n, vocabulary] f32, host. For a few rows.
  virtual Tensor logits(TensorView h) const = 0;
};

/// Attention within the windows of one batch.
class BatchAttention {
 public:
  virtual ~BatchAttention() = default;
  /// qkv [n, query heads | key heads | value heads] f32 of a decoder layer, not yet rotated -> [n, n_heads * head_dim]
  /// of the backend's type.
  virtual Tensor attend(TensorView qkv, int layer) = 0;
};

/// What a rank's tokens send to the experts of a MoE layer and what comes back, in parts of consecutive tokens.
class SentSlots {
 public:
  virtual ~SentSlots() = default;
  /// h [n, d] f32, of all tokens -> [n_send, d] of the backend's type, packed order.
  virtual Tensor pack(int part, TensorView h) const = 0;
  /// [n_parts, n_physical] what the plans are made of. On a GPU it is counted before rows are packed, and this waits
  /// for the counts alone. Throws the router's Error there.
  virtual std::span<const std::int32_t> rows_by_place() = 0;
  /// x [n, d] f32 += sum over a token's slots of weight * row, in slot order. returned: [n_send, d] packed order.
  virtual void add_weighted(int part, Tensor& x, TensorView returned) const = 0;
  /// [n_send] Euclidean norm of each slot's row, in slot order, host. returned: as in add_weighted. Waits for a GPU.
  virtual std::vector<double> norms(int part, TensorView returned) const = 0;
};

/// Rows that arrived at a MoE layer's experts.
class ArrivedRows {
 public:
  virtual ~ArrivedRows() = default;
  /// Arrived order -> the order that experts are run in, and back.
  virtual Tensor group(Tensor arrived) const = 0;
  virtual Tensor ungroup(Tensor grouped) const = 0;
  /// [runs, local experts]: of that order, rows of each expert, in one run or several one after another.
  virtual std::span<const std::int32_t> counts() const = 0;
};

class Backend {
 public:
  virtual ~Backend() = default;

  /// Where tensors lie, and what products compute in.
  virtual Device device() const = 0;
  virtual DType type() const = 0;
  /// Host memory that a checkpoint's tensors are read into before they become weights.
  virtual Device staging() const = 0;

  // Weights, of tensors in that memory. They may be on their way until loaded() returns.
  /// Of parts of equal width, one below the other.
  virtual std::unique_ptr<Matrix> make_matrix(std::vector<Tensor> parts) = 0;
  virtual std::unique_ptr<Norm> make_norm(std::vector<float> weight) = 0;
  virtual std::unique_ptr<Embedding> make_embedding(Tensor table) = 0;
  virtual std::unique_ptr<Router> make_router(Tensor weights) = 0;
  virtual std::unique_ptr<FeedForward> make_feed_forward(FfnTensors weights) = 0;
  virtual std::unique_ptr<Experts> make_experts(std::int64_t count) = 0;
  virtual std::unique_ptr<Head> make_head(Tensor weights) = 0;
  virtual void loaded() = 0;

  // Operations without weights.
  virtual Tensor zeros(std::int64_t rows, std::int64_t cols) const = 0;  // f32
  /// x [n, d] f32 += rows [n, d] f32.
  virtual void add_rows(Tensor& x, TensorView rows) const = 0;
  /// Row i is x[rows[i]], f32; rows: host.
  virtual Tensor take_rows(TensorView x, std::span<const std::int32_t> rows) const = 0;
  /// The batch, and the cache where there is one, outlive the result.
  virtual std::unique_ptr<BatchAttention> make_attention(const Batch& batch, KvCache* cache) = 0;
  /// What the routing, which need not outlive it, sends from `rank` in n_parts parts. where: as Router::route. to_send:
  /// ExpertTransport::row_memory, of rows that leave.
  virtual std::unique_ptr<SentSlots> send_slots(const Routing& routing, const std::string& where,
                                                const LayerPlacement& placement, int rank, int n_parts,
                                                BufferSource* to_send) const = 0;
  /// The plan outlives the result.
  virtual std::unique_ptr<ArrivedRows> arrived_rows(const ExchangePlan& plan, BufferSource* to_send) const = 0;
  /// A clock of its own, for one model.
  virtual std::unique_ptr<LapClock> make_clock() const = 0;
};

/// Throws Error when this CPU cannot multiply the type.
std::unique_ptr<Backend> make_cpu_backend(const ModelConfig& config, DType type);
/// For the GPU of this process (use_gpu). attention, context, grouped_matmul: as in ModelOptions. Throws Error in a
/// build without CUDA, and with its reason where cuDNN is to attend and cannot.
std::unique_ptr<Backend> make_gpu_backend(const ModelConfig& config, DType type, AttentionKernel attention,
                                          std::int64_t context, GroupedMatmulKind grouped_matmul);

}  // namespace switchyard
