#include "pipeline/model/cuda/gpu_experts.h"

#include <cassert>
#include <span>
#include <utility>
#include <vector>

#include "parallel/device/device_memory.h"
#include "parallel/device/stream.h"
#include "pipeline/kernels/cuda/activation.h"
#include "pipeline/kernels/cuda/gated_experts.h"
#include "pipeline/kernels/cuda/matmul.h"
#include "pipeline/model/cuda/make_gated_experts.h"

namespace switchyard {
namespace {

class GpuExperts : public Experts {
 public:
  GpuExperts(std::int64_t count, const ModelConfig& config, DType type, GroupedMatmulKind kind,
             gpu::WeightUploads& uploads)
      : count_(count),
        d_ff_(config.d_ff),
        d_model_(config.d_model),
        activation_(config.activation),
        kind_(kind),
        turn_(rows_of_a_turn(kind, d_ff_)),
        uploads_(uploads),
        gate_up_(type, count * 2 * d_ff_, d_model_, Device::gpu),
        down_(type, count * d_model_, d_ff_, Device::gpu) {}

  void add(FfnTensors weights) override {
    assert(added_ < count_);
    const std::int64_t first = added_ * 2 * d_ff_;
    uploads_.copy_with_gaps(at(gate_up_, first), std::move(weights.gate), turn_);
    uploads_.copy_with_gaps(at(gate_up_, first + turn_), std::move(weights.up), turn_);
    uploads_.copy(at(down_, added_ * d_model_), std::move(weights.down));
    if (++added_ == count_) use_weights();
  }
  std::size_t size() const override { return static_cast<std::size_t>(count_); }

  Tensor run(TensorView rows, std::span<const std::int32_t> rows_per_expert) const override {
    if (rows.rows() == 0) return Tensor(rows.dtype(), 0, d_model_, Device::gpu);  // also where there is no expert
    return gpu::run_experts(rows, rows_per_expert, experts_);
  }
  Tensor gate_states(TensorView rows, std::size_t expert) const override {
    Tensor states = gpu::matmul(rows, gate_of(weights_of(expert).gate_up));
    gpu::activate(states, activation_);
    return states;
  }

  std::vector<std::span<std::byte>> leaving(std::size_t expert) override {
    const ExpertWeights own = weights_of(expert);
    return parts_of(
        leaving_.emplace_back(HostWeights{copy_to(Device::pinned, own.gate_up), copy_to(Device::pinned, own.down)}));
  }
  std::vector<std::span<std::byte>> room_for_one() override {
    const DType type = down_.dtype();
    return parts_of(rooms_.emplace_back(
        HostWeights{Tensor(type, 2 * d_ff_, d_model_, Device::pinned), Tensor(type, d_model_, d_ff_, Device::pinned)}));
  }
  /// Takes memory for those before and those after at once, unless they are the same.
  void rearrange(std::span<const std::size_t> which) override {
    if (!are_the_same(which)) put_together(which);
    leaving_.clear();
    rooms_.clear();
  }

 private:
  /// Of one expert.
  struct ExpertWeights {
    TensorView gate_up;  // [2 d_ff, d]
    TensorView down;     // [d, d_ff]
  };
  struct HostWeights {
    Tensor gate_up, down;  // pinned
    ExpertWeights view() const { return {gate_up, down}; }
  };

  bool are_the_same(std::span<const std::size_t> which) const {
    if (which.size() != size()) return false;
    for (std::size_t i = 0; i < which.size(); ++i)
      if (which[i] != i) return false;
    return true;
  }

  void put_together(std::span<const std::size_t> which) {
    const auto count = static_cast<std::int64_t>(which.size());
    Tensor gate_up(gate_up_.dtype(), count * 2 * d_ff_, d_model_, Device::gpu);
    Tensor down(down_.dtype(), count * d_model_, d_ff_, Device::gpu);
    const auto put = [](Tensor& to, std::size_t place, TensorView from) {
      const std::int64_t row = static_cast<std::int64_t>(place) * from.rows();
      copy_in(compute_stream(), at(to, row), from.bytes(), static_cast<std::size_t>(from.rows() * from.row_bytes()));
    };
    for (std::size_t place = 0; place < which.size(); ++place) {
      const std::size_t i = which[place];
      const ExpertWeights from = i < size() ? weights_of(i) : rooms_[i - size()].view();
      put(gate_up, place, from.gate_up);
      put(down, place, from.down);
    }
    compute_stream().wait();  // for the rooms
    gate_up_ = std::move(gate_up);
    down_ = std::move(down);
    count_ = count;
    use_weights();
  }

  Tensor gate_of(TensorView gate_up) const {
    Tensor gate(gate_up.dtype(), d_ff_, d_model_, Device::gpu);
    const auto turn = static_cast<std::size_t>(turn_ * gate_up.row_bytes());
    copy_in(
        compute_stream(), gate.bytes(), gate_up.bytes(),
        {.count = static_cast<std::size_t>(d_ff_ / turn_), .bytes = turn, .apart_there = turn, .apart_here = 2 * turn});
    return gate;
  }

  static std::byte* at(Tensor& tensor, std::int64_t row) { return tensor.bytes() + row * tensor.row_bytes(); }

  static std::vector<std::span<std::byte>> parts_of(HostWeights& weights) {
    const auto bytes_of = [](Tensor& tensor) {
      return std::span(tensor.bytes(), static_cast<std::size_t>(tensor.rows() * tensor.row_bytes()));
    };
    return {bytes_of(weights.gate_up), bytes_of(weights.down)};
  }

  ExpertWeights weights_of(std::size_t expert) const {
    const auto e = static_cast<std::int64_t>(expert);
    return {gate_up_.rows(e * 2 * d_ff_, (e + 1) * 2 * d_ff_), down_.rows(e * d_model_, (e + 1) * d_model_)};
  }

  void use_weights() {
    experts_ = {};
    if (count_ > 0) experts_ = make_gated_experts(kind_, {gate_up_, count_}, {down_, count_}, activation_);
  }

  std::int64_t count_, d_ff_, d_model_;
  Activation activation_;
  GroupedMatmulKind kind_;
  std::int64_t turn_;
  gpu::WeightUploads& uploads_;
  Tensor gate_up_;  // [count * 2 d_ff, d] each expert's gate and up, turn_ rows of each in turns
  Tensor down_;     // [count * d, d_ff]
  std::int64_t added_ = 0;
  gpu::GatedExperts experts_;                 // of those
  std::vector<HostWeights> leaving_, rooms_;  // between two steps
};

}  // namespace

std::unique_ptr<Experts> make_gpu_experts(std::int64_t count, const ModelConfig& config, DType type,
                                          GroupedMatmulKind kind, gpu::WeightUploads& uploads) {
  return std::make_unique<GpuExperts>(count, config, type, kind, uploads);
}

}  // namespace switchyard
