#pragma once

#include <cstdint>
#include <span>

#include "parallel/tensor.h"
#include "pipeline/kernels/matmul.h"
#include "pipeline/model/batch.h"

namespace switchyard {

/// Loss and arg-max of logits = h * head, in chunks of rows and columns: the logits of a batch are never held. h: [n,
/// d] of the head's type; head: [vocabulary, d]; targets: [n], -1 where there is none,
/// kPredictedTarget for the arg-max.
TokenLosses token_loss(TensorView h, const PackedWeights& head, std::span<const std::int64_t> targets);

}  // namespace switchyard
