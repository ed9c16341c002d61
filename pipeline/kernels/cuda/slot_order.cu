#include <bit>
#include <cub/device/device_radix_sort.cuh>

#include "pipeline/kernels/cuda/launch.h"
#include "pipeline/kernels/cuda/slot_order.h"
#include "pipeline/kernels/cuda/slot_order_launch.h"

namespace switchyard::gpu {
namespace {

// One thread a slot.

__global__ void place_kernel(SlotPlacing all) {
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i < all.count) cores::place_slot(all, i);
}

__global__ void invert_kernel(const std::int32_t* order, std::int32_t n, std::int32_t* row_of_slot) {
  const auto i = static_cast<std::int32_t>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < n) row_of_slot[order[i]] = i;
}

}  // namespace

void launch_place_slots(const SlotPlacing& all) {
  place_kernel<<<blocks_for(all.count, kThreads), kThreads, 0, compute_stream().handle()>>>(all);
  check_launch("place_kernel");
}

DeviceArray<std::int32_t> rows_of_slots(const PlacedSlots& slots, int n_places) {
  const std::size_t size = slots.places.size();
  const auto n = static_cast<std::int32_t>(size);
  DeviceArray<std::int32_t> row_of_slot(size);
  if (n == 0) return row_of_slot;
  CUstream_st* stream = compute_stream().handle();
  DeviceArray<std::int32_t> sorted(size);
  DeviceArray<std::int32_t> order(size);
  const int bits = std::bit_width(static_cast<unsigned>(n_places - 1));
  std::size_t bytes = 0;
  const auto sort = [&](void* scratch) {  // stable
    SWITCHYARD_CUDA(cub::DeviceRadixSort::SortPairs(scratch, bytes, slots.places.data(), sorted.data(),
                                                    slots.numbers.data(), order.data(), n, 0, bits, stream));
  };
  sort(nullptr);  // says how much scratch it needs
  DeviceArray<std::byte> scratch(bytes);
  sort(scratch.data());
  invert_kernel<<<blocks_for(n, kThreads), kThreads, 0, stream>>>(order.data(), n, row_of_slot.data());
  check_launch("invert_kernel");
  return row_of_slot;
}

}  // namespace switchyard::gpu
