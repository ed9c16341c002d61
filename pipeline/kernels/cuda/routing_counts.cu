#include "pipeline/kernels/cuda/launch.h"
#include "pipeline/kernels/cuda/routing_counts_launch.h"

namespace switchyard::gpu {
namespace {

/// One thread a token.
__global__ void __launch_bounds__(kCountChunk)
    count_tokens_kernel(const __grid_constant__ CountedStep step, const __grid_constant__ RoutingTotals totals) {
  const std::int64_t token = blockIdx.x * kCountChunk + threadIdx.x;
  if (token < step.n) cores::count_token(step, totals, blockIdx.y, token);
}

/// One block a chunk of tokens of a layer, a thread a column or a figure in turns.
__global__ void __launch_bounds__(kThreads)
    sum_chunks_kernel(const __grid_constant__ CountedStep step, const __grid_constant__ RoutingTotals totals) {
  for (std::int64_t column = threadIdx.x; column < totals.columns; column += blockDim.x)
    cores::sum_chunk(step, totals, blockIdx.y, blockIdx.x, column);
  if (threadIdx.x < kSpreadFigures) cores::spread_chunk(step, blockIdx.y, blockIdx.x, threadIdx.x);
}

/// One block a layer, a thread a column or a figure in turns.
__global__ void __launch_bounds__(kThreads)
    add_chunks_kernel(const __grid_constant__ CountedStep step, const __grid_constant__ RoutingTotals totals) {
  for (std::int64_t column = threadIdx.x; column < totals.columns; column += blockDim.x)
    cores::add_chunk_sums(step, totals, blockIdx.x, column);
  if (threadIdx.x < kSpreadFigures) cores::add_chunk_moments(step, totals, blockIdx.x, threadIdx.x);
}

/// One thread a counter.
__global__ void __launch_bounds__(kThreads) add_totals_kernel(RoutingTotals to, RoutingTotals from) {
  cores::add_totals(to, from, static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x);
}

/// Chunks of tokens of each layer.
dim3 grid_of(const CountedStep& step) {
  return {static_cast<unsigned>(step.n_chunks), static_cast<unsigned>(step.n_layers)};
}

}  // namespace

void launch_count_tokens(const CountedStep& step, const RoutingTotals& totals) {
  count_tokens_kernel<<<grid_of(step), kCountChunk, 0, compute_stream().handle()>>>(step, totals);
  check_launch("count_tokens_kernel");
}

void launch_sum_chunks(const CountedStep& step, const RoutingTotals& totals) {
  sum_chunks_kernel<<<grid_of(step), kThreads, 0, compute_stream().handle()>>>(step, totals);
  check_launch("sum_chunks_kernel");
}

void launch_add_chunks(const CountedStep& step, const RoutingTotals& totals) {
  add_chunks_kernel<<<static_cast<unsigned>(step.n_layers), kThreads, 0, compute_stream().handle()>>>(step, totals);
  check_launch("add_chunks_kernel");
}

void launch_add_totals(const RoutingTotals& to, const RoutingTotals& from) {
  // There are more counters than sums or moments: of groups of documents alone.
  const unsigned blocks = blocks_for(to.layers * to.cells.size, kThreads);
  add_totals_kernel<<<blocks, kThreads, 0, compute_stream().handle()>>>(to, from);
  check_launch("add_totals_kernel");
}

}  // namespace switchyard::gpu
