#include "pipeline/kernels/cuda/slot_order.h"

#include <algorithm>

#include "pipeline/kernels/cuda/slot_order_launch.h"

namespace switchyard::gpu {

std::vector<std::int32_t> place_table(const LayerPlacement& placement, int rank) {
  const int n_experts = placement.n_experts();
  std::vector<std::int32_t> table(static_cast<std::size_t>(n_experts) + 1);
  int physical = 0;
  for (int expert = 0; expert < n_experts; ++expert) {
    table[static_cast<std::size_t>(expert)] = static_cast<std::int32_t>(table.size());
    const std::span<const std::int32_t> ranks = placement.ranks_of(expert);
    const bool here = placement.rule() == CopyRule::local_first && std::ranges::count(ranks, rank) == 1;
    for (const std::int32_t copy : ranks) {
      if (!here || copy == rank) table.push_back(placement.place_of(physical));
      ++physical;
    }
  }
  table[static_cast<std::size_t>(n_experts)] = static_cast<std::int32_t>(table.size());
  return table;
}

PlacedSlots place_slots(const DeviceArray<std::int32_t>& ids, SlotRange range, int top_k,
                        const DeviceArray<std::int32_t>& table, int n_experts, int rank, std::int32_t* rows) {
  const auto n = static_cast<std::size_t>(range.count);
  PlacedSlots slots{DeviceArray<std::int32_t>(n), DeviceArray<std::int32_t>(n)};
  if (n == 0) return slots;
  launch_place_slots({.ids = ids.data() + range.first,
                      .table = table.data(),
                      .first = range.first,
                      .count = range.count,
                      .top_k = top_k,
                      .n_experts = n_experts,
                      .rank = rank,
                      .places = slots.places.data(),
                      .numbers = slots.numbers.data(),
                      .rows = rows});
  return slots;
}

}  // namespace switchyard::gpu
