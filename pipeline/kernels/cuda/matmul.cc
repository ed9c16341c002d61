#include "pipeline/kernels/cuda/matmul.h"

#include <cassert>

#include "pipeline/kernels/cuda/pinned_product.h"

namespace switchyard::gpu {
namespace {

void multiply(TensorView in, TensorView weights, Tensor& out, bool add) {
  assert(in.cols() == weights.cols() && in.dtype() == weights.dtype());
  PinnedProduct::get({weights.rows(), weights.cols(), weights.dtype(), DType::f32, add})
      .run(in.bytes(), weights.bytes(), out.bytes(), in.rows());
}

}  // namespace

Tensor matmul(TensorView in, TensorView weights) {
  Tensor out(DType::f32, in.rows(), weights.rows(), Device::gpu);
  multiply(in, weights, out, false);
  return out;
}

void add_matmul(Tensor& x, TensorView in, TensorView weights) { multiply(in, weights, x, true); }

}  // namespace switchyard::gpu
