#pragma once

#include "pipeline/kernels/cuda/warp.h"

namespace switchyard::gpu {

/// Arrays of place_slots, in GPU memory.
struct SlotPlacing {
  const std::int32_t* ids;    // of the range
  const std::int32_t* table;  // place_table
  std::int64_t first, count;
  int top_k, n_experts, rank;
  std::int32_t* places;
  std::int32_t* numbers;
  std::int32_t* rows;
};

/// Of one slot or more, in the compute stream.
void launch_place_slots(const SlotPlacing& all);

}  // namespace switchyard::gpu

namespace switchyard::cores {

/// Slot i of the range.
SWITCHYARD_CORE void place_slot(const gpu::SlotPlacing& all, std::int64_t i) {
  const std::int32_t id = all.ids[i];
  const std::int32_t expert = id < 0 || id >= all.n_experts ? 0 : id;
  const std::int32_t begin = all.table[expert];
  const std::int32_t copies = all.table[expert + 1] - begin;
  const std::int64_t token = (all.first + i) / all.top_k;
  const std::int32_t place = all.table[begin + (copies == 1 ? 0 : (token + all.rank) % copies)];
  all.places[i] = place;
  all.numbers[i] = static_cast<std::int32_t>(i);
  count(all.rows + place);
}

}  // namespace switchyard::cores
