#include <bit>
#include <cub/device/device_radix_sort.cuh>

#include "pipeline/kernels/cuda/launch.h"
#include "pipeline/kernels/cuda/slot_order.h"

namespace switchyard::gpu {
namespace {

// One thread a slot.

__global__ void number_slots_kernel(std::int32_t n, std::int32_t* slots) {
  const auto i = static_cast<std::int32_t>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < n) slots[i] = i;
}

__global__ void invert_kernel(const std::int32_t* slots, std::int32_t n, std::int32_t* row_of_slot) {
  const auto i = static_cast<std::int32_t>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < n) row_of_slot[slots[i]] = i;
}

}  // namespace

DeviceArray<std::int32_t> rows_of_slots(const DeviceArray<std::int32_t>& places, int n_places) {
  const auto n = static_cast<std::int32_t>(places.size());
  DeviceArray<std::int32_t> row_of_slot(places.size());
  if (n == 0) return row_of_slot;
  CUstream_st* stream = compute_stream().handle();
  const unsigned blocks = blocks_for(n, kThreads);
  DeviceArray<std::int32_t> numbers(places.size());
  DeviceArray<std::int32_t> sorted(places.size());
  DeviceArray<std::int32_t> slots(places.size());
  number_slots_kernel<<<blocks, kThreads, 0, stream>>>(n, numbers.data());
  check_launch("number_slots_kernel");
  const int bits = std::bit_width(static_cast<unsigned>(n_places - 1));
  std::size_t bytes = 0;
  const auto sort = [&](void* scratch) {  // stable
    SWITCHYARD_CUDA(cub::DeviceRadixSort::SortPairs(scratch, bytes, places.data(), sorted.data(), numbers.data(),
                                                    slots.data(), n, 0, bits, stream));
  };
  sort(nullptr);  // says how much scratch it needs
  DeviceArray<std::byte> scratch(bytes);
  sort(scratch.data());
  invert_kernel<<<blocks, kThreads, 0, stream>>>(slots.data(), n, row_of_slot.data());
  check_launch("invert_kernel");
  return row_of_slot;
}

}  // namespace switchyard::gpu
