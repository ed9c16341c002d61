#include <bit>
#include <cub/device/device_radix_sort.cuh>

#include "pipeline/kernels/cuda/launch.h"
#include "pipeline/kernels/cuda/rows_core.h"
#include "pipeline/kernels/cuda/slot_order.h"

namespace switchyard::gpu {
namespace {

__global__ void number_slots_kernel(std::int32_t n, std::int32_t* slots) {
  const auto i = static_cast<std::int32_t>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < n) slots[i] = i;
}

__global__ void expert_begins_kernel(const std::int32_t* experts, std::int32_t n, int n_experts, std::int32_t* begins) {
  const auto expert = static_cast<std::int32_t>(blockIdx.x * blockDim.x + threadIdx.x);
  if (expert <= n_experts) begins[expert] = static_cast<std::int32_t>(cores::count_below(experts, n, expert));
}

}  // namespace

SlotOrder order_slots(const DeviceArray<std::int32_t>& experts, int n_experts) {
  CUstream_st* stream = compute_stream().handle();
  const auto n = static_cast<std::int32_t>(experts.size());
  SlotOrder order{DeviceArray<std::int32_t>(experts.size()),
                  DeviceArray<std::int32_t>(static_cast<std::size_t>(n_experts) + 1)};
  DeviceArray<std::int32_t> sorted(experts.size());
  if (n > 0) {
    DeviceArray<std::int32_t> numbers(experts.size());
    number_slots_kernel<<<blocks_for(n, kThreads), kThreads, 0, stream>>>(n, numbers.data());
    check_launch("number_slots_kernel");
    const int bits = std::bit_width(static_cast<unsigned>(n_experts - 1));
    std::size_t bytes = 0;
    const auto sort = [&](void* scratch) {  // stable
      SWITCHYARD_CUDA(cub::DeviceRadixSort::SortPairs(scratch, bytes, experts.data(), sorted.data(), numbers.data(),
                                                      order.slots.data(), n, 0, bits, stream));
    };
    sort(nullptr);  // says how much scratch it needs
    DeviceArray<std::byte> scratch(bytes);
    sort(scratch.data());
  }
  expert_begins_kernel<<<blocks_for(n_experts + 1, kThreads), kThreads, 0, stream>>>(sorted.data(), n, n_experts,
                                                                                     order.begins.data());
  check_launch("expert_begins_kernel");
  return order;
}

}  // namespace switchyard::gpu
