#include "pipeline/kernels/cuda/attention.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "parallel/error.h"
#include "pipeline/kernels/cuda/attention_launch.h"

namespace switchyard::gpu {
namespace {

constexpr int kMostWindows = 65535;  // of a grid's third dimension

std::vector<WindowPlace> places_of(std::span<const std::int32_t> offsets) {
  std::vector<WindowPlace> places;
  for (std::size_t w = 0; w + 1 < offsets.size(); ++w)
    places.push_back({.first_row = offsets[w], .n = offsets[w + 1] - offsets[w], .start = 0, .first_key = offsets[w]});
  return places;
}

std::vector<WindowPlace> places_of(const ContinuedWindows& windows, std::span<const std::int64_t> cache_offsets) {
  std::vector<WindowPlace> places = places_of(windows.offsets);
  for (std::size_t w = 0; w < places.size(); ++w) {
    places[w].start = windows.start[w];
    places[w].first_key = static_cast<std::int32_t>(cache_offsets[static_cast<std::size_t>(windows.sequence[w])]);
  }
  return places;
}

/// [n] f(window, number in the window) of each token.
template <typename Value>
DeviceArray<std::int32_t> by_token(const std::vector<WindowPlace>& windows, Value value) {
  std::vector<std::int32_t> values;
  for (const WindowPlace& window : windows)
    for (std::int32_t i = 0; i < window.n; ++i) values.push_back(value(window, i));
  return DeviceArray<std::int32_t>(std::span<const std::int32_t>(values));
}

template <typename T>
void split(TensorView qkv, const DeviceWindows& windows, const AttentionShape& shape, const DeviceRope& rope, Tensor& q,
           Tensor& k, Tensor& v) {
  launch_split<T>({.qkv = qkv.data<float>(),
                   .position = windows.position.data(),
                   .key_row = windows.key_row.data(),
                   .cosines = rope.cosines.data<float>(),
                   .sines = rope.sines.data<float>(),
                   .q = q.data<T>(),
                   .k = k.data<T>(),
                   .v = v.data<T>()},
                  qkv.rows(), shape);
}

template <typename T>
void attend(TensorView q, TensorView k, TensorView v, const DeviceWindows& windows, const AttentionShape& shape,
            Tensor& out) {
  launch_attention<T>({.q = q.data<T>(),
                       .k = k.data<T>(),
                       .v = v.data<T>(),
                       .out = out.data<T>(),
                       .windows = windows.places.data(),
                       .n_windows = windows.n_windows,
                       .longest = windows.longest},
                      shape, shape.scale > 0 ? shape.scale : 1.0F / std::sqrt(static_cast<float>(shape.head_dim)));
}

}  // namespace

DeviceWindows::DeviceWindows(std::span<const std::int32_t> offsets) : DeviceWindows(places_of(offsets)) {}

DeviceWindows::DeviceWindows(const ContinuedWindows& windows, std::span<const std::int64_t> cache_offsets)
    : DeviceWindows(places_of(windows, cache_offsets)) {}

DeviceWindows::DeviceWindows(std::vector<WindowPlace> windows)
    : n_windows(static_cast<int>(windows.size())),
      longest(0),
      positions(0),
      places(std::span<const WindowPlace>(windows)),
      position(by_token(windows, [](const WindowPlace& window, std::int32_t i) { return window.start + i; })),
      key_row(by_token(windows,
                       [](const WindowPlace& window, std::int32_t i) { return window.first_key + window.start + i; })) {
  for (const WindowPlace& window : windows) {
    longest = std::max(longest, window.n);
    positions = std::max<std::int64_t>(positions, window.start + window.n);
  }
}

DeviceRope copy_rope(RopeTable& table, std::int64_t positions, int head_dim) {
  table.grow(positions);
  const std::int64_t half = head_dim / 2;
  Tensor cosines(DType::f32, positions, half);
  Tensor sines(DType::f32, positions, half);
  for (std::int64_t p = 0; p < positions; ++p) {
    std::ranges::copy(table.cosines(p), cosines.row<float>(p).begin());
    std::ranges::copy(table.sines(p), sines.row<float>(p).begin());
  }
  return {copy_to(Device::gpu, cosines), copy_to(Device::gpu, sines)};
}

Tensor split_heads(TensorView qkv, const DeviceWindows& windows, const AttentionShape& shape, const DeviceRope& rope,
                   Tensor& k, Tensor& v, std::int64_t spare_rows) {
  const std::int64_t columns = static_cast<std::int64_t>(shape.n_heads) * shape.head_dim;
  Tensor q(k.dtype(), qkv.rows() + spare_rows, columns, Device::gpu);
  if (qkv.rows() == 0) return q;
  q.dtype() == DType::bf16 ? split<Bf16>(qkv, windows, shape, rope, q, k, v)
                           : split<float>(qkv, windows, shape, rope, q, k, v);
  return q;
}

Tensor attention(TensorView q, TensorView k, TensorView v, const DeviceWindows& windows, const AttentionShape& shape) {
  if (shape.head_dim > kWidestHead) {
    throw Error("the GPU's attention has room for heads of " + std::to_string(kWidestHead) + " columns, not of " +
                    std::to_string(shape.head_dim),
                {}, "route this model on the CPU");
  }
  if (windows.n_windows > kMostWindows) {
    throw Error("the GPU's attention takes " + std::to_string(kMostWindows) + " windows at once, not " +
                    std::to_string(windows.n_windows),
                {}, "use smaller --batch-tokens");
  }
  Tensor out(q.dtype(), q.rows(), q.cols(), Device::gpu);
  if (out.rows() == 0) return out;
  out.dtype() == DType::bf16 ? attend<Bf16>(q, k, v, windows, shape, out) : attend<float>(q, k, v, windows, shape, out);
  return out;
}

}  // namespace switchyard::gpu
