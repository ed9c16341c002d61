#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <vector>

#include "parallel/communicator.h"
#include "pipeline/experiments/neurons.h"
#include "pipeline/model/checkpoint_tensors.h"

namespace switchyard {

/// One kind of matrix of all layers asked for. B blocks: a layer's routed experts and, behind them, the dense block if
/// one is compared. Symmetric, 1 on the diagonal; a neuron of zeros has cosine 0 with all.
struct MatrixSimilarity {
  std::vector<double> flat_cosine;           // [layer, B, B] of the whole matrices, as one vector each
  std::vector<double> matched_cosine;        // [layer, B, B] mean over i of the cosine of both blocks' neuron i
  std::vector<double> assigned_cosine;       // [layer, B, B] the same after the second block's neurons were reordered
  std::vector<double> assigned_flat_cosine;  // [layer, B, B] flat_cosine after it
  std::vector<double> kendall_tau;           // [layer, B, B] of that order and the original one
  std::vector<float> coordinates;            // [layer, B, neuron, 2] in the plane of the experts' neurons
  std::vector<double> explained;             // [layer, 2] share of the variance
};

/// How alike the experts of a model are, by their weights alone (Lo et al., A Closer Look into Mixture-of-Experts in
/// Large Language Models, 2024, section 4.1 and 4.3).
struct WeightSimilarity {
  std::vector<int> layers;  // decoder layers
  int n_experts = 0;
  bool has_dense = false;
  std::vector<std::int32_t> neurons;    // those that have coordinates
  std::vector<std::int32_t> reordered;  // those that are reordered
  std::array<MatrixSimilarity, kFfnMatrices> matrices;
  std::vector<double> router_cosine;  // [layer, E, E] of the router's rows
};

struct WeightSimilarityOptions {
  std::vector<int> layers;          // decoder layers that have experts
  std::int64_t sample_neurons = 0;  // how many neurons are reordered, the same ones of every block; 0: all
  std::uint64_t seed = 0;           // of samples
  /// Told on each rank after each assignment: how many are done of this rank's.
  std::function<void(std::size_t done, std::size_t all)> progress = [](std::size_t, std::size_t) {};
};

/// The type that holds all matrices of the checkpoint without loss and that this CPU multiplies.
DType lossless_type(const Checkpoint& checkpoint);

/// Layer l of the list is rank l mod R's, one matrix of all its blocks in memory at a time; pairs of blocks on threads,
/// as many at once as their [neurons, neurons] cosines fit 2 GiB. The figures are the same for any number of ranks and
/// threads. dense: a dense model of the same width, d_ff and layers, or nullptr. Collective; the result is rank 0's.
WeightSimilarity weight_similarity(const CheckpointTensors& model, const ModelConfig& config,
                                   const CheckpointTensors* dense, const WeightSimilarityOptions& options,
                                   const Communicator& comm);

}  // namespace switchyard
