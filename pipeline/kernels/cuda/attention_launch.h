#pragma once

#include <cstdint>

#include "parallel/bf16.h"
#include "pipeline/kernels/cuda/attention.h"

/// The launches of attention.cu: kernels over arrays in GPU memory, in the compute stream. T: float or Bf16.
namespace switchyard::gpu {

inline constexpr int kWidestHead = 256;

template <typename T>
struct SplitArrays {
  const float* qkv;
  const std::int32_t* position;
  const std::int32_t* key_row;
  const float* cosines;
  const float* sines;
  T* q;
  T* k;
  T* v;
};
template <typename T>
void launch_split(const SplitArrays<T>& all, std::int64_t n_tokens, const AttentionShape& shape);

template <typename T>
struct HeadArrays {
  const T* q;
  const T* k;
  const T* v;
  T* out;
  const WindowPlace* windows;
  int n_windows, longest;
};
/// scale: of scores, not 0.
template <typename T>
void launch_attention(const HeadArrays<T>& all, const AttentionShape& shape, float scale);

}  // namespace switchyard::gpu
