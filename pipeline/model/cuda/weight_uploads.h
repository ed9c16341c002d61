#pragma once

#include <cstddef>
#include <deque>

#include "parallel/device/stream.h"
#include "parallel/tensor.h"

namespace switchyard::gpu {

/// Copies of weights on their way to the GPU, in a stream of their own, while the next ones are read from disk.
class WeightUploads {
 public:
  /// Begins a copy to GPU memory. from: pinned. Blocks only while too much pinned memory is on its way.
  void copy(std::byte* to, Tensor from);
  /// The same of blocks of so many rows, behind each of which there is room for as many others.
  void copy_with_gaps(std::byte* to, Tensor from, std::int64_t block_rows);
  /// The same, to a tensor made for it.
  Tensor copy(Tensor from);
  /// Blocks until all has come.
  void finish();

 private:
  struct Flying {
    Event done;
    Tensor from;
  };
  void drop_first();

  Stream stream_;
  std::deque<Flying> flying_;
  std::size_t bytes_ = 0;  // of what is in flying_
};

}  // namespace switchyard::gpu
