#include "pipeline/kernels/cuda/slot_order.h"

#include "tests/support/fake_gpu/fake_gpu.h"

/// The launches of slot_order.cu.
namespace switchyard::gpu {

DeviceArray<std::int32_t> rows_of_slots(const DeviceArray<std::int32_t>& places, int n_places) {
  DeviceArray<std::int32_t> row_of_slot(places.size());
  fake_gpu::launch({places.data(), row_of_slot.data()},
                   [places = places.data(), to = row_of_slot.data(), n = places.size(), n_places] {
                     std::int32_t row = 0;
                     for (std::int32_t place = 0; place < n_places; ++place)
                       for (std::size_t slot = 0; slot < n; ++slot)
                         if (places[slot] == place) to[slot] = row++;
                   });
  return row_of_slot;
}

}  // namespace switchyard::gpu
