#pragma once

#include <cstdint>

#include "parallel/device/device_array.h"
#include "parallel/tensor.h"
#include "pipeline/kernels/cuda/token_loss_core.h"
#include "pipeline/model/batch.h"

namespace switchyard::gpu {

/// Loss and arg-max of n tokens from logits that come in chunks of columns, so that the logits of a batch are never
/// held. Work is in the compute stream.
class LossOfChunks {
 public:
  /// targets [n]: -1 where there is none, kPredictedTarget for the arg-max.
  explicit LossOfChunks(DeviceArray<std::int64_t> targets);
  /// logits [n, columns] f32 of the vocabulary's columns from first_column on, ascending from 0.
  void take(TensorView logits, std::int64_t first_column);
  /// Once all columns were taken. Blocks.
  TokenLosses finish() const;

 private:
  DeviceArray<std::int64_t> targets_;
  DeviceArray<cores::RunningLoss> running_;  // [n], written by the first chunk
};

}  // namespace switchyard::gpu
