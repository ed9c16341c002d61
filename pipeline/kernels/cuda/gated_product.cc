#include "pipeline/kernels/cuda/gated_product.h"

#include <cassert>
#include <utility>

#include "pipeline/kernels/cuda/activation.h"
#include "pipeline/kernels/cuda/cutlass_product.h"
#include "pipeline/kernels/cuda/group_arguments.h"

namespace switchyard::gpu {
namespace {

class ActivatedProduct : public GatedProduct {
 public:
  ActivatedProduct(std::unique_ptr<GroupedMatmul> gate_up, Activation activation)
      : gate_up_(std::move(gate_up)), activation_(activation) {}

  Tensor run(TensorView rows, std::span<const std::int32_t> rows_per_expert) override {
    const Tensor gate_up = gate_up_->run(rows, rows_per_expert);  // [n, 2 d_ff] f32
    return activate(gate_up, activation_, rows.dtype());
  }

 private:
  std::unique_ptr<GroupedMatmul> gate_up_;
  Activation activation_;
};

class CutlassGatedProduct : public GatedProduct {
 public:
  CutlassGatedProduct(StackedWeights gate_up, Activation activation)
      : gate_up_(gate_up),
        activation_(activation),
        d_ff_(gate_up_.n_out() / 2),
        strides_(gate_up_.n_experts, gate_up_.n_in(), d_ff_) {
    assert(gate_up_.n_in() % kCutlassMultiple == 0 && d_ff_ % kGatedBlock == 0);
  }

  Tensor run(TensorView rows, std::span<const std::int32_t> rows_per_expert) override {
    assert(static_cast<std::int64_t>(rows_per_expert.size()) == gate_up_.n_experts);
    assert(rows.cols() == gate_up_.n_in() && rows.dtype() == DType::bf16);
    Tensor gated(DType::bf16, rows.rows(), d_ff_, Device::gpu);
    if (rows.rows() == 0) return gated;
    const UploadedGroups groups(group_arguments(rows, gate_up_, rows_per_expert, gated), strides_);
    run_cutlass_gated(groups.product(), activation_);
    return gated;
  }

 private:
  StackedWeights gate_up_;
  Activation activation_;
  std::int64_t d_ff_;
  GroupStrides strides_;
};

}  // namespace

std::unique_ptr<GatedProduct> make_gated_product(std::unique_ptr<GroupedMatmul> gate_up, Activation activation) {
  return std::make_unique<ActivatedProduct>(std::move(gate_up), activation);
}

std::unique_ptr<GatedProduct> make_cutlass_gated_product(StackedWeights gate_up, Activation activation) {
  return std::make_unique<CutlassGatedProduct>(gate_up, activation);
}

}  // namespace switchyard::gpu
