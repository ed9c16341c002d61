#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "parallel/tensor.h"
#include "pipeline/model/routing.h"

namespace switchyard {

/// The softmax router: logits = h * weights^T, probabilities = softmax over all experts, the k largest of them (a tie
/// goes to the lower id), combine weights = those, divided by their sum if the rule says so. All in f32, by the same
/// code for each token. h: [n, d] f32, weights: [E, d] f32. Throws Error naming `where` and the token when a logit is
/// not finite.
Routing route(TensorView h, TensorView weights, RouterRule rule, const std::string& where);

/// The same from router logits already known, [n, E] f32: rows of a record are decided again by the code that decided
/// them first. without: [n] an expert of each token that is not to be chosen, -1 for none; or empty. Probabilities stay
/// those of all experts; weights are made of the chosen ones' as the rule says.
Routing choose_experts(Tensor logits, RouterRule rule, const std::string& where,
                       std::span<const std::int32_t> without = {});

}  // namespace switchyard
