#include <cassert>
#include <utility>

#include "pipeline/kernels/cuda/device_warp.h"
#include "pipeline/kernels/cuda/launch.h"
#include "pipeline/kernels/cuda/rows.h"
#include "pipeline/kernels/cuda/rows_core.h"

namespace switchyard::gpu {
namespace {

// One block a row, a thread a column in turns.

template <typename T>
__global__ void embed_kernel(const T* table, const std::uint32_t* tokens, std::int64_t d, float scale, float* x) {
  const T* from = table + tokens[blockIdx.x] * d;
  for (std::int64_t i = threadIdx.x; i < d; i += blockDim.x) x[blockIdx.x * d + i] = cores::widen(from[i]) * scale;
}

template <typename T>
__global__ void gather_slots_kernel(const float* h, const std::int32_t* slots, int top_k, std::int64_t d, T* rows) {
  const float* from = h + slots[blockIdx.x] / top_k * d;
  for (std::int64_t i = threadIdx.x; i < d; i += blockDim.x) cores::store(rows + blockIdx.x * d + i, from[i]);
}

/// Word: as much of a row as a thread moves at once.
template <typename Word, bool kUndo>
__global__ void permute_kernel(const Word* rows, const std::int32_t* order, std::int64_t words, Word* out) {
  const std::int64_t there = order[blockIdx.x];
  const std::int64_t here = blockIdx.x;
  const Word* from = rows + (kUndo ? here : there) * words;
  Word* to = out + (kUndo ? there : here) * words;
  for (std::int64_t i = threadIdx.x; i < words; i += blockDim.x) to[i] = from[i];
}

template <typename T>
__global__ void add_weighted_kernel(const T* rows, const std::int32_t* row_of_slot, const float* weights, int top_k,
                                    std::int64_t d, float* x) {
  const std::int64_t slot = static_cast<std::int64_t>(blockIdx.x) * top_k;
  for (std::int64_t i = threadIdx.x; i < d; i += blockDim.x)
    x[blockIdx.x * d + i] += cores::weighted_sum(rows, d, row_of_slot + slot, weights + slot, top_k, i);
}

// One warp a row.

template <typename T>
__global__ void __launch_bounds__(kWarpThreads)
    rms_norm_kernel(const float* x, const float* weight, float epsilon, std::int64_t n, int d, T* out) {
  const std::int64_t row = static_cast<std::int64_t>(blockIdx.x) * kWarpsOfBlock + threadIdx.x / 32;
  if (row < n) cores::rms_norm_row(cores::DeviceWarp{}, x + row * d, weight, epsilon, d, out + row * d);
}

// One thread an element.

__global__ void add_rows_kernel(const float* rows, std::int64_t n, float* x) {
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i < n) x[i] += rows[i];
}

__global__ void invert_kernel(const std::int32_t* slots, std::int32_t first, std::int32_t n,
                              std::int32_t* row_of_slot) {
  const auto i = static_cast<std::int32_t>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < n) row_of_slot[slots[i] - first] = i;
}

/// Calls work with a null pointer to the element type.
template <typename Work>
void with_type(DType type, Work work) {
  if (type == DType::bf16) {
    work(static_cast<Bf16*>(nullptr));
  } else {
    work(static_cast<float*>(nullptr));
  }
}

template <bool kUndo>
Tensor permute(TensorView rows, const DeviceArray<std::int32_t>& order, BufferSource* memory) {
  const auto n = static_cast<std::int64_t>(order.size());
  Tensor out(rows.dtype(), n, rows.cols(), Device::gpu, memory);
  if (n == 0) return out;
  const auto launch = [&]<typename Word>(const Word* from, Word* to) {
    permute_kernel<Word, kUndo><<<static_cast<unsigned>(n), kThreads, 0, compute_stream().handle()>>>(
        from, order.data(), rows.row_bytes() / static_cast<std::int64_t>(sizeof(Word)), to);
  };
  if (rows.row_bytes() % sizeof(uint4) == 0) {
    launch(reinterpret_cast<const uint4*>(rows.bytes()), reinterpret_cast<uint4*>(out.bytes()));
  } else {
    launch(reinterpret_cast<const std::uint16_t*>(rows.bytes()), reinterpret_cast<std::uint16_t*>(out.bytes()));
  }
  check_launch("permute_kernel");
  return out;
}

}  // namespace

Tensor embed(TensorView table, const DeviceArray<std::uint32_t>& tokens, float scale) {
  Tensor x(DType::f32, static_cast<std::int64_t>(tokens.size()), table.cols(), Device::gpu);
  if (x.rows() == 0) return x;
  with_type(table.dtype(), [&]<typename T>(T*) {
    embed_kernel<<<static_cast<unsigned>(x.rows()), kThreads, 0, compute_stream().handle()>>>(
        table.data<T>(), tokens.data(), x.cols(), scale, x.data<float>());
  });
  check_launch("embed_kernel");
  return x;
}

Tensor rms_norm(TensorView x, TensorView weight, float epsilon, DType out) {
  assert(weight.cols() == x.cols());
  Tensor y(out, x.rows(), x.cols(), Device::gpu);
  if (x.rows() == 0) return y;
  with_type(out, [&]<typename T>(T*) {
    rms_norm_kernel<<<blocks_for(x.rows(), kWarpsOfBlock), kWarpThreads, 0, compute_stream().handle()>>>(
        x.data<float>(), weight.data<float>(), epsilon, x.rows(), static_cast<int>(x.cols()), y.data<T>());
  });
  check_launch("rms_norm_kernel");
  return y;
}

Tensor gather_slots(TensorView h, const DeviceArray<std::int32_t>& slots, int top_k, DType out, BufferSource* memory) {
  Tensor rows(out, static_cast<std::int64_t>(slots.size()), h.cols(), Device::gpu, memory);
  if (rows.rows() == 0) return rows;
  with_type(out, [&]<typename T>(T*) {
    gather_slots_kernel<<<static_cast<unsigned>(rows.rows()), kThreads, 0, compute_stream().handle()>>>(
        h.data<float>(), slots.data(), top_k, h.cols(), rows.data<T>());
  });
  check_launch("gather_slots_kernel");
  return rows;
}

Tensor gather(TensorView rows, const DeviceArray<std::int32_t>& order) { return permute<false>(rows, order, nullptr); }

Tensor scatter(TensorView rows, const DeviceArray<std::int32_t>& order, BufferSource* memory) {
  return permute<true>(rows, order, memory);
}

void add_rows(Tensor& x, TensorView rows) {
  const std::int64_t n = x.rows() * x.cols();
  if (n == 0) return;
  add_rows_kernel<<<blocks_for(n, kThreads), kThreads, 0, compute_stream().handle()>>>(rows.data<float>(), n,
                                                                                       x.data<float>());
  check_launch("add_rows_kernel");
}

void add_weighted(Tensor& x, std::int64_t first, TensorView rows, TensorView weights,
                  const DeviceArray<std::int32_t>& slots) {
  if (weights.rows() == 0) return;
  DeviceArray<std::int32_t> row_of_slot(slots.size());
  invert_kernel<<<blocks_for(rows.rows(), kThreads), kThreads, 0, compute_stream().handle()>>>(
      slots.data(), static_cast<std::int32_t>(first * weights.cols()), static_cast<std::int32_t>(slots.size()),
      row_of_slot.data());
  check_launch("invert_kernel");
  with_type(rows.dtype(), [&]<typename T>(T*) {
    add_weighted_kernel<<<static_cast<unsigned>(weights.rows()), kThreads, 0, compute_stream().handle()>>>(
        rows.data<T>(), row_of_slot.data(), weights.data<float>(), static_cast<int>(weights.cols()), x.cols(),
        x.data<float>() + first * x.cols());
  });
  check_launch("add_weighted_kernel");
}

}  // namespace switchyard::gpu
