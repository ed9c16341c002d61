#pragma once

#include <cstdint>
#include <span>

#include "parallel/device/device_array.h"
#include "parallel/tensor.h"
#include "pipeline/kernels/attention.h"

/// Causal attention over packed windows in GPU memory; in the compute stream.
namespace switchyard::gpu {

/// Where the tokens of a batch are, in GPU memory.
struct DeviceWindows {
  /// offsets: [w + 1] as in Batch. Copies to the GPU.
  explicit DeviceWindows(std::span<const std::int32_t> offsets);

  int n_windows;
  int longest;                         // tokens of the longest window
  DeviceArray<std::int32_t> offsets;   // [w + 1]
  DeviceArray<std::int32_t> position;  // [n] of each token in its window
};

/// Queries, keys and values of a batch by token, queries and keys rotated.
struct DeviceHeads {
  Tensor q;     // [n, n_heads * head_dim]
  Tensor k, v;  // [n, n_kv_heads * head_dim]
};

/// Cosines and sines of a RopeTable: [positions, head_dim / 2] f32 each, in GPU memory.
struct DeviceRope {
  Tensor cosines, sines;
};
DeviceRope copy_rope(RopeTable& table, std::int64_t positions, int head_dim);

/// qkv: [n, all query heads | all key heads | all value heads] f32 -> heads of type `out`. rope has the positions of
/// the longest window.
DeviceHeads split_heads(TensorView qkv, const DeviceWindows& windows, const AttentionShape& shape,
                        const DeviceRope& rope, DType out);

/// softmax(cap(scale * q k^T)) v, causal, within windows -> [n, n_heads * head_dim] of the heads' type. bf16 with heads
/// of 64 or 128 on the matrix units, else plainly. A window's result depends on that window alone. Throws Error for
/// heads wider than 256.
Tensor attention(const DeviceHeads& heads, const DeviceWindows& windows, const AttentionShape& shape);

}  // namespace switchyard::gpu
