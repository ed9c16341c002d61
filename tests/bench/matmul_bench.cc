// The grouped expert matmuls beside bare oneDNN primitives of the same sizes: what do tiles, padding, the gate and
// unequal groups cost? Both report GFLOP/s, counting the matmuls' products only, on OMP_NUM_THREADS threads.
#include <benchmark/benchmark.h>
#include <omp.h>

#include <dnnl.hpp>
#include <numeric>
#include <random>
#include <vector>

#include "pipeline/kernels/cpu.h"
#include "pipeline/kernels/gated_ffn.h"

namespace {

using namespace switchyard;

constexpr int kExperts = 8;

/// What switchyard computes in on this CPU.
DType type() { return cpu_has_bf16() ? DType::bf16 : DType::f32; }

Tensor random_matrix(std::int64_t rows, std::int64_t cols) {
  std::mt19937 random(1);
  Tensor m(type(), rows, cols);
  for (std::int64_t i = 0; i < rows * cols; ++i) {
    const float value = static_cast<float>(random() % 2048) / 1024.0F - 1.0F;
    if (type() == DType::bf16) {
      m.data<Bf16>()[i] = Bf16(value);
    } else {
      m.data<float>()[i] = value;
    }
  }
  return m;
}

/// Rows of each expert: the same for all, or falling linearly by id.
std::vector<std::int32_t> rows_of(std::int64_t total, bool skewed) {
  std::vector<std::int32_t> rows;
  for (int e = 0; e < kExperts; ++e) {
    rows.push_back(
        static_cast<std::int32_t>(total * (skewed ? 2 * (kExperts - e) : kExperts + 1) / (kExperts * (kExperts + 1))));
  }
  return rows;
}

double gflop(std::int64_t rows, std::int64_t d, std::int64_t f) {
  return 6e-9 * static_cast<double>(rows) * static_cast<double>(d) * static_cast<double>(f);
}

// Arguments: d, d_ff, slots, skewed
void grouped(benchmark::State& state) {
  const std::int64_t d = state.range(0);
  const std::int64_t f = state.range(1);
  std::vector<GatedFfn> experts;
  for (int e = 0; e < kExperts; ++e) {
    experts.emplace_back(random_matrix(f, d), random_matrix(f, d), random_matrix(d, f));
  }
  const std::vector<std::int32_t> counts = rows_of(state.range(2), state.range(3) != 0);
  const std::int64_t slots = std::accumulate(counts.begin(), counts.end(), std::int64_t{0});
  const Tensor rows = random_matrix(slots, d);
  for (auto _ : state) benchmark::DoNotOptimize(run_experts(rows, counts, experts).bytes());
  state.counters["GFLOP/s"] = benchmark::Counter(gflop(slots, d, f), benchmark::Counter::kIsIterationInvariantRate);
}

/// One primitive on all threads, its weights in the layout it prefers.
class Bare {
 public:
  Bare(std::int64_t m, std::int64_t k, std::int64_t n) : engine_(dnnl::engine::kind::cpu, 0), stream_(engine_) {
    using dnnl::memory;
    const auto element = type() == DType::bf16 ? memory::data_type::bf16 : memory::data_type::f32;
    const dnnl::matmul::primitive_desc description({{{m, k}, element, memory::format_tag::ab},
                                                    {{k, n}, element, memory::format_tag::any},
                                                    {{m, n}, element, memory::format_tag::ab}},
                                                   engine_);
    matmul_ = dnnl::matmul(description);
    arguments_ = {{DNNL_ARG_SRC, memory(description.src_desc(), engine_)},
                  {DNNL_ARG_WEIGHTS, memory(description.weights_desc(), engine_)},
                  {DNNL_ARG_DST, memory(description.dst_desc(), engine_)}};
    for (auto& [name, values] : arguments_) {
      auto* bytes = static_cast<unsigned char*>(values.get_data_handle());
      std::fill(bytes, bytes + values.get_desc().get_size(), static_cast<unsigned char>(0x3c));
    }
  }
  void run() { matmul_.execute(stream_, arguments_); }

 private:
  dnnl::engine engine_;
  dnnl::stream stream_;
  dnnl::matmul matmul_;
  std::unordered_map<int, dnnl::memory> arguments_;
};

void bare(benchmark::State& state) {
  const std::int64_t d = state.range(0);
  const std::int64_t f = state.range(1);
  const std::int64_t m = state.range(2) / kExperts;
  std::vector<Bare> gate_up;
  std::vector<Bare> down;
  for (int e = 0; e < kExperts; ++e) {
    gate_up.emplace_back(m, d, 2 * f);
    down.emplace_back(m, f, d);
  }
  for (auto _ : state) {
    for (std::size_t e = 0; e < kExperts; ++e) {
      gate_up[e].run();
      down[e].run();
    }
  }
  state.counters["GFLOP/s"] =
      benchmark::Counter(gflop(m * kExperts, d, f), benchmark::Counter::kIsIterationInvariantRate);
}

BENCHMARK(grouped)
    ->Args({192, 256, 8192, 0})
    ->Args({192, 256, 8192, 1})
    ->Args({1024, 3584, 8192, 0})
    ->Args({1024, 3584, 8192, 1})
    ->UseRealTime();
BENCHMARK(bare)->Args({192, 256, 8192})->Args({1024, 3584, 8192})->UseRealTime();

}  // namespace

BENCHMARK_MAIN();
