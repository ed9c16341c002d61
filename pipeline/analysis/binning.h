#pragma once

#include <bit>
#include <cstdint>

/// What values and positions are counted in, on CPUs and GPUs alike.
namespace switchyard {

/// Equal bins of a histogram on [0, high]; what lies outside counts in the end bins.
inline constexpr int kHistogramBins = 64;
/// Position p of a window falls into bucket floor(log2(p + 1)); the last bucket takes the rest.
inline constexpr int kPositionBuckets = 20;
/// A token is confidently routed when its largest probability exceeds this.
inline constexpr float kConfidentProbability = 0.7F;

/// A value times this is its bin on [0, high]; 0 where high is.
inline float bins_per_unit(double high) { return high > 0 ? static_cast<float>(kHistogramBins / high) : 0.0F; }

inline int position_bucket(std::uint32_t position) {
  const int bucket = static_cast<int>(std::bit_width(position + 1U)) - 1;
  return bucket < kPositionBuckets ? bucket : kPositionBuckets - 1;
}

}  // namespace switchyard
