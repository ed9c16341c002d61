#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "parallel/device/device_array.h"
#include "parallel/tensor.h"
#include "pipeline/kernels/attention.h"

/// Causal attention over packed windows in GPU memory; in the compute stream.
namespace switchyard::gpu {

/// One window: its queries are rows [first_row, first_row + n) of the batch and positions [start, start + n) of their
/// sequence, whose keys are rows [first_key, first_key + start + n).
struct WindowPlace {
  std::int32_t first_row, n, start, first_key;
};

/// Where the tokens of a batch are, in GPU memory.
struct DeviceWindows {
  /// Windows that see themselves alone, their keys in the batch's order. offsets: [w + 1] as in Batch.
  explicit DeviceWindows(std::span<const std::int32_t> offsets);
  /// Windows that continue sequences of a cache, whose keys are rows [cache_offsets[s], cache_offsets[s + 1]).
  DeviceWindows(const ContinuedWindows& windows, std::span<const std::int64_t> cache_offsets);

  int n_windows;
  int longest;                         // tokens of the longest window
  std::int64_t positions;              // of the longest sequence, up to its window's end
  DeviceArray<WindowPlace> places;     // [w]
  DeviceArray<std::int32_t> position;  // [n] of each token in its sequence
  DeviceArray<std::int32_t> key_row;   // [n] where its key and value belong

 private:
  explicit DeviceWindows(std::vector<WindowPlace> windows);
};

/// Cosines and sines of a RopeTable: [positions, head_dim / 2] f32 each, in GPU memory.
struct DeviceRope {
  Tensor cosines, sines;
};
DeviceRope copy_rope(RopeTable& table, std::int64_t positions, int head_dim);

/// qkv: [n, all query heads | all key heads | all value heads] f32 -> queries [n, n_heads * head_dim] of k's type,
/// rotated, with spare_rows more behind them. Keys, rotated, and values go to rows windows.key_row of k and v [at least
/// as many, n_kv_heads * head_dim]. rope has the windows' positions.
Tensor split_heads(TensorView qkv, const DeviceWindows& windows, const AttentionShape& shape, const DeviceRope& rope,
                   Tensor& k, Tensor& v, std::int64_t spare_rows = 0);

/// softmax(cap(scale * q k^T)) v, causal, within windows -> [n, n_heads * head_dim] of the type of q. bf16 with heads
/// of 64 or 128 on the matrix units, else plainly. A row's bits depend on its sequence alone. Throws Error for heads
/// wider than 256 and for more than 65535 windows.
Tensor attention(TensorView q, TensorView k, TensorView v, const DeviceWindows& windows, const AttentionShape& shape);

}  // namespace switchyard::gpu
