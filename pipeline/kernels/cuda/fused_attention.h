#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "parallel/device/device_array.h"
#include "parallel/tensor.h"
#include "pipeline/kernels/attention.h"
#include "pipeline/kernels/cuda/cudnn_graph.h"

/// Attention by cuDNN: bf16 windows that see themselves alone. Windows that continue a cache stay with attention.h: for
/// their few queries over many keys cuDNN may sum the keys in parts, as many as suit the lengths and number of all
/// windows, and then a token's bits would depend on what shares its step.
namespace switchyard::gpu {

/// Windows of a batch as cuDNN is told of them. Their number is rounded up to a power of two, so that few graphs serve
/// all batches; each spare window is one row of its own behind the batch's rows, because cuDNN before 9.25 makes NaN of
/// empty ones.
struct WindowLayout {
  std::int64_t n_windows;                   // with spare ones
  std::int64_t longest;                     // tokens of the longest window
  std::vector<std::int64_t> query_offsets;  // [n_windows + 1] in elements
  std::vector<std::int64_t> key_offsets;    // [n_windows + 1]
  std::vector<std::int32_t> lengths;        // [n_windows] tokens

  std::int64_t spare_rows;
};
/// offsets: [w + 1] as in Batch, at least one window.
WindowLayout lay_out(std::span<const std::int32_t> offsets, const AttentionShape& heads);

/// Tokens that the graph of such windows has room for: a power of two, so that there are few. Never few tokens: for one
/// alone cuDNN takes a kernel that cannot attend to more.
std::int64_t length_of_graph(std::int64_t tokens);

/// A layout in GPU memory.
struct PackedWindows {
  explicit PackedWindows(const WindowLayout& layout);

  std::int64_t n_windows, longest, spare_rows;
  DeviceArray<std::int64_t> query_offsets, key_offsets;
  DeviceArray<std::int32_t> lengths;
};

/// Of heads of one shape, on the GPU of this process. What computes it is chosen once, for the longest windows, and
/// taken for every batch: cuDNN's kernel walks over a window's keys in steps of one size, whatever else is there. So a
/// row's bits should not depend on what shares the call; tests on a GPU look whether that is so.
class FusedAttention {
 public:
  /// context: tokens of the longest windows; longer ones are taken too. Throws Error with the reason when cuDNN cannot
  /// be used, or has no plan for such heads.
  FusedAttention(const AttentionShape& heads, std::int64_t context);

  /// As attention() of attention.h. q, k, v: bf16, with windows.spare_rows more rows of finite numbers behind the
  /// batch's.
  Tensor attend(const Tensor& q, const Tensor& k, const Tensor& v, const PackedWindows& windows) const;

 private:
  AttentionShape heads_;
  std::int64_t context_;
  const CudnnGraph* chosen_;  // for one window
};

}  // namespace switchyard::gpu
