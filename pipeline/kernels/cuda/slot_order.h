#pragma once

#include <cstdint>

#include "parallel/device/device_array.h"

namespace switchyard::gpu {

/// The row of each slot where slots lie by place, slot order kept within a place. places [n]: of each slot, below
/// n_places. In the compute stream.
DeviceArray<std::int32_t> rows_of_slots(const DeviceArray<std::int32_t>& places, int n_places);

}  // namespace switchyard::gpu
