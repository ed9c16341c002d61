#include "pipeline/experiments/forced_experts.h"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <span>

#include "pipeline/kernels/leaf_loops.h"

namespace switchyard {
namespace {

/// Rows of each rank in a chunk.
std::int64_t chunk_rows(int n_experts, std::int64_t row_bytes, std::int64_t chunk_bytes) {
  return std::max<std::int64_t>(1, chunk_bytes / (n_experts * row_bytes));
}

void run_chunk(const Model& model, int moe_layer, const LayerPlacement& placement, TensorView mine,
               std::int64_t first_row, const ForcedExpertsSink& sink, const Communicator& comm) {
  const std::vector<std::int64_t> rows_of_rank = comm.all_gather(mine.rows());
  const auto bytes = static_cast<std::size_t>(mine.rows() * mine.row_bytes());
  const std::vector<std::byte> gathered = comm.all_gather_v(std::span(mine.bytes(), bytes));
  const auto n = std::accumulate(rows_of_rank.begin(), rows_of_rank.end(), std::int64_t{0});
  const TensorView rows(gathered.data(), mine.dtype(), n, mine.cols());

  std::vector<std::vector<std::byte>> send(rows_of_rank.size());
  model.force_experts(moe_layer, rows, [&](int local_expert, TensorView states, TensorView outputs) {
    sink.states(local_expert, states);
    const std::byte* from = outputs.bytes();
    for (std::size_t rank = 0; rank < send.size(); ++rank) {
      const std::byte* end = from + rows_of_rank[rank] * rows.row_bytes();
      send[rank].insert(send[rank].end(), from, end);
      from = end;
    }
  });
  std::vector<std::vector<std::byte>> received = comm.all_to_all_v(send);
  if (mine.rows() > 0)
    sink.outputs(first_row, {std::move(received), placement, mine.dtype(), mine.rows(), mine.cols()});
}

}  // namespace

void ExpertOutputs::copy_token(std::int64_t token, float* to) const {
  for (int expert = 0; expert < placement_->n_experts(); ++expert, to += width_) {
    const std::byte* row = from_[static_cast<std::size_t>(placement_->rank_of(expert))].data() +
                           (placement_->local_index(expert) * n_tokens_ + token) * width_ * size_of(type_);
    if (type_ == DType::bf16) {
      leaf().bf16.widen(reinterpret_cast<const Bf16*>(row), to, width_);
    } else {
      std::memcpy(to, row, static_cast<std::size_t>(width_) * sizeof(float));
    }
  }
}

void run_forced_experts(const Model& model, const LayerPlacement& placement, int moe_layer, TensorView rows,
                        const ForcedExpertsSink& sink, const Communicator& comm, std::int64_t chunk_bytes) {
  const std::int64_t chunk = chunk_rows(placement.n_experts(), rows.row_bytes(), chunk_bytes);
  const std::int64_t most = comm.max(rows.rows());
  for (std::int64_t begin = 0; begin < most; begin += chunk) {
    const TensorView mine = rows.rows(std::min(begin, rows.rows()), std::min(begin + chunk, rows.rows()));
    run_chunk(model, moe_layer, placement, mine, begin, sink, comm);
  }
}

std::uint64_t forced_experts_bytes(const ModelConfig& config, Precision precision, int n_ranks,
                                   std::int64_t chunk_bytes) {
  const std::int64_t element = precision == Precision::f32 ? 4 : 2;
  const std::int64_t rows = n_ranks * chunk_rows(config.n_experts, config.d_model * element, chunk_bytes);
  const std::int64_t gated = config.d_ff * (8 + element);            // gate and up, and what is made of them
  const std::int64_t gate = config.d_ff * config.d_model * element;  // of the expert whose states are asked for
  return static_cast<std::uint64_t>(rows * (2 * config.d_model * element + config.d_ff * 4 + gated) + gate);
}

}  // namespace switchyard
