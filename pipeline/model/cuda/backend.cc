#include "pipeline/model/backend.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "parallel/device/device_array.h"
#include "parallel/device/device_memory.h"
#include "parallel/device/download.h"
#include "parallel/device/stream.h"
#include "pipeline/kernels/cuda/activation.h"
#include "pipeline/kernels/cuda/attention.h"
#include "pipeline/kernels/cuda/fused_attention.h"
#include "pipeline/kernels/cuda/matmul.h"
#include "pipeline/kernels/cuda/router.h"
#include "pipeline/kernels/cuda/router_logits.h"
#include "pipeline/kernels/cuda/rows.h"
#include "pipeline/kernels/cuda/slot_order.h"
#include "pipeline/kernels/cuda/token_loss.h"
#include "pipeline/model/cuda/gpu_experts.h"
#include "pipeline/model/cuda/weight_uploads.h"

namespace switchyard {
namespace {

class GpuMatrix : public Matrix {
 public:
  explicit GpuMatrix(Tensor weights) : weights_(std::move(weights)) {}
  Tensor multiply(TensorView in) const override { return gpu::matmul(in, weights_); }
  void add_product(Tensor& x, TensorView in) const override { gpu::add_matmul(x, in, weights_); }

 private:
  Tensor weights_;
};

class GpuNorm : public Norm {
 public:
  GpuNorm(Tensor weight, float epsilon) : weight_(std::move(weight)), epsilon_(epsilon) {}
  Tensor apply(TensorView x, DType out) const override { return gpu::rms_norm(x, weight_, epsilon_, out); }

 private:
  Tensor weight_;  // [1, d]
  float epsilon_;
};

class GpuEmbedding : public Embedding {
 public:
  GpuEmbedding(Tensor table, float scale) : table_(std::move(table)), scale_(scale) {}
  Tensor rows(std::span<const std::uint32_t> tokens) const override {
    return gpu::embed(table_, DeviceArray<std::uint32_t>(tokens), scale_);
  }

 private:
  Tensor table_;
  float scale_;
};

class GpuRouter : public Router {
 public:
  GpuRouter(Tensor weights, RouterRule rule) : weights_(std::move(weights)), rule_(rule) {}
  Routing route(TensorView h, const std::string& /*where*/) const override {
    return gpu::choose_experts(gpu::router_logits(h, weights_), rule_);
  }

 private:
  Tensor weights_;
  RouterRule rule_;
};

class GpuFeedForward : public FeedForward {
 public:
  GpuFeedForward(Tensor gate_up, Tensor down, Activation activation)
      : gate_up_(std::move(gate_up)), down_(std::move(down)), activation_(activation) {}
  void add_to(Tensor& x, TensorView h) const override {
    gpu::add_matmul(x, gpu::activate(gpu::matmul(h, gate_up_), activation_, down_.dtype()), down_);
  }

 private:
  Tensor gate_up_;  // [2 d_ff, d]
  Tensor down_;     // [d, d_ff]
  Activation activation_;
};

class GpuHead : public Head {
 public:
  explicit GpuHead(Tensor weights) : weights_(std::move(weights)) {}

  TokenLosses losses(TensorView h, std::span<const std::int64_t> targets) const override {
    gpu::LossOfChunks losses{DeviceArray<std::int64_t>(targets)};
    for (std::int64_t column = 0; column < weights_.rows() && h.rows() > 0; column += kColumns)
      losses.take(gpu::matmul(h, weights_.rows(column, std::min(column + kColumns, weights_.rows()))), column);
    return losses.finish();
  }

  Tensor logits(TensorView h) const override { return copy_to(Device::cpu, gpu::matmul(h, weights_)); }

 private:
  Tensor weights_;
};

/// Rotary angles in GPU memory, for as many positions as were asked for.
class DeviceAngles {
 public:
  DeviceAngles(const ModelConfig& config) : table_(config.rope_theta, config.head_dim), head_dim_(config.head_dim) {}

  const gpu::DeviceRope& of(std::int64_t positions) {
    if (positions > known_) {
      known_ = std::max(positions, 2 * known_);
      rope_ = gpu::copy_rope(table_, known_, head_dim_);
    }
    return rope_;
  }

 private:
  RopeTable table_;
  int head_dim_;
  std::int64_t known_ = 0;
  gpu::DeviceRope rope_;
};

/// Of any windows, by our own kernels.
class GpuAttention : public BatchAttention {
 public:
  GpuAttention(const Batch& batch, KvCache* cache, const AttentionShape& shape, DeviceAngles& angles, DType type)
      : windows_(cache == nullptr ? gpu::DeviceWindows(batch.window_offsets)
                                  : gpu::DeviceWindows({batch.window_offsets, batch.sequence, batch.start},
                                                       cache->layer(0).offsets)),
        cache_(cache),
        shape_(shape),
        rope_(angles.of(windows_.positions)),
        type_(type) {}

  Tensor attend(TensorView qkv, int layer) override {
    if (cache_ != nullptr) {
      const CachedKeys keys = cache_->layer(layer);
      return attend(qkv, *keys.k, *keys.v);
    }
    const std::int64_t columns = static_cast<std::int64_t>(shape_.n_kv_heads) * shape_.head_dim;
    Tensor k(type_, qkv.rows(), columns, Device::gpu);
    Tensor v(type_, qkv.rows(), columns, Device::gpu);
    return attend(qkv, k, v);
  }

 private:
  Tensor attend(TensorView qkv, Tensor& k, Tensor& v) const {
    const Tensor q = gpu::split_heads(qkv, windows_, shape_, rope_, k, v);
    return gpu::attention(q, k, v, windows_, shape_);
  }

  gpu::DeviceWindows windows_;
  KvCache* cache_;
  const AttentionShape& shape_;
  const gpu::DeviceRope& rope_;
  DType type_;
};

/// Of windows that see themselves alone, by cuDNN.
class GpuFusedAttention : public BatchAttention {
 public:
  GpuFusedAttention(const Batch& batch, const gpu::FusedAttention& attention, const AttentionShape& shape,
                    DeviceAngles& angles)
      : windows_(batch.window_offsets),
        packed_(gpu::lay_out(batch.window_offsets, shape)),
        attention_(attention),
        shape_(shape),
        rope_(angles.of(windows_.positions)) {}

  Tensor attend(TensorView qkv, int /*layer*/) override {
    const std::int64_t columns = static_cast<std::int64_t>(shape_.n_kv_heads) * shape_.head_dim;
    const std::int64_t n = qkv.rows();
    Tensor k(DType::bf16, n + packed_.spare_rows, columns, Device::gpu);
    Tensor v(DType::bf16, n + packed_.spare_rows, columns, Device::gpu);
    Tensor q = gpu::split_heads(qkv, windows_, shape_, rope_, k, v, packed_.spare_rows);
    for (Tensor* rows : {&q, &k, &v}) clear(*rows, n);
    return attention_.attend(q, k, v, packed_);
  }

 private:
  gpu::DeviceWindows windows_;
  gpu::PackedWindows packed_;
  const gpu::FusedAttention& attention_;
  const AttentionShape& shape_;
  const gpu::DeviceRope& rope_;
};

class GpuSlots : public SentSlots {
 public:
  GpuSlots(const Routing& routing, std::string where, const LayerPlacement& placement, int rank, int n_parts,
           DType type, BufferSource* to_send)
      : where_(std::move(where)),
        n_tokens_(routing.n_tokens()),
        top_k_(routing.top_k),
        type_(type),
        to_send_(to_send),
        weights_(DType::f32, n_tokens_, top_k_, Device::gpu) {
    copy_in(compute_stream(), weights_.bytes(), routing.gpu_weights.bytes(),
            static_cast<std::size_t>(n_tokens_ * weights_.row_bytes()));
    const int n_places = placement.n_physical();
    const DeviceArray<std::int32_t> table(std::span<const std::int32_t>(gpu::place_table(placement, rank)));
    // Integers: the slots of each place, and at the end the router's fault.
    Tensor counts(DType::f32, 1, std::int64_t{n_parts} * n_places + 1, Device::gpu);
    clear(counts);
    auto* next = reinterpret_cast<std::int32_t*>(counts.bytes());
    std::vector<gpu::PlacedSlots> slots;
    for (int part = 0; part < n_parts; ++part, next += n_places) {
      const auto [first, end] = tokens_of_part(n_tokens_, part, n_parts);
      slots.push_back(gpu::place_slots(routing.gpu_ids, {first * top_k_, (end - first) * top_k_}, top_k_, table,
                                       placement.n_experts(), rank, next));
      parts_.push_back({first, {}});
    }
    copy_in(compute_stream(), next, routing.gpu_fault.data(), sizeof *next);
    counting_.emplace(std::move(counts));
    for (std::size_t part = 0; part < slots.size(); ++part)
      parts_[part].row_of_slot = gpu::rows_of_slots(slots[part], n_places);
  }

  Tensor pack(int part, TensorView h) const override {
    return gpu::gather_slots(h, at(part).first_token, at(part).row_of_slot, top_k_, type_, to_send_);
  }
  std::span<const std::int32_t> rows_by_place() override {
    if (counting_) {
      const Tensor counts = std::move(*counting_).finish();
      counting_.reset();
      const auto* const begin = counts.data<std::int32_t>();
      rows_by_place_.assign(begin, begin + counts.cols() - 1);
      if (const std::int32_t fault = begin[counts.cols() - 1]; fault < n_tokens_) throw_not_finite(where_, fault);
    }
    return rows_by_place_;
  }
  void add_weighted(int part, Tensor& x, TensorView returned) const override {
    const std::int64_t first = at(part).first_token;
    const std::int64_t count = returned.rows() / top_k_;
    gpu::add_weighted(x, first, returned, weights_.rows(first, first + count), at(part).row_of_slot);
  }
  std::vector<double> norms(int part, TensorView returned) const override {
    return gpu::slot_norms(returned, at(part).row_of_slot).to_host();
  }

 private:
  struct Part {
    std::int64_t first_token;
    DeviceArray<std::int32_t> row_of_slot;  // where packed rows are
  };
  const Part& at(int part) const { return parts_[static_cast<std::size_t>(part)]; }

  std::string where_;
  std::int64_t n_tokens_;
  int top_k_;
  DType type_;
  BufferSource* to_send_;
  Tensor weights_;  // [n, k] f32 the routing's, which its observer may keep
  std::vector<Part> parts_;
  std::optional<Download> counting_;  // until rows_by_place_ is known
  std::vector<std::int32_t> rows_by_place_;
};

class GpuArrived : public ArrivedRows {
 public:
  GpuArrived(const ExchangePlan& plan, BufferSource* to_send) : plan_(plan), to_send_(to_send) {
    if (!plan.arrives_grouped()) group_order_.emplace(std::span<const std::int32_t>(plan.group_order()));
  }
  Tensor group(Tensor arrived) const override {
    return group_order_ ? gpu::gather(arrived, *group_order_) : std::move(arrived);
  }
  Tensor ungroup(Tensor grouped) const override {
    return group_order_ ? gpu::scatter(grouped, *group_order_, to_send_) : std::move(grouped);
  }
  std::span<const std::int32_t> counts() const override { return plan_.rows_per_expert(); }

 private:
  const ExchangePlan& plan_;
  BufferSource* to_send_;
  std::optional<DeviceArray<std::int32_t>> group_order_;  // none: rows are in order
};

/// When the compute stream has come to where the caller was.
class GpuClock : public LapClock {
 public:
  void note() override {
    if (events_.empty()) begin_ = StepTimes::Clock::now();
    events_.push_back(compute_stream().record_time());
  }

  std::vector<StepTimes::Clock::time_point> take() override {
    std::vector<StepTimes::Clock::time_point> times;
    if (!events_.empty()) events_.back().wait();
    for (const Event& event : events_) {
      const std::chrono::duration<double> since(event.seconds_since(events_.front()));
      times.push_back(begin_ + std::chrono::duration_cast<StepTimes::Clock::duration>(since));
    }
    events_.clear();
    return times;
  }

 private:
  StepTimes::Clock::time_point begin_;
  std::vector<Event> events_;
};

class GpuBackend : public Backend {
 public:
  GpuBackend(const ModelConfig& config, DType type, AttentionKernel attention, std::int64_t context,
             GroupedMatmulKind grouped_matmul)
      : config_(config),
        type_(type),
        grouped_matmul_(grouped_matmul),
        shape_(config.attention_shape()),
        angles_(config) {
    if (attention == AttentionKernel::cudnn && type == DType::bf16) fused_attention_.emplace(shape_, context);
  }

  Device device() const override { return Device::gpu; }
  DType type() const override { return type_; }
  Device staging() const override { return Device::pinned; }

  std::unique_ptr<Matrix> make_matrix(std::vector<Tensor> parts) override {
    return std::make_unique<GpuMatrix>(upload_stacked(std::move(parts)));
  }
  std::unique_ptr<Norm> make_norm(std::vector<float> weight) override {
    Tensor on_gpu(DType::f32, 1, static_cast<std::int64_t>(weight.size()), Device::gpu);
    upload(on_gpu.bytes(), weight.data(), weight.size() * sizeof(float));
    return std::make_unique<GpuNorm>(std::move(on_gpu), config_.norm_epsilon);
  }
  std::unique_ptr<Embedding> make_embedding(Tensor table) override {
    return std::make_unique<GpuEmbedding>(uploads_.copy(std::move(table)), config_.embedding_scale);
  }
  std::unique_ptr<Router> make_router(Tensor weights) override {
    return std::make_unique<GpuRouter>(uploads_.copy(std::move(weights)), config_.router_rule());
  }
  std::unique_ptr<FeedForward> make_feed_forward(FfnTensors weights) override {
    std::vector<Tensor> gate_up;
    gate_up.push_back(std::move(weights.gate));
    gate_up.push_back(std::move(weights.up));
    return std::make_unique<GpuFeedForward>(upload_stacked(std::move(gate_up)), uploads_.copy(std::move(weights.down)),
                                            config_.activation);
  }
  std::unique_ptr<Experts> make_experts(std::int64_t count) override {
    return make_gpu_experts(count, config_, type_, grouped_matmul_, uploads_);
  }
  std::unique_ptr<Head> make_head(Tensor weights) override {
    return std::make_unique<GpuHead>(uploads_.copy(std::move(weights)));
  }
  void loaded() override { uploads_.finish(); }

  Tensor zeros(std::int64_t rows, std::int64_t cols) const override {
    Tensor tensor(DType::f32, rows, cols, Device::gpu);
    clear(tensor);
    return tensor;
  }
  void add_rows(Tensor& x, TensorView rows) const override { gpu::add_rows(x, rows); }
  Tensor take_rows(TensorView x, std::span<const std::int32_t> rows) const override {
    return gpu::gather(x, DeviceArray<std::int32_t>(rows));
  }
  std::unique_ptr<BatchAttention> make_attention(const Batch& batch, KvCache* cache) override {
    if (fused_attention_ && cache == nullptr && batch.n_tokens() > 0)
      return std::make_unique<GpuFusedAttention>(batch, *fused_attention_, shape_, angles_);
    return std::make_unique<GpuAttention>(batch, cache, shape_, angles_, type_);
  }
  std::unique_ptr<SentSlots> send_slots(const Routing& routing, const std::string& where,
                                        const LayerPlacement& placement, int rank, int n_parts,
                                        BufferSource* to_send) const override {
    return std::make_unique<GpuSlots>(routing, where, placement, rank, n_parts, type_, to_send);
  }
  std::unique_ptr<ArrivedRows> arrived_rows(const ExchangePlan& plan, BufferSource* to_send) const override {
    return std::make_unique<GpuArrived>(plan, to_send);
  }
  std::unique_ptr<LapClock> make_clock() const override { return std::make_unique<GpuClock>(); }

 private:
  Tensor upload_stacked(std::vector<Tensor> parts) {
    std::int64_t rows = 0;
    for (const Tensor& part : parts) rows += part.rows();
    Tensor all(type_, rows, parts.front().cols(), Device::gpu);
    std::byte* to = all.bytes();
    for (Tensor& part : parts) {
      const std::int64_t bytes = part.rows() * part.row_bytes();
      uploads_.copy(to, std::move(part));
      to += bytes;
    }
    return all;
  }

  ModelConfig config_;
  DType type_;
  GroupedMatmulKind grouped_matmul_;
  AttentionShape shape_;
  DeviceAngles angles_;
  std::optional<gpu::FusedAttention> fused_attention_;
  gpu::WeightUploads uploads_;
};

}  // namespace

std::unique_ptr<Backend> make_gpu_backend(const ModelConfig& config, DType type, AttentionKernel attention,
                                          std::int64_t context, GroupedMatmulKind grouped_matmul) {
  return std::make_unique<GpuBackend>(config, type, attention, context, grouped_matmul);
}

}  // namespace switchyard
