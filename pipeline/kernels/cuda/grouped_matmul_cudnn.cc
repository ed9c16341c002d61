#include <array>
#include <cassert>
#include <map>
#include <tuple>
#include <type_traits>
#include <utility>

#include "parallel/device/device_array.h"
#include "parallel/device/device_memory.h"
#include "parallel/device/stream.h"
#include "pipeline/kernels/cuda/cudnn_graph.h"
#include "pipeline/kernels/cuda/grouped_matmul.h"
#include "pipeline/kernels/cuda/row_chunks.h"

namespace switchyard::gpu {
namespace {

constexpr std::int64_t kTypicalRows = 4096;

/// Planned when first asked for, kept for the process. Used from one thread, as is all work in the compute stream.
const CudnnGraph& graph_of(const GroupedGraphShape& shape, const std::string& plan) {
  const auto key = std::tuple(shape.n_experts, shape.n_rows, shape.n_out, shape.n_in, shape.out);
  static auto& known = *new std::map<std::remove_const_t<decltype(key)>, CudnnGraph>;
  if (const auto found = known.find(key); found != known.end()) return found->second;
  return known.emplace(key, plan_grouped_matmul(CudnnDevice::current(), shape, plan)).first->second;
}

class CudnnGroupedMatmul : public GroupedMatmul {
 public:
  CudnnGroupedMatmul(StackedWeights weights, DType out)
      : weights_(weights), out_(out), chosen_(&graph_of(shape_for(kTypicalRows), {})) {}

  Tensor run(TensorView rows, std::span<const std::int32_t> rows_per_expert) override {
    assert(static_cast<std::int64_t>(rows_per_expert.size()) == weights_.n_experts);
    assert(rows.cols() == weights_.n_in() && rows.dtype() == DType::bf16);
    const std::vector<RowChunk> chunks = chunks_of(rows.rows());
    const std::int64_t room = chunks.empty() ? 0 : chunks.back().begin + chunks.back().graph_rows;
    Tensor out(out_, room, weights_.n_out(), Device::gpu);
    for (const RowChunk& chunk : chunks) run_chunk(rows, rows_per_expert, chunk, out);
    out.keep_rows(rows.rows());
    return out;
  }

 private:
  GroupedGraphShape shape_for(std::int64_t n_rows) const {
    return {.n_experts = weights_.n_experts,
            .n_rows = n_rows,
            .n_out = weights_.n_out(),
            .n_in = weights_.n_in(),
            .out = out_};
  }

  /// Its last expert multiplies what lies behind the rows of a chunk, too: rows of a copy, so that they are there.
  void run_chunk(TensorView all_rows, std::span<const std::int32_t> rows_per_expert, const RowChunk& chunk,
                 Tensor& out) const {
    const TensorView rows = all_rows.rows(chunk.begin, chunk.begin + chunk.rows);
    Tensor copy;
    if (chunk.graph_rows > chunk.rows) {
      copy = Tensor(rows.dtype(), chunk.graph_rows, rows.cols(), Device::gpu);
      copy_in(compute_stream(), copy.bytes(), rows.bytes(), static_cast<std::size_t>(rows.rows() * rows.row_bytes()));
    }
    const std::vector<std::int32_t> first_rows = first_rows_of(rows_per_expert, chunk);
    DeviceArray<std::int32_t> on_gpu{std::span<const std::int32_t>(first_rows)};
    using Operand = GroupedGraphShape::Operand;
    std::array<const void*, Operand::n_operands> operands = {};
    operands[Operand::rows] = copy.rows() > 0 ? copy.bytes() : rows.bytes();
    operands[Operand::weights] = weights_.weights.bytes();
    operands[Operand::first_rows] = on_gpu.data();
    operands[Operand::products] = out.bytes() + chunk.begin * out.row_bytes();
    graph_of(shape_for(chunk.graph_rows), chosen_->plan()).run(operands);
  }

  StackedWeights weights_;
  DType out_;
  const CudnnGraph* chosen_;  // whose plan serves any number of rows
};

}  // namespace

void check_cudnn_grouped_matmul(std::int64_t n_experts, std::int64_t n_out, std::int64_t n_in, DType out) {
  graph_of({.n_experts = n_experts, .n_rows = kTypicalRows, .n_out = n_out, .n_in = n_in, .out = out}, {});
}

std::unique_ptr<GroupedMatmul> make_cudnn_grouped_matmul(StackedWeights weights, DType out) {
  return std::make_unique<CudnnGroupedMatmul>(weights, out);
}

}  // namespace switchyard::gpu
