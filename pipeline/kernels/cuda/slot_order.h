#pragma once

#include <cstdint>
#include <vector>

#include "parallel/device/device_array.h"
#include "parallel/expert_placement.h"

namespace switchyard::gpu {

/// Slots of consecutive tokens of a batch.
struct SlotRange {
  std::int64_t first;  // number in the batch
  std::int64_t count;
};

/// Where a rank's tokens may go, LayerPlacement's rule as a table: [E + 1] begins, then places. An expert's slots are
/// shared out among those from its begin to the next one's, which count from the table's start.
std::vector<std::int32_t> place_table(const LayerPlacement& placement, int rank);

/// Slots of a range, as SlotPlaces has them.
struct PlacedSlots {
  DeviceArray<std::int32_t> places;   // [range.count] below n_places
  DeviceArray<std::int32_t> numbers;  // [range.count] 0, 1, ...: what is sorted by place
};

/// ids: [n * k] of the batch. An id that is no expert, as a token without a finite logit leaves, counts as expert 0.
/// table: place_table of `rank`, in GPU memory. rows: [n_places], to which the slots of each place are added. In the
/// compute stream.
PlacedSlots place_slots(const DeviceArray<std::int32_t>& ids, SlotRange range, int top_k,
                        const DeviceArray<std::int32_t>& table, int n_experts, int rank, std::int32_t* rows);

/// [range.count] the row of each slot where slots lie by place, slot order kept within a place. In the compute stream.
DeviceArray<std::int32_t> rows_of_slots(const PlacedSlots& slots, int n_places);

}  // namespace switchyard::gpu
