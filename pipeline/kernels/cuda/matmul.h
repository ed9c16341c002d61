#pragma once

#include "parallel/tensor.h"

/// What kernels/matmul.h does, for matrices in GPU memory; in the compute stream. A row's bits depend on that row and
/// the weights alone (pinned_product.h). weights: [n_out, n_in], as checkpoints have them; in: [n, n_in] of their type,
/// n may be 0.
namespace switchyard::gpu {

/// in * weights^T -> [n, n_out] f32.
Tensor matmul(TensorView in, TensorView weights);

/// x [n, n_out] f32 += in * weights^T.
void add_matmul(Tensor& x, TensorView in, TensorView weights);

}  // namespace switchyard::gpu
