#pragma once

#include <cstdint>

#include "parallel/device/device_array.h"

namespace switchyard::gpu {

/// Slots by the expert they go to, slot order kept within an expert.
struct SlotOrder {
  DeviceArray<std::int32_t> slots;   // [n] row -> slot
  DeviceArray<std::int32_t> begins;  // [n_experts + 1] first row of each expert; last: n
};

/// experts [n]: of each slot, below n_experts. In the compute stream.
SlotOrder order_slots(const DeviceArray<std::int32_t>& experts, int n_experts);

}  // namespace switchyard::gpu
