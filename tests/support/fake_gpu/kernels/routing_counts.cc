#include "pipeline/kernels/cuda/routing_counts_launch.h"
#include "tests/support/fake_gpu/fake_gpu.h"

/// The launches of routing_counts.cu.
namespace switchyard::gpu {
namespace {

/// What a launch that counts a step touches.
std::vector<const void*> touched_by(const CountedStep& step, const RoutingTotals& totals) {
  std::vector<const void*> touched = {step.tokens,     step.chunk_sums, step.chunk_moments,
                                      totals.counters, totals.sums,     totals.moments};
  for (const LayerChoices& layer : step.layers)
    touched.insert(touched.end(), {layer.ids, layer.weights, layer.figures, layer.probabilities});
  return touched;
}

}  // namespace

void launch_count_tokens(const CountedStep& step, const RoutingTotals& totals) {
  fake_gpu::launch(touched_by(step, totals), [step, totals] {
    for (std::int64_t layer = 0; layer < step.n_layers; ++layer)
      for (std::int64_t token = 0; token < step.n; ++token) cores::count_token(step, totals, layer, token);
  });
}

void launch_sum_chunks(const CountedStep& step, const RoutingTotals& totals) {
  fake_gpu::launch(touched_by(step, totals), [step, totals] {
    for (std::int64_t layer = 0; layer < step.n_layers; ++layer)
      for (std::int64_t chunk = 0; chunk < step.n_chunks; ++chunk) {
        for (std::int64_t column = 0; column < totals.columns; ++column)
          cores::sum_chunk(step, totals, layer, chunk, column);
        for (std::int64_t figure = 0; figure < kSpreadFigures; ++figure)
          cores::spread_chunk(step, layer, chunk, figure);
      }
  });
}

void launch_add_chunks(const CountedStep& step, const RoutingTotals& totals) {
  fake_gpu::launch({step.chunk_sums, step.chunk_moments, totals.sums, totals.moments}, [step, totals] {
    for (std::int64_t layer = 0; layer < step.n_layers; ++layer) {
      for (std::int64_t column = 0; column < totals.columns; ++column)
        cores::add_chunk_sums(step, totals, layer, column);
      for (std::int64_t figure = 0; figure < kSpreadFigures; ++figure)
        cores::add_chunk_moments(step, totals, layer, figure);
    }
  });
}

void launch_add_totals(const RoutingTotals& to, const RoutingTotals& from) {
  fake_gpu::launch({to.counters, to.sums, to.moments, from.counters, from.sums, from.moments}, [to, from] {
    for (std::int64_t i = 0; i < to.layers * to.cells.size; ++i) cores::add_totals(to, from, i);
  });
}

}  // namespace switchyard::gpu
