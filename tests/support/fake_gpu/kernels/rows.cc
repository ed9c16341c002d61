#include "pipeline/kernels/cuda/rows.h"

#include <cstring>

#include "pipeline/kernels/cuda/rows_core.h"
#include "tests/support/fake_gpu/fake_gpu.h"

/// The launches of rows.cu.
namespace switchyard::gpu {
namespace {

using cores::HostWarp;

/// Calls work with a null pointer to the element type.
template <typename Work>
void with_type(DType type, Work work) {
  if (type == DType::bf16) {
    work(static_cast<Bf16*>(nullptr));
  } else {
    work(static_cast<float*>(nullptr));
  }
}

Tensor permute(TensorView rows, const DeviceArray<std::int32_t>& order, bool undo, BufferSource* memory) {
  const auto n = static_cast<std::int64_t>(order.size());
  Tensor out(rows.dtype(), n, rows.cols(), Device::gpu, memory);
  const auto bytes = static_cast<std::size_t>(rows.row_bytes());
  fake_gpu::launch({rows.bytes(), order.data(), out.bytes()},
                   [=, from = rows.bytes(), order = order.data(), to = out.bytes()] {
                     for (std::int64_t i = 0; i < n; ++i) {
                       const auto here = static_cast<std::size_t>(i) * bytes;
                       const auto there = static_cast<std::size_t>(order[i]) * bytes;
                       std::memcpy(to + (undo ? there : here), from + (undo ? here : there), bytes);
                     }
                   });
  return out;
}

}  // namespace

Tensor embed(TensorView table, const DeviceArray<std::uint32_t>& tokens, float scale) {
  Tensor x(DType::f32, static_cast<std::int64_t>(tokens.size()), table.cols(), Device::gpu);
  with_type(table.dtype(), [&]<typename T>(T*) {
    fake_gpu::launch({table.bytes(), tokens.data(), x.bytes()}, [=, table = table.data<T>(), tokens = tokens.data(),
                                                                 x = x.data<float>(), n = x.rows(), d = x.cols()] {
      for (std::int64_t t = 0; t < n; ++t)
        for (std::int64_t i = 0; i < d; ++i) x[t * d + i] = cores::widen(table[tokens[t] * d + i]) * scale;
    });
  });
  return x;
}

Tensor rms_norm(TensorView x, TensorView weight, float epsilon, DType out) {
  Tensor y(out, x.rows(), x.cols(), Device::gpu);
  with_type(out, [&]<typename T>(T*) {
    fake_gpu::launch({x.bytes(), weight.bytes(), y.bytes()}, [=, x = x.data<float>(), weight = weight.data<float>(),
                                                              y = y.data<T>(), n = x.rows(), d = x.cols()] {
      for (std::int64_t t = 0; t < n; ++t)
        cores::rms_norm_row<1>(HostWarp{}, x + t * d, weight, epsilon, static_cast<int>(d), y + t * d);
    });
  });
  return y;
}

Tensor gather_slots(TensorView h, std::int64_t first, const DeviceArray<std::int32_t>& row_of_slot, int top_k,
                    DType out, BufferSource* memory) {
  Tensor rows(out, static_cast<std::int64_t>(row_of_slot.size()), h.cols(), Device::gpu, memory);
  with_type(out, [&]<typename T>(T*) {
    fake_gpu::launch({h.bytes(), row_of_slot.data(), rows.bytes()},
                     [=, h = h.data<float>() + first * h.cols(), row_of_slot = row_of_slot.data(), to = rows.data<T>(),
                      n = rows.rows(), d = h.cols()] {
                       for (std::int64_t slot = 0; slot < n; ++slot)
                         for (std::int64_t i = 0; i < d; ++i)
                           cores::store(to + row_of_slot[slot] * d + i, h[slot / top_k * d + i]);
                     });
  });
  return rows;
}

Tensor gather(TensorView rows, const DeviceArray<std::int32_t>& order) { return permute(rows, order, false, nullptr); }

Tensor scatter(TensorView rows, const DeviceArray<std::int32_t>& order, BufferSource* memory) {
  return permute(rows, order, true, memory);
}

void add_rows(Tensor& x, TensorView rows) {
  fake_gpu::launch({rows.bytes(), x.bytes()},
                   [rows = rows.data<float>(), x = x.data<float>(), n = x.rows() * x.cols()] {
                     for (std::int64_t i = 0; i < n; ++i) x[i] += rows[i];
                   });
}

void add_weighted(Tensor& x, std::int64_t first, TensorView rows, TensorView weights,
                  const DeviceArray<std::int32_t>& row_of_slot) {
  with_type(rows.dtype(), [&]<typename T>(T*) {
    fake_gpu::launch(
        {rows.bytes(), row_of_slot.data(), weights.bytes(), x.bytes()},
        [rows = rows.data<T>(), row_of_slot = row_of_slot.data(), weights = weights.data<float>(), k = weights.cols(),
         x = x.data<float>() + first * x.cols(), n = weights.rows(), d = x.cols()] {
          for (std::int64_t t = 0; t < n; ++t)
            for (std::int64_t i = 0; i < d; ++i)
              x[t * d + i] +=
                  cores::weighted_sum<1>(rows, d, row_of_slot + t * k, weights + t * k, static_cast<int>(k), i).at[0];
        });
  });
}

DeviceArray<double> slot_norms(TensorView rows, const DeviceArray<std::int32_t>& row_of_slot) {
  DeviceArray<double> norms(row_of_slot.size());
  with_type(rows.dtype(), [&]<typename T>(T*) {
    fake_gpu::launch({rows.bytes(), row_of_slot.data(), norms.data()},
                     [rows = rows.data<T>(), row_of_slot = row_of_slot.data(), to = norms.data(), n = norms.size(),
                      d = rows.cols()] {
                       for (std::size_t slot = 0; slot < n; ++slot)
                         to[slot] = cores::row_norm<1>(HostWarp{}, rows + row_of_slot[slot] * d, static_cast<int>(d));
                     });
  });
  return norms;
}

}  // namespace switchyard::gpu
