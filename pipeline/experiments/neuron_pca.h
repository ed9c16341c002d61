#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "pipeline/experiments/neurons.h"

namespace switchyard {

/// The plane through the neurons' mean in which they vary most.
struct NeuronPlane {
  std::vector<double> mean;                 // [d]
  std::array<std::vector<double>, 2> axes;  // [d] unit vectors; the entry of largest magnitude is positive
  std::array<double, 2> explained;          // shares of the variance; NaN where there is none
};

/// Principal components of all the blocks' neurons together: eigenvectors of their covariance [d, d], which is summed
/// in f32 and decomposed in double (implicitly restarted Lanczos: Sorensen, 1992; Spectra's solver). Throws Error if
/// that does not converge.
NeuronPlane neuron_plane(std::span<const Neurons> blocks);

/// Coordinates in the plane of some neurons of a block: [which, 2].
std::vector<float> project(const NeuronPlane& plane, const Neurons& block, std::span<const std::int32_t> which);

}  // namespace switchyard
