#include "pipeline/kernels/cuda/router.h"

#include <utility>
#include <vector>

#include "parallel/device/download.h"
#include "parallel/device/stream.h"
#include "parallel/error.h"
#include "pipeline/kernels/cuda/router_launch.h"

namespace switchyard::gpu {
namespace {

Tensor start_download(TensorView from) {
  Tensor to(from.dtype(), from.rows(), from.cols(), Device::pinned);
  copy_in(download_stream(), to.bytes(), from.bytes(), static_cast<std::size_t>(from.rows() * from.row_bytes()));
  return to;
}

/// Integers as a matrix of as many bytes.
TensorView as_matrix(const DeviceArray<std::int32_t>& values) {
  return {values.data(), DType::f32, 1, static_cast<std::int64_t>(values.size()), Device::gpu};
}

template <typename T>
std::vector<T> values_of(TensorView row) {
  const T* begin = row.data<T>();
  return {begin, begin + row.rows() * row.cols()};
}

}  // namespace

DeviceRouting choose_experts(Tensor logits, RouterRule rule) {
  if (logits.cols() > 512 || rule.top_k > 32) {
    throw Error("the GPU's router has room for 512 experts and 32 choices of a token, not for " +
                    std::to_string(logits.cols()) + " and " + std::to_string(rule.top_k),
                {}, "route this model on the CPU");
  }
  const std::int64_t n = logits.rows();
  const auto none = static_cast<std::int32_t>(n);
  DeviceRouting out{.top_k = rule.top_k,
                    .logits = std::move(logits),
                    .probabilities = {},
                    .weights = Tensor(DType::f32, n, rule.top_k, Device::gpu),
                    .figures = Tensor(DType::f32, kRoutingFigures, n, Device::gpu),
                    .ids = DeviceArray<std::int32_t>(static_cast<std::size_t>(n * rule.top_k)),
                    .fault = DeviceArray<std::int32_t>(std::span(&none, 1))};
  out.probabilities = Tensor(DType::f32, n, out.logits.cols(), Device::gpu);
  if (n == 0) return out;
  launch_router({.logits = out.logits.data<float>(),
                 .n_tokens = none,
                 .n_experts = static_cast<int>(out.logits.cols()),
                 .top_k = rule.top_k,
                 .renormalise = rule.renormalise,
                 .probabilities = out.probabilities.data<float>(),
                 .ids = out.ids.data(),
                 .weights = out.weights.data<float>(),
                 .figures = out.figures.data<float>(),
                 .fault = out.fault.data()});
  return out;
}

Routing to_routing(DeviceRouting routing, const std::string& where) {
  const std::int64_t n = routing.logits.rows();
  download_stream().wait_for(compute_stream().record());
  const Tensor fault = start_download(as_matrix(routing.fault));
  const Tensor ids = start_download(as_matrix(routing.ids));
  const Tensor weights = start_download(routing.weights);
  Routing out;
  out.top_k = routing.top_k;
  out.logits = std::move(routing.logits);
  out.probabilities = std::move(routing.probabilities);
  out.figures = std::move(routing.figures);
  out.gpu_ids = std::move(routing.ids);
  out.gpu_weights = std::move(routing.weights);
  download_stream().wait();
  if (const std::int32_t first = *fault.data<std::int32_t>(); first < n) {
    throw Error("a router logit is not a finite number", where + ", token " + std::to_string(first) + " of the batch",
                "check the checkpoint's tensors for NaN, or run with --precision f32");
  }
  out.ids = values_of<std::int32_t>(ids);
  out.weights = values_of<float>(weights);
  return out;
}

}  // namespace switchyard::gpu
