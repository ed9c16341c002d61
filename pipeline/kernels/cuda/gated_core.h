#pragma once

#include <cstdint>

#include "pipeline/kernels/cuda/activation_core.h"
#include "pipeline/kernels/cuda/warp.h"
#include "pipeline/kernels/gated_ffn.h"

namespace switchyard::cores {

/// As silu, a few units in the last place of f32 from it, in a fifth of the instructions.
SWITCHYARD_CORE float fast_silu(float x) {
#ifdef __CUDACC__
  return __fdividef(x, 1.0F + __expf(-x));
#else
  return silu(x);
#endif
}

/// As pair_of, by the GPU's own instruction, with which kernels that are short of registers spill some.
SWITCHYARD_CORE std::uint32_t rounded_pair(float low, float high) {
#ifdef __CUDACC__
  std::uint32_t pair = 0;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
#else
  return pair_of(low, high);
#endif
}

/// What a lane holds of a row of four blocks of 8 gates and of four of their ups, as matrix units leave it (FragmentC):
/// row lane / 4, of each block the columns lane % 4 * 2 and the next.
struct GatedSums {
  float gates[4][2];
  float ups[4][2];
};

/// activation(gate) * up in bf16: lanes come to hold the 8 numbers of block lane % 4 in their order.
template <Activation kActivation, typename Warp>
SWITCHYARD_CORE typename Warp::template Lanes<Quad> gate_blocks(const Warp& warp,
                                                                const typename Warp::template Lanes<GatedSums>& sums) {
  const auto activation = [](float gate) { return kActivation == Activation::silu ? fast_silu(gate) : gelu(gate); };
  typename Warp::template Lanes<Quad> gated;
  warp.each([&](int lane) {
    SWITCHYARD_UNROLL
    for (int block = 0; block < 4; ++block) {
      const float* const gates = sums[lane].gates[block];
      const float* const ups = sums[lane].ups[block];
      gated[lane].at[block] = rounded_pair(activation(gates[0]) * ups[0], activation(gates[1]) * ups[1]);
    }
  });
  warp.quad_transpose(gated);
  return gated;
}

}  // namespace switchyard::cores
