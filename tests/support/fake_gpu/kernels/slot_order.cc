#include "pipeline/kernels/cuda/slot_order.h"

#include "pipeline/kernels/cuda/slot_order_launch.h"
#include "tests/support/fake_gpu/fake_gpu.h"

/// The launches of slot_order.cu.
namespace switchyard::gpu {

void launch_place_slots(const SlotPlacing& all) {
  fake_gpu::launch({all.ids, all.table, all.places, all.numbers, all.rows}, [all] {
    for (std::int64_t i = 0; i < all.count; ++i) cores::place_slot(all, i);
  });
}

DeviceArray<std::int32_t> rows_of_slots(const PlacedSlots& slots, int n_places) {
  const std::size_t n = slots.places.size();
  DeviceArray<std::int32_t> row_of_slot(n);
  fake_gpu::launch(
      {slots.places.data(), slots.numbers.data(), row_of_slot.data()},
      [places = slots.places.data(), numbers = slots.numbers.data(), to = row_of_slot.data(), n, n_places] {
        std::int32_t row = 0;
        for (std::int32_t place = 0; place < n_places; ++place)
          for (std::size_t i = 0; i < n; ++i)
            if (places[i] == place) to[numbers[i]] = row++;
      });
  return row_of_slot;
}

}  // namespace switchyard::gpu
