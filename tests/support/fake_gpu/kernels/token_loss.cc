#include "pipeline/kernels/cuda/token_loss.h"

#include <utility>

#include "tests/support/fake_gpu/fake_gpu.h"

/// The launches of token_loss.cu.
namespace switchyard::gpu {

LossOfChunks::LossOfChunks(DeviceArray<std::int64_t> targets)
    : targets_(std::move(targets)), running_(targets_.size()) {
  fake_gpu::launch({running_.data()}, [running = running_.data(), n = targets_.size()] {
    for (std::size_t t = 0; t < n; ++t) running[t] = cores::begin_loss();
  });
}

void LossOfChunks::take(TensorView logits, std::int64_t first_column) {
  if (logits.rows() == 0 || logits.cols() == 0) return;
  fake_gpu::launch({logits.bytes(), targets_.data(), running_.data()},
                   [=, logits = logits.data<float>(), targets = targets_.data(), running = running_.data(),
                    n = logits.rows(), columns = logits.cols()] {
                     for (std::int64_t t = 0; t < n; ++t)
                       cores::take_logits<1>(cores::HostWarp{}, logits + t * columns, static_cast<int>(columns),
                                             first_column, targets[t], running + t);
                   });
}

TokenLosses LossOfChunks::finish() const {
  DeviceArray<float> losses(targets_.size());
  DeviceArray<std::uint32_t> predicted(targets_.size());
  fake_gpu::launch({running_.data(), targets_.data(), losses.data(), predicted.data()},
                   [running = running_.data(), targets = targets_.data(), losses = losses.data(),
                    predicted = predicted.data(), n = targets_.size()] {
                     for (std::size_t t = 0; t < n; ++t) {
                       losses[t] = cores::loss_of(running[t], targets[t] == kPredictedTarget);
                       predicted[t] = running[t].predicted;
                     }
                   });
  return {losses.to_host(), predicted.to_host()};
}

}  // namespace switchyard::gpu
