#include "pipeline/model/grouped_matmul_kind.h"

#include <algorithm>
#include <cstring>
#include <exception>
#include <random>
#include <utility>

#include "parallel/bf16.h"
#include "parallel/device/device_memory.h"
#include "parallel/device/stream.h"
#include "pipeline/kernels/cuda/cutlass_product.h"
#include "pipeline/model/cuda/make_gated_experts.h"

namespace switchyard {
namespace {

/// Random, as zeros would take less power and so be faster; the same numbers for each block of rows.
Tensor random_on_gpu(std::int64_t rows, std::int64_t cols) {
  constexpr std::int64_t kRows = 256;
  std::mt19937 random(1);
  std::normal_distribution<float> normal(0, 0.02F);
  Tensor block(DType::bf16, std::min(rows, kRows), cols, Device::pinned);
  for (std::int64_t i = 0; i < block.rows() * cols; ++i) block.data<Bf16>()[i] = Bf16(normal(random));
  Tensor all(DType::bf16, rows, cols, Device::gpu);
  for (std::int64_t row = 0; row < rows; row += kRows) {
    const auto bytes = static_cast<std::size_t>(std::min(block.rows(), rows - row) * all.row_bytes());
    copy_in(compute_stream(), all.bytes() + row * all.row_bytes(), block.bytes(), bytes);
  }
  compute_stream().wait();
  return all;
}

std::vector<std::int32_t> spread_evenly(std::int64_t rows, std::int64_t n_experts) {
  std::vector<std::int32_t> counts;
  for (std::int64_t e = 0; e < n_experts; ++e)
    counts.push_back(static_cast<std::int32_t>(rows * (e + 1) / n_experts - rows * e / n_experts));
  return counts;
}

double median_seconds(const gpu::GatedExperts& experts, TensorView rows, const std::vector<std::int32_t>& counts,
                      int repetitions) {
  constexpr int kWarm = 2;
  std::vector<double> seconds;
  for (int i = 0; i < kWarm + repetitions; ++i) {
    const Event begin = compute_stream().record_time();
    gpu::run_experts(rows, counts, experts);
    const Event end = compute_stream().record_time();
    end.wait();
    if (i >= kWarm) seconds.push_back(end.seconds_since(begin));
  }
  std::ranges::sort(seconds);
  return seconds[seconds.size() / 2];
}

}  // namespace

std::optional<std::string> why_not(GroupedMatmulKind kind, const ExpertShape& experts) {
  if (kind == GroupedMatmulKind::cublaslt) return std::nullopt;
  if (kind != GroupedMatmulKind::cudnn) {
    if (experts.d_model % gpu::kCutlassMultiple != 0 || experts.d_ff % gpu::kCutlassMultiple != 0) {
      return "CUTLASS multiplies experts whose widths are multiples of " + std::to_string(gpu::kCutlassMultiple) +
             ", and these are of " + std::to_string(experts.d_model) + " and " + std::to_string(experts.d_ff);
    }
    return gpu::why_no_cutlass();
  }
  try {
    gpu::check_cudnn_grouped_matmul(experts.n_experts, 2 * experts.d_ff, experts.d_model, DType::f32);
    gpu::check_cudnn_grouped_matmul(experts.n_experts, experts.d_model, experts.d_ff, DType::bf16);
    return std::nullopt;
  } catch (const std::exception& error) {
    return error.what();
  }
}

std::int64_t rows_of_a_turn(GroupedMatmulKind kind, std::int64_t d_ff) {
  return kind == GroupedMatmulKind::cutlass ? gpu::kGatedBlock : d_ff;
}

gpu::GatedExperts make_gated_experts(GroupedMatmulKind kind, gpu::StackedWeights gate_up, gpu::StackedWeights down,
                                     Activation activation) {
  const DType type = down.weights.dtype();
  const auto by = [&](auto make) {
    return gpu::GatedExperts{gpu::make_gated_product(make(gate_up, DType::f32), activation), make(down, type)};
  };
  switch (kind) {
    case GroupedMatmulKind::cudnn:
      return by(gpu::make_cudnn_grouped_matmul);
    case GroupedMatmulKind::cutlass:
      return {gpu::make_cutlass_gated_product(gate_up, activation), gpu::make_cutlass_grouped_matmul(down)};
    default:
      return by(gpu::make_cublaslt_grouped_matmul);
  }
}

std::vector<GroupedMatmulSpeed> measure_grouped_matmuls(const ExpertShape& experts, std::int64_t rows,
                                                        int repetitions) {
  const std::vector<std::int32_t> counts = spread_evenly(rows, experts.n_experts);
  const Tensor in = random_on_gpu(rows, experts.d_model);
  const Tensor gate_up = random_on_gpu(experts.n_experts * 2 * experts.d_ff, experts.d_model);
  const Tensor down = random_on_gpu(experts.n_experts * experts.d_model, experts.d_ff);
  std::vector<GroupedMatmulSpeed> speeds;
  for (const GroupedMatmulKind kind : kGroupedMatmulKinds) {
    if (why_not(kind, experts)) continue;
    const gpu::GatedExperts layer =
        make_gated_experts(kind, {gate_up, experts.n_experts}, {down, experts.n_experts}, experts.activation);
    speeds.push_back({kind, median_seconds(layer, in, counts, repetitions)});
  }
  return speeds;
}

}  // namespace switchyard
