#include "pipeline/model/cuda/weight_uploads.h"

#include <utility>

#include "parallel/device/device_memory.h"

namespace switchyard::gpu {
namespace {

constexpr std::size_t kMostFlying = std::size_t{1} << 29U;  // half of what the pool of pinned memory keeps

std::size_t bytes_of(const Tensor& tensor) { return static_cast<std::size_t>(tensor.rows() * tensor.row_bytes()); }

}  // namespace

void WeightUploads::copy(std::byte* to, Tensor from) {
  const std::int64_t rows = from.rows();
  copy_with_gaps(to, std::move(from), rows);
}

void WeightUploads::copy_with_gaps(std::byte* to, Tensor from, std::int64_t block_rows) {
  if (bytes_of(from) == 0) return;
  while (!flying_.empty() && (bytes_ > kMostFlying || flying_.front().done.is_done())) drop_first();
  stream_.wait_for(compute_stream().record());  // whose memory `to` is
  const auto block = static_cast<std::size_t>(block_rows * from.row_bytes());
  copy_in(stream_, to, from.bytes(),
          {.count = bytes_of(from) / block, .bytes = block, .apart_there = 2 * block, .apart_here = block});
  bytes_ += bytes_of(from);
  flying_.push_back({stream_.record(), std::move(from)});
}

Tensor WeightUploads::copy(Tensor from) {
  Tensor to(from.dtype(), from.rows(), from.cols(), Device::gpu);
  copy(to.bytes(), std::move(from));
  return to;
}

void WeightUploads::finish() {
  while (!flying_.empty()) drop_first();
}

void WeightUploads::drop_first() {
  flying_.front().done.wait();
  bytes_ -= bytes_of(flying_.front().from);
  flying_.pop_front();
}

}  // namespace switchyard::gpu
