#pragma once

#include <cstdint>

#include "parallel/device/device_array.h"
#include "parallel/device/stream.h"
#include "parallel/tensor.h"

namespace switchyard {

/// The stream of copies from GPU memory to pinned memory, beside what the GPU computes.
const Stream& download_stream();

/// A matrix of GPU memory on its way to pinned memory, in the download stream and behind what the compute stream was
/// given before. Is finished before it is destroyed: only then may others have the GPU's memory.
class Download {
 public:
  explicit Download(Tensor from);
  /// The same of rows, or of values as one row of as many bytes, that live until it is finished.
  explicit Download(TensorView from);
  explicit Download(const DeviceArray<std::int32_t>& from);
  /// The copy, once it is whole. Blocks.
  Tensor finish() &&;

 private:
  Tensor from_;
  Tensor to_;
  Event done_;
};

}  // namespace switchyard
