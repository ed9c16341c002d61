#include <utility>

#include "pipeline/kernels/cuda/device_warp.h"
#include "pipeline/kernels/cuda/launch.h"
#include "pipeline/kernels/cuda/token_loss.h"

namespace switchyard::gpu {
namespace {

/// One warp a token.
template <int kWidth>
__global__ void __launch_bounds__(kWarpThreads)
    take_logits_kernel(const float* logits, std::int64_t n, int columns, std::int64_t first_column,
                       const std::int64_t* targets, cores::RunningLoss* running) {
  const std::int64_t token = static_cast<std::int64_t>(blockIdx.x) * kWarpsOfBlock + threadIdx.x / 32;
  if (token >= n) return;
  cores::take_logits<kWidth>(cores::DeviceWarp{}, logits + token * columns, columns, first_column, targets[token],
                             running + token);
}

__global__ void begin_losses_kernel(std::int64_t n, cores::RunningLoss* running) {
  const std::int64_t token = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (token < n) running[token] = cores::begin_loss();
}

__global__ void finish_losses_kernel(const cores::RunningLoss* running, const std::int64_t* targets, std::int64_t n,
                                     float* losses, std::uint32_t* predicted) {
  const std::int64_t token = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (token >= n) return;
  losses[token] = cores::loss_of(running[token], targets[token] == kPredictedTarget);
  predicted[token] = running[token].predicted;
}

}  // namespace

LossOfChunks::LossOfChunks(DeviceArray<std::int64_t> targets)
    : targets_(std::move(targets)), running_(targets_.size()) {
  const auto n = static_cast<std::int64_t>(targets_.size());
  if (n == 0) return;
  begin_losses_kernel<<<blocks_for(n, kThreads), kThreads, 0, compute_stream().handle()>>>(n, running_.data());
  check_launch("begin_losses_kernel");
}

void LossOfChunks::take(TensorView logits, std::int64_t first_column) {
  if (logits.rows() == 0 || logits.cols() == 0) return;
  with_packs(logits.cols(), [&]<int kWidth>(Width<kWidth>) {
    take_logits_kernel<kWidth>
        <<<blocks_for(logits.rows(), kWarpsOfBlock), kWarpThreads, 0, compute_stream().handle()>>>(
            logits.data<float>(), logits.rows(), static_cast<int>(logits.cols()), first_column, targets_.data(),
            running_.data());
  });
  check_launch("take_logits_kernel");
}

TokenLosses LossOfChunks::finish() const {
  const auto n = static_cast<std::int64_t>(targets_.size());
  if (n == 0) return {};
  DeviceArray<float> losses(targets_.size());
  DeviceArray<std::uint32_t> predicted(targets_.size());
  finish_losses_kernel<<<blocks_for(n, kThreads), kThreads, 0, compute_stream().handle()>>>(
      running_.data(), targets_.data(), n, losses.data(), predicted.data());
  check_launch("finish_losses_kernel");
  return {losses.to_host(), predicted.to_host()};
}

}  // namespace switchyard::gpu
