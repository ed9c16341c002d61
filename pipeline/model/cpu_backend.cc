#include <algorithm>
#include <cstring>
#include <utility>

#include "parallel/error.h"
#include "pipeline/kernels/attention.h"
#include "pipeline/kernels/cpu.h"
#include "pipeline/kernels/matmul.h"
#include "pipeline/kernels/router.h"
#include "pipeline/kernels/rows.h"
#include "pipeline/kernels/token_loss.h"
#include "pipeline/model/backend.h"

namespace switchyard {
namespace {

class CpuMatrix : public Matrix {
 public:
  explicit CpuMatrix(TensorView weights) : weights_(weights) {}
  Tensor multiply(TensorView in) const override { return matmul(in, weights_); }
  void add_product(Tensor& x, TensorView in) const override { add_matmul(x, in, weights_); }

 private:
  PackedWeights weights_;
};

class CpuNorm : public Norm {
 public:
  CpuNorm(std::vector<float> weight, float epsilon) : weight_(std::move(weight)), epsilon_(epsilon) {}
  Tensor apply(TensorView x, DType out) const override { return rms_norm(x, weight_, epsilon_, out); }

 private:
  std::vector<float> weight_;
  float epsilon_;
};

class CpuEmbedding : public Embedding {
 public:
  CpuEmbedding(Tensor table, float scale) : table_(std::move(table)), scale_(scale) {}
  Tensor rows(std::span<const std::uint32_t> tokens) const override { return embed(table_, tokens, scale_); }

 private:
  Tensor table_;
  float scale_;
};

class CpuRouter : public Router {
 public:
  CpuRouter(Tensor weights, RouterRule rule) : weights_(std::move(weights)), rule_(rule) {}
  Routing route(TensorView h, const std::string& where) const override {
    return switchyard::route(h, weights_, rule_, where);
  }

 private:
  Tensor weights_;
  RouterRule rule_;
};

class CpuFeedForward : public FeedForward {
 public:
  explicit CpuFeedForward(GatedFfn ffn) : ffn_(std::move(ffn)) {}
  void add_to(Tensor& x, TensorView h) const override { add_gated_ffn(x, h, ffn_); }

 private:
  GatedFfn ffn_;
};

class CpuExperts : public Experts {
 public:
  CpuExperts(const ModelConfig& config, DType type)
      : d_model_(config.d_model), d_ff_(config.d_ff), type_(type), activation_(config.activation) {}
  void add(FfnTensors weights) override { ffns_.emplace_back(weights.gate, weights.up, weights.down, activation_); }
  std::size_t size() const override { return ffns_.size(); }
  Tensor run(TensorView rows, std::span<const std::int32_t> counts) const override {
    return run_experts(rows, counts, ffns_);
  }
  Tensor gate_states(TensorView rows, std::size_t expert) const override {
    return gate_activation(rows, ffns_[expert]);
  }
  // As they are packed, which is not the same on CPUs of every kind.
  std::vector<std::span<std::byte>> leaving(std::size_t expert) override { return ffns_[expert].parts(); }
  std::vector<std::span<std::byte>> room_for_one() override {
    return rooms_.emplace_back(d_model_, d_ff_, type_, activation_).parts();
  }
  void rearrange(std::span<const std::size_t> which) override {
    std::vector<GatedFfn> after;
    for (const std::size_t i : which)
      after.push_back(std::move(i < ffns_.size() ? ffns_[i] : rooms_[i - ffns_.size()]));
    ffns_ = std::move(after);
    rooms_.clear();
  }

 private:
  std::int64_t d_model_, d_ff_;
  DType type_;
  Activation activation_;
  std::vector<GatedFfn> ffns_, rooms_;
};

class CpuHead : public Head {
 public:
  explicit CpuHead(TensorView weights) : weights_(weights) {}
  TokenLosses losses(TensorView h, std::span<const std::int64_t> targets) const override {
    return token_loss(h, weights_, targets);
  }
  Tensor logits(TensorView h) const override { return matmul(h, weights_); }

 private:
  PackedWeights weights_;
};

class CpuAttention : public BatchAttention {
 public:
  CpuAttention(const Batch& batch, KvCache* cache, const AttentionShape& shape, RopeTable& rope, DType type)
      : batch_(batch), cache_(cache), shape_(shape), rope_(rope), type_(type) {}

  Tensor attend(TensorView qkv, int layer) override {
    if (cache_ != nullptr)
      return continue_attention(qkv, {batch_.window_offsets, batch_.sequence, batch_.start}, shape_, rope_, type_,
                                cache_->layer(layer));
    const Heads heads = split_heads(qkv, batch_.window_offsets, shape_, rope_, type_);  // rotated
    return attention(heads, batch_.window_offsets, shape_);
  }

 private:
  const Batch& batch_;
  KvCache* cache_;
  const AttentionShape& shape_;
  RopeTable& rope_;
  DType type_;
};

class CpuSlots : public SentSlots {
 public:
  CpuSlots(const Routing& routing, const LayerPlacement& placement, int rank, int n_parts, DType type)
      : weights_(routing.weights), top_k_(routing.top_k), type_(type) {
    const ExpertIds ids = routing.expert_ids();
    const std::int64_t n = ids.n_tokens();
    for (int part = 0; part < n_parts; ++part) {
      const auto tokens = tokens_of_part(n, part, n_parts);
      const SlotPlaces places(ids, tokens, placement, rank);
      rows_by_place_.insert(rows_by_place_.end(), places.rows().begin(), places.rows().end());
      parts_.push_back({tokens.first, places.pack_order()});
    }
  }
  Tensor pack(int part, TensorView h) const override { return gather_slots(h, at(part).pack_order, top_k_, type_); }
  std::span<const std::int32_t> rows_by_place() override { return rows_by_place_; }
  void add_weighted(int part, Tensor& x, TensorView returned) const override {
    switchyard::add_weighted(x, at(part).first_token, returned, weights_, top_k_, at(part).pack_order);
  }
  std::vector<double> norms(int part, TensorView returned) const override {
    return slot_norms(returned, at(part).pack_order, at(part).first_token * top_k_);
  }

 private:
  struct Part {
    std::int64_t first_token;
    std::vector<std::int32_t> pack_order;
  };
  const Part& at(int part) const { return parts_[static_cast<std::size_t>(part)]; }

  std::vector<float> weights_;  // the routing's, which its observer may keep
  std::vector<std::int32_t> rows_by_place_;
  std::vector<Part> parts_;
  int top_k_;
  DType type_;
};

class CpuArrived : public ArrivedRows {
 public:
  explicit CpuArrived(const ExchangePlan& plan) : plan_(plan) {
    if (!as_arrived()) group_order_ = plan.group_order();
  }
  Tensor group(Tensor arrived) const override {
    return as_arrived() ? std::move(arrived) : gather(std::move(arrived), group_order_);
  }
  Tensor ungroup(Tensor grouped) const override {
    return as_arrived() ? std::move(grouped) : scatter(std::move(grouped), group_order_);
  }
  std::span<const std::int32_t> counts() const override {
    return as_arrived() ? plan_.arriving() : plan_.rows_per_expert();
  }

 private:
  /// Long runs are not worth copying: less than a tile of each is computed for nothing.
  bool as_arrived() const {
    return plan_.n_receive() >= 8 * kTileRows * static_cast<std::int64_t>(plan_.arriving().size());
  }

  const ExchangePlan& plan_;
  std::vector<std::int32_t> group_order_;  // of rows that are not taken as they arrived
};

class CpuClock : public LapClock {
 public:
  void note() override { times_.push_back(StepTimes::Clock::now()); }
  std::vector<StepTimes::Clock::time_point> take() override { return std::exchange(times_, {}); }

 private:
  std::vector<StepTimes::Clock::time_point> times_;
};

/// Stacks matrices of equal width.
Tensor stack(std::vector<Tensor> parts) {
  if (parts.size() == 1) return std::move(parts.front());
  std::int64_t rows = 0;
  for (const Tensor& part : parts) rows += part.rows();
  Tensor all(parts.front().dtype(), rows, parts.front().cols());
  std::byte* to = all.bytes();
  for (const Tensor& part : parts) {
    const auto bytes = static_cast<std::size_t>(part.rows() * part.row_bytes());
    std::memcpy(to, part.bytes(), bytes);
    to += bytes;
  }
  return all;
}

class CpuBackend : public Backend {
 public:
  CpuBackend(const ModelConfig& config, DType type)
      : config_(config), type_(type), shape_(config.attention_shape()), rope_(config.rope_theta, config.head_dim) {}

  Device device() const override { return Device::cpu; }
  DType type() const override { return type_; }
  Device staging() const override { return Device::cpu; }

  std::unique_ptr<Matrix> make_matrix(std::vector<Tensor> parts) override {
    return std::make_unique<CpuMatrix>(stack(std::move(parts)));
  }
  std::unique_ptr<Norm> make_norm(std::vector<float> weight) override {
    return std::make_unique<CpuNorm>(std::move(weight), config_.norm_epsilon);
  }
  std::unique_ptr<Embedding> make_embedding(Tensor table) override {
    return std::make_unique<CpuEmbedding>(std::move(table), config_.embedding_scale);
  }
  std::unique_ptr<Router> make_router(Tensor weights) override {
    return std::make_unique<CpuRouter>(std::move(weights), config_.router_rule());
  }
  std::unique_ptr<FeedForward> make_feed_forward(FfnTensors weights) override {
    return std::make_unique<CpuFeedForward>(GatedFfn(weights.gate, weights.up, weights.down, config_.activation));
  }
  std::unique_ptr<Experts> make_experts(std::int64_t /*count*/) override {
    return std::make_unique<CpuExperts>(config_, type_);
  }
  std::unique_ptr<Head> make_head(Tensor weights) override { return std::make_unique<CpuHead>(weights); }
  void loaded() override {}

  Tensor zeros(std::int64_t rows, std::int64_t cols) const override {
    Tensor tensor(DType::f32, rows, cols);
    std::fill_n(tensor.data<float>(), rows * cols, 0.0F);
    return tensor;
  }
  void add_rows(Tensor& x, TensorView rows) const override { switchyard::add_rows(x, rows); }
  Tensor take_rows(TensorView x, std::span<const std::int32_t> rows) const override {
    return gather_slots(x, rows, 1, DType::f32);
  }
  std::unique_ptr<BatchAttention> make_attention(const Batch& batch, KvCache* cache) override {
    return std::make_unique<CpuAttention>(batch, cache, shape_, rope_, type_);
  }
  std::unique_ptr<SentSlots> send_slots(const Routing& routing, const std::string& /*where*/,
                                        const LayerPlacement& placement, int rank, int n_parts,
                                        BufferSource* /*to_send*/) const override {
    return std::make_unique<CpuSlots>(routing, placement, rank, n_parts, type_);
  }
  std::unique_ptr<ArrivedRows> arrived_rows(const ExchangePlan& plan, BufferSource* /*to_send*/) const override {
    return std::make_unique<CpuArrived>(plan);
  }
  std::unique_ptr<LapClock> make_clock() const override { return std::make_unique<CpuClock>(); }

 private:
  ModelConfig config_;
  DType type_;
  AttentionShape shape_;
  RopeTable rope_;
};

}  // namespace

std::unique_ptr<Backend> make_cpu_backend(const ModelConfig& config, DType type) {
  if (type == DType::bf16 && !cpu_has_bf16()) {
    throw Error("this CPU does not multiply bf16 (it has neither AMX nor AVX512-BF16)", "", "use --precision f32");
  }
  return std::make_unique<CpuBackend>(config, type);
}

}  // namespace switchyard
