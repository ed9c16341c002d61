#pragma once

#include <cmath>
#include <cstdint>

#include "parallel/bf16.h"

/// GPU kernels' arithmetic is written over a Warp: 32 lanes that hold values, do the same on each, and exchange them.
/// On a GPU (DeviceWarp, device_warp.h) a lane is a thread and its value a register; on the host (HostWarp) lanes are a
/// loop, so that tests run the same source against the CPU's kernels. What a warp returns as one value is equal on all
/// lanes.
#ifdef __CUDACC__
#define SWITCHYARD_CORE __device__ inline
#define SWITCHYARD_UNROLL _Pragma("unroll")      // where arrays must stay in registers
#define SWITCHYARD_UNROLL_4 _Pragma("unroll 4")  // where loads of several turns should be under way at once
#else
#define SWITCHYARD_CORE inline
#define SWITCHYARD_UNROLL
#define SWITCHYARD_UNROLL_4
#endif

namespace switchyard::cores {

inline constexpr int kLanes = 32;

SWITCHYARD_CORE std::uint32_t bits_of(float value) {
  std::uint32_t bits = 0;
  __builtin_memcpy(&bits, &value, sizeof bits);
  return bits;
}

SWITCHYARD_CORE float value_of(std::uint32_t bits) {
  float value = 0;
  __builtin_memcpy(&value, &bits, sizeof value);
  return value;
}

/// As Bf16(float): to nearest, ties to even, NaN stays NaN.
SWITCHYARD_CORE std::uint32_t bf16_bits(float value) {
  const std::uint32_t word = bits_of(value);
  const bool nan = (word & 0x7fffffffU) > 0x7f800000U;
  return nan ? (word >> 16U) | 0x40U : (word + 0x7fffU + ((word >> 16U) & 1U)) >> 16U;
}

/// Two of bf16, `low` in the lower half, where memory has the first.
SWITCHYARD_CORE std::uint32_t pair_of(float low, float high) { return bf16_bits(low) | bf16_bits(high) << 16U; }

/// One more, beside other threads that count.
template <typename T>
SWITCHYARD_CORE void count(T* cell) {
#ifdef __CUDACC__
  atomicAdd(cell, T{1});
#else
  ++*cell;
#endif
}

SWITCHYARD_CORE float widen(float value) { return value; }
SWITCHYARD_CORE float widen(Bf16 value) { return value_of(static_cast<std::uint32_t>(value.bits) << 16U); }

SWITCHYARD_CORE void store(float* to, float value) { *to = value; }
SWITCHYARD_CORE void store(Bf16* to, float value) { to->bits = static_cast<std::uint16_t>(bf16_bits(value)); }

/// What a thread moves at once of a row whose columns are a multiple of kWidth: memory is at its fastest at 16 bytes of
/// each thread.
template <typename T, int kWidth>
struct alignas(kWidth * sizeof(T)) Pack {
  T at[kWidth];
};
inline constexpr int kPackWidth = 4;

template <int kWidth, typename T>
SWITCHYARD_CORE Pack<float, kWidth> load(const T* from) {
  const auto pack = *reinterpret_cast<const Pack<T, kWidth>*>(from);
  Pack<float, kWidth> wide;
  SWITCHYARD_UNROLL
  for (int i = 0; i < kWidth; ++i) wide.at[i] = widen(pack.at[i]);
  return wide;
}

template <int kWidth, typename T>
SWITCHYARD_CORE void store(T* to, const Pack<float, kWidth>& values) {
  Pack<T, kWidth> pack;
  SWITCHYARD_UNROLL
  for (int i = 0; i < kWidth; ++i) store(pack.at + i, values.at[i]);
  *reinterpret_cast<Pack<T, kWidth>*>(to) = pack;
}

/// Orders by value, then by lower index: the larger key wins. -0 equals +0; NaN is behind all numbers.
SWITCHYARD_CORE std::uint64_t ranking_key(float value, std::uint32_t index) {
  const std::uint32_t bits = bits_of(value + 0.0F);  // -0 becomes +0
  const bool negative = (bits >> 31U) != 0;
  const std::uint32_t ordered = value != value ? 0 : negative ? ~bits : bits | 0x80000000U;
  return static_cast<std::uint64_t>(ordered) << 32U | (0xffffffffU - index);
}

SWITCHYARD_CORE std::uint32_t index_of_key(std::uint64_t key) { return 0xffffffffU - static_cast<std::uint32_t>(key); }

// What mma.sync.m16n8k16 multiplies, by lane (PTX ISA, "Matrix Fragments for mma.m16n8k16").
struct FragmentA {
  std::uint32_t pairs[4];  // of bf16: row lane / 4 (+ 8: 1, 3), columns lane % 4 * 2 and the next (+ 8: 2, 3)
};
struct FragmentB {
  std::uint32_t pairs[2];  // rows lane % 4 * 2 and the next (+ 8: 1), column lane / 4
};
struct FragmentC {
  float values[4];  // row lane / 4 (+ 8: 2, 3), columns lane % 4 * 2 (+ 1: 1, 3)
};

/// Four words of a lane, such as 8 numbers of bf16.
struct alignas(16) Quad {
  std::uint32_t at[4];
};

#ifndef __CUDACC__
/// A warp on the host.
struct HostWarp {
  template <typename T>
  struct Lanes {
    T values[kLanes] = {};
    T& operator[](int lane) { return values[lane]; }
    const T& operator[](int lane) const { return values[lane]; }
  };

  template <typename Work>
  void each(Work work) const {
    for (int lane = 0; lane < kLanes; ++lane) work(lane);
  }

  /// Of all lanes; sums in the order of a butterfly, as on the device.
  template <typename T>
  T largest(const Lanes<T>& lanes) const {
    T most = lanes[0];
    for (int lane = 1; lane < kLanes; ++lane) most = lanes[lane] > most ? lanes[lane] : most;
    return most;
  }
  template <typename T>
  T sum(Lanes<T> lanes) const {
    butterfly(lanes, kLanes, [](T a, T b) { return a + b; });
    return lanes[0];
  }
  /// The value of one lane.
  float broadcast(const Lanes<float>& lanes, int lane) const { return lanes[lane]; }

  /// Within each four lanes that follow one another, which hold a row of FragmentC.
  void quad_largest(Lanes<float>& lanes) const {
    butterfly(lanes, 4, [](float a, float b) { return std::fmax(a, b); });
  }
  void quad_sum(Lanes<float>& lanes) const {
    butterfly(lanes, 4, [](float a, float b) { return a + b; });
  }

  /// Word i of lane j, of those four, becomes word j of lane i.
  void quad_transpose(Lanes<Quad>& lanes) const {
    const Lanes<Quad> before = lanes;
    for (int lane = 0; lane < kLanes; ++lane)
      for (int i = 0; i < 4; ++i) lanes[lane].at[i] = before[lane / 4 * 4 + i].at[lane % 4];
  }

  /// c += a * b, by the layout of the fragments.
  void multiply(Lanes<FragmentC>& c, const Lanes<FragmentA>& a, const Lanes<FragmentB>& b) const {
    float left[16][16];
    float right[16][8];
    for (int lane = 0; lane < kLanes; ++lane) {
      for (int half = 0; half < 2; ++half) {
        for (int i = 0; i < 4; ++i)
          left[lane / 4 + i % 2 * 8][lane % 4 * 2 + half + i / 2 * 8] = half_of(a[lane].pairs[i], half);
        for (int i = 0; i < 2; ++i) right[lane % 4 * 2 + half + i * 8][lane / 4] = half_of(b[lane].pairs[i], half);
      }
    }
    for (int lane = 0; lane < kLanes; ++lane)
      for (int i = 0; i < 4; ++i)
        for (int k = 0; k < 16; ++k)
          c[lane].values[i] += left[lane / 4 + i / 2 * 8][k] * right[k][lane % 4 * 2 + i % 2];
  }

 private:
  static float half_of(std::uint32_t pair, int half) { return value_of((half == 0 ? pair : pair >> 16U) << 16U); }

  template <typename T, typename Combine>
  static void butterfly(Lanes<T>& lanes, int width, Combine combine) {
    for (int step = width / 2; step > 0; step /= 2) {
      const Lanes<T> before = lanes;
      for (int lane = 0; lane < kLanes; ++lane) lanes[lane] = combine(before[lane], before[lane ^ step]);
    }
  }
};
#endif

}  // namespace switchyard::cores
