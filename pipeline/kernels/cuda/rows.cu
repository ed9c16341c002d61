#include <cassert>
#include <utility>

#include "pipeline/kernels/cuda/device_warp.h"
#include "pipeline/kernels/cuda/launch.h"
#include "pipeline/kernels/cuda/rows.h"
#include "pipeline/kernels/cuda/rows_core.h"

namespace switchyard::gpu {
namespace {

// One block a row, a thread a pack of columns in turns.

/// Calls work with the first column of each pack that is this thread's.
template <int kWidth, typename Work>
__device__ void for_packs(std::int64_t columns, Work work) {
  SWITCHYARD_UNROLL_4
  for (std::int64_t i = threadIdx.x * kWidth; i < columns; i += blockDim.x * kWidth) work(i);
}

template <int kWidth, typename T>
__global__ void __launch_bounds__(kThreads)
    embed_kernel(const T* table, const std::uint32_t* tokens, std::int64_t d, float scale, float* x) {
  const T* from = table + tokens[blockIdx.x] * d;
  float* to = x + blockIdx.x * d;
  for_packs<kWidth>(d, [&](std::int64_t i) {
    auto own = cores::load<kWidth>(from + i);
    SWITCHYARD_UNROLL
    for (int j = 0; j < kWidth; ++j) own.at[j] *= scale;
    cores::store<kWidth>(to + i, own);
  });
}

/// A token's row is read once and written for each of its slots.
template <int kWidth, typename T>
__global__ void __launch_bounds__(kThreads)
    gather_slots_kernel(const float* h, const std::int32_t* row_of_slot, int top_k, std::int64_t d, T* rows) {
  const float* from = h + blockIdx.x * d;
  const std::int32_t* to = row_of_slot + static_cast<std::int64_t>(blockIdx.x) * top_k;
  for_packs<kWidth>(d, [&](std::int64_t i) {
    const auto own = cores::load<kWidth>(from + i);
    for (int j = 0; j < top_k; ++j) cores::store<kWidth>(rows + to[j] * d + i, own);
  });
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

template <int kWidth, typename T>
__global__ void __launch_bounds__(kThreads)
    add_weighted_kernel(const T* rows, const std::int32_t* row_of_slot, const float* weights, int top_k, std::int64_t d,
                        float* x) {
  const std::int64_t slot = static_cast<std::int64_t>(blockIdx.x) * top_k;
  float* to = x + blockIdx.x * d;
  for_packs<kWidth>(d, [&](std::int64_t i) {
    auto own = cores::load<kWidth>(to + i);
    const auto sums = cores::weighted_sum<kWidth>(rows, d, row_of_slot + slot, weights + slot, top_k, i);
    SWITCHYARD_UNROLL
    for (int j = 0; j < kWidth; ++j) own.at[j] += sums.at[j];
    cores::store<kWidth>(to + i, own);
  });
}

// One warp a row.

template <int kWidth, typename T>
__global__ void __launch_bounds__(kWarpThreads)
    rms_norm_kernel(const float* x, const float* weight, float epsilon, std::int64_t n, int d, T* out) {
  const std::int64_t row = static_cast<std::int64_t>(blockIdx.x) * kWarpsOfBlock + threadIdx.x / 32;
  if (row < n) cores::rms_norm_row<kWidth>(cores::DeviceWarp{}, x + row * d, weight, epsilon, d, out + row * d);
}

template <int kWidth, typename T>
__global__ void __launch_bounds__(kWarpThreads)
    slot_norms_kernel(const T* rows, const std::int32_t* row_of_slot, std::int64_t n, int d, double* norms) {
  const std::int64_t slot = static_cast<std::int64_t>(blockIdx.x) * kWarpsOfBlock + threadIdx.x / 32;
  if (slot >= n) return;
  const double norm = cores::row_norm<kWidth>(cores::DeviceWarp{}, rows + row_of_slot[slot] * std::int64_t{d}, d);
  if (threadIdx.x % 32 == 0) norms[slot] = norm;
}

// One thread an element.

__global__ void add_rows_kernel(const float* rows, std::int64_t n, float* x) {
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i < n) x[i] += rows[i];
}

/// Calls work with a null pointer to the element type, and with the width of packs of rows of so many columns.
template <typename Work>
void with_type_and_packs(DType type, std::int64_t columns, Work work) {
  with_packs(columns, [&](auto width) {
    if (type == DType::bf16) {
      work(static_cast<Bf16*>(nullptr), width);
    } else {
      work(static_cast<float*>(nullptr), width);
    }
  });
}

/// Blocks, and threads of each, that take a row each.
struct RowLaunch {
  unsigned blocks, threads;
  RowLaunch(std::int64_t rows, std::int64_t columns, int width)
      : blocks(static_cast<unsigned>(rows)), threads(threads_for(columns / width)) {}
};

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
  with_type_and_packs(table.dtype(), x.cols(), [&]<typename T, int kWidth>(T*, Width<kWidth>) {
    const RowLaunch grid(x.rows(), x.cols(), kWidth);
    embed_kernel<kWidth><<<grid.blocks, grid.threads, 0, compute_stream().handle()>>>(table.data<T>(), tokens.data(),
                                                                                      x.cols(), scale, x.data<float>());
  });
  check_launch("embed_kernel");
  return x;
}

Tensor rms_norm(TensorView x, TensorView weight, float epsilon, DType out) {
  assert(weight.cols() == x.cols());
  Tensor y(out, x.rows(), x.cols(), Device::gpu);
  if (x.rows() == 0) return y;
  with_type_and_packs(out, x.cols(), [&]<typename T, int kWidth>(T*, Width<kWidth>) {
    rms_norm_kernel<kWidth><<<blocks_for(x.rows(), kWarpsOfBlock), kWarpThreads, 0, compute_stream().handle()>>>(
        x.data<float>(), weight.data<float>(), epsilon, x.rows(), static_cast<int>(x.cols()), y.data<T>());
  });
  check_launch("rms_norm_kernel");
  return y;
}

Tensor gather_slots(TensorView h, std::int64_t first, const DeviceArray<std::int32_t>& row_of_slot, int top_k,
                    DType out, BufferSource* memory) {
  Tensor rows(out, static_cast<std::int64_t>(row_of_slot.size()), h.cols(), Device::gpu, memory);
  if (rows.rows() == 0) return rows;
  with_type_and_packs(out, h.cols(), [&]<typename T, int kWidth>(T*, Width<kWidth>) {
    const RowLaunch grid(rows.rows() / top_k, h.cols(), kWidth);
    gather_slots_kernel<kWidth><<<grid.blocks, grid.threads, 0, compute_stream().handle()>>>(
        h.data<float>() + first * h.cols(), row_of_slot.data(), top_k, h.cols(), rows.data<T>());
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
                  const DeviceArray<std::int32_t>& row_of_slot) {
  if (weights.rows() == 0) return;
  with_type_and_packs(rows.dtype(), x.cols(), [&]<typename T, int kWidth>(T*, Width<kWidth>) {
    const RowLaunch grid(weights.rows(), x.cols(), kWidth);
    add_weighted_kernel<kWidth><<<grid.blocks, grid.threads, 0, compute_stream().handle()>>>(
        rows.data<T>(), row_of_slot.data(), weights.data<float>(), static_cast<int>(weights.cols()), x.cols(),
        x.data<float>() + first * x.cols());
  });
  check_launch("add_weighted_kernel");
}

DeviceArray<double> slot_norms(TensorView rows, const DeviceArray<std::int32_t>& row_of_slot) {
  DeviceArray<double> norms(row_of_slot.size());
  const auto n = static_cast<std::int64_t>(norms.size());
  if (n == 0) return norms;
  with_type_and_packs(rows.dtype(), rows.cols(), [&]<typename T, int kWidth>(T*, Width<kWidth>) {
    slot_norms_kernel<kWidth><<<blocks_for(n, kWarpsOfBlock), kWarpThreads, 0, compute_stream().handle()>>>(
        rows.data<T>(), row_of_slot.data(), n, static_cast<int>(rows.cols()), norms.data());
  });
  check_launch("slot_norms_kernel");
  return norms;
}

}  // namespace switchyard::gpu
