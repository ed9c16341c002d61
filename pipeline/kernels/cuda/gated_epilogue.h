#pragma once

#ifdef __CUDACC__

#include <cutlass/epilogue/thread/linear_combination.h>

#include <cute/tensor.hpp>
#include <cutlass/epilogue/collective/default_epilogue_array.hpp>
#include <cutlass/epilogue/collective/detail.hpp>
#include <cutlass/epilogue/dispatch_policy.hpp>

#include "pipeline/kernels/cuda/cutlass_product.h"
#include "pipeline/kernels/cuda/device_warp.h"
#include "pipeline/kernels/cuda/gated_core.h"

namespace switchyard::gpu {

using RowMajorOfGroups = cutlass::layout::RowMajor*;
using WritesBf16 = cutlass::epilogue::thread::LinearCombination<cutlass::bfloat16_t, 8, float, float>;
using PlainEpilogue = cutlass::epilogue::collective::DefaultEpilogueArray<
    cutlass::bfloat16_t, cutlass::detail::TagToStrideC_t<RowMajorOfGroups>,
    cutlass::detail::TagToStrideC_t<RowMajorOfGroups>, WritesBf16, cutlass::epilogue::PtrArrayNoSmemWarpSpecialized>;

/// What is done with the sums of a tile whose columns are blocks of kGatedBlock gates and of their ups in turns: a
/// thread holds both, and writes 16 bytes of activation(gate) * up at once, without shared memory. PlainEpilogue says
/// what CUTLASS asks of such a class.
template <Activation kActivation>
class GatedEpilogue : public PlainEpilogue {
 public:
  CUTLASS_HOST_DEVICE explicit GatedEpilogue(const Params& params) : PlainEpilogue(params), params_(params) {}

  template <typename Problem, typename Block, typename Coordinate, typename Engine, typename Layout, typename TiledMma,
            typename Residue>
  CUTLASS_DEVICE void operator()(Problem problem, Block block, Coordinate coordinate,
                                 const cute::Tensor<Engine, Layout>& sums, TiledMma tiled_mma, Residue /*residue*/,
                                 int thread, char* /*shared*/) const {
    using namespace cute;
    constexpr int kBlocks = decltype(get<1>(block))::value / kGatedBlock;
    static_assert(std::is_same_v<decltype(sums.shape()), Shape<Shape<_2, _2, Int<kBlocks>>, _1, _1>>);
    static_assert(kBlocks % 8 == 0);
    const int n_rows = get<0>(problem);
    const int n_columns = get<1>(problem) / 2;
    const auto [m, n, k, group] = coordinate;
    auto* const out = reinterpret_cast<Bf16*>(params_.ptr_D[group]);
    const std::int64_t row_stride = get<0>(params_.dD[group]);
    const auto places = tiled_mma.get_thread_slice(thread).partition_C(local_tile(
        make_identity_tensor(make_shape(get<0>(problem), get<1>(problem))), take<0, 2>(block), make_coord(m, n)));
    const int first_column = n * (kBlocks / 2 * kGatedBlock) + thread % 4 * kGatedBlock;
    CUTLASS_PRAGMA_UNROLL
    for (int half = 0; half < 2; ++half) {
      const int row = get<0>(places(make_coord(0, half, 0), 0, 0));
      CUTLASS_PRAGMA_UNROLL
      for (int first = 0; first < kBlocks; first += 8) {
        cores::DeviceWarp::Lanes<cores::GatedSums> own;
        CUTLASS_PRAGMA_UNROLL
        for (int of_four = 0; of_four < 4; ++of_four) {
          const int gate = first + 2 * of_four;
          CUTLASS_PRAGMA_UNROLL
          for (int column = 0; column < 2; ++column) {
            own.value.gates[of_four][column] = sums(make_coord(column, half, gate), 0, 0);
            own.value.ups[of_four][column] = sums(make_coord(column, half, gate + 1), 0, 0);
          }
        }
        const auto gated = cores::gate_blocks<kActivation>(cores::DeviceWarp{}, own);
        const int column = first_column + first / 2 * kGatedBlock;
        if (row < n_rows && column < n_columns)
          *reinterpret_cast<cores::Quad*>(out + row * row_stride + column) = gated.value;
      }
    }
  }

 private:
  Params params_;
};

}  // namespace switchyard::gpu

#endif
