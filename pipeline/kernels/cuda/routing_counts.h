#pragma once

#include <cstdint>
#include <span>

#include "parallel/tensor.h"
#include "pipeline/analysis/live_accumulators.h"
#include "pipeline/model/routing.h"

namespace switchyard::gpu {

struct RoutingTotals;

/// What LiveAccumulators counts of the layers, of one phase's tokens, counted in GPU memory from the routing that lies
/// there: nothing travels to the host before take(). Integers are equal to the CPU's; sums are made in another order,
/// by the number of tokens of each step alone. Work is in the compute stream. Throws Error in a build without CUDA.
class RoutingCounts {
 public:
  /// Token tables of which not all cells are kept are left to LiveAccumulators::observe_beside_gpu.
  RoutingCounts(const AccumulatorShape& shape, TokenTableChoice tables);

  /// tokens: layers and losses are not looked at. routing: [L] in GPU memory. Does not block.
  void observe(const TokenView& tokens, std::span<const Routing> routing);
  /// Takes over what `other` has counted, and leaves it empty. Does not block.
  void absorb(RoutingCounts& other);
  void clear();
  /// What was counted since the last call. Blocks.
  LayerCounts take();

  /// Bytes of GPU memory that one of these takes.
  static std::uint64_t bytes(const AccumulatorShape& shape, TokenTableChoice tables);
  /// And a step of n tokens while it is counted.
  static std::uint64_t step_bytes(const AccumulatorShape& shape, std::int64_t n);

 private:
  RoutingTotals totals();

  AccumulatorShape shape_;
  TokenTableChoice choice_;
  // As in RoutingTotals, a row a layer, in units of 4 bytes.
  Tensor counters_, sums_, moments_;
};

}  // namespace switchyard::gpu
