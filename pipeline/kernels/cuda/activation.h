#pragma once

#include "parallel/tensor.h"
#include "pipeline/kernels/gated_ffn.h"

namespace switchyard::gpu {

/// gate_up [n, 2 f] f32 or bf16, gate's columns then up's -> activation(gate) * up, [n, f] of type `out`. In the
/// compute stream.
Tensor activate(TensorView gate_up, Activation activation, DType out);

/// gate f32 becomes activation(gate), in the compute stream.
void activate(Tensor& gate, Activation activation);

}  // namespace switchyard::gpu
