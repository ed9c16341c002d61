#pragma once

#ifdef __CUDACC__

#include <cstdint>

#include "pipeline/kernels/cuda/warp.h"

namespace switchyard::cores {

/// A warp on a GPU: as HostWarp, each lane a thread. All 32 threads take part in every call.
struct DeviceWarp {
  template <typename T>
  struct Lanes {
    T value;
    __device__ T& operator[](int /*lane*/) { return value; }
    __device__ const T& operator[](int /*lane*/) const { return value; }
  };

  static constexpr unsigned kAll = 0xffffffffU;

  template <typename Work>
  __device__ void each(Work work) const {
    work(static_cast<int>(threadIdx.x % kLanes));
  }

  template <typename T>
  __device__ T largest(Lanes<T> lanes) const {
    for (int step = kLanes / 2; step > 0; step /= 2) {
      const T other = __shfl_xor_sync(kAll, lanes.value, step);
      lanes.value = other > lanes.value ? other : lanes.value;
    }
    return lanes.value;
  }
  template <typename T>
  __device__ T sum(Lanes<T> lanes) const {
    for (int step = kLanes / 2; step > 0; step /= 2) lanes.value += __shfl_xor_sync(kAll, lanes.value, step);
    return lanes.value;
  }
  __device__ float broadcast(const Lanes<float>& lanes, int lane) const { return __shfl_sync(kAll, lanes.value, lane); }
  __device__ void quad_largest(Lanes<float>& lanes) const {
    for (int step = 2; step > 0; step /= 2) lanes.value = fmaxf(lanes.value, __shfl_xor_sync(kAll, lanes.value, step));
  }
  __device__ void quad_sum(Lanes<float>& lanes) const {
    for (int step = 2; step > 0; step /= 2) lanes.value += __shfl_xor_sync(kAll, lanes.value, step);
  }

  __device__ void quad_transpose(Lanes<Quad>& lanes) const {
    const unsigned lane = threadIdx.x % kLanes;
    std::uint32_t* const at = lanes.value.at;
    SWITCHYARD_UNROLL
    for (unsigned step = 1; step < 4; step *= 2) {
      const bool upper = (lane & step) != 0;
      SWITCHYARD_UNROLL
      for (unsigned i = 0; i < 4; ++i) {
        if ((i & step) != 0) continue;
        const std::uint32_t low = at[i];
        const std::uint32_t high = at[i + step];
        const std::uint32_t got = __shfl_xor_sync(kAll, upper ? low : high, static_cast<int>(step));
        at[i] = upper ? got : low;
        at[i + step] = upper ? high : got;
      }
    }
  }

  __device__ void multiply(Lanes<FragmentC>& c, const Lanes<FragmentA>& a, const Lanes<FragmentB>& b) const {
    float* sums = c.value.values;
    const std::uint32_t* left = a.value.pairs;
    const std::uint32_t* right = b.value.pairs;
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "r"(right[0]), "r"(right[1]));
  }
};

}  // namespace switchyard::cores

#endif
