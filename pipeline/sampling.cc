#include "pipeline/sampling.h"

#include <algorithm>
#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "pipeline/analysis/resampling.h"

namespace switchyard {

std::uint32_t sample_token(std::span<const float> logits, double temperature, double uniform) {
  const double largest = *std::max_element(logits.begin(), logits.end());
  std::vector<double> below(logits.size());  // of each token: weights up to it, itself included
  double sum = 0;
  for (std::size_t id = 0; id < logits.size(); ++id)
    below[id] = sum += std::exp((static_cast<double>(logits[id]) - largest) / temperature);
  const auto chosen = std::upper_bound(below.begin(), below.end(), uniform * sum);
  // Rounding may leave none above: then it is the last that has a weight.
  return static_cast<std::uint32_t>(
      (chosen == below.end() ? std::lower_bound(below.begin(), below.end(), sum) : chosen) - below.begin());
}

double answer_number(std::uint64_t seed, std::uint64_t document, std::uint64_t position) {
  std::mt19937_64 random = random_stream(seed, "document " + std::to_string(document), position);
  return static_cast<double>(random() >> 11U) * 0x1p-53;
}

}  // namespace switchyard
