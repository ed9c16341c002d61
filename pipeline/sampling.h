#pragma once

#include <cstdint>
#include <span>

namespace switchyard {

/// The token that a number drawn uniformly from [0, 1) chooses from softmax(logits / temperature): the first, ids
/// ascending, at which the probabilities so far exceed it. temperature: above 0; towards 0 it becomes the arg-max.
std::uint32_t sample_token(std::span<const float> logits, double temperature, double uniform);

/// The number that a document's answer draws for a token: a function of these three alone, so that answers do not
/// depend on ranks, batches or restarts. document: row of /documents; position: of the token in the answer.
double answer_number(std::uint64_t seed, std::uint64_t document, std::uint64_t position);

}  // namespace switchyard
