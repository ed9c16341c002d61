#include "pipeline/experiments/weight_similarity.h"

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>

#include "pipeline/analysis/linear_assignment.h"
#include "pipeline/experiments/kendall_tau.h"
#include "pipeline/experiments/neuron_pca.h"
#include "pipeline/kernels/cpu.h"
#include "pipeline/kernels/matmul.h"

namespace switchyard {
namespace {

constexpr std::int64_t kPairBytes = std::int64_t{2} << 30U;  // for pairs of blocks that are compared at once
// Neurons of a block that are stored for a picture: many enough to see, and of a kind of matrix few enough for a page.
constexpr std::int64_t kMostPoints = 512;
constexpr std::int64_t kMostCoordinates = 40'000;

double ratio_or_zero(double dot, double norms) { return norms > 0 ? dot / norms : 0; }

/// Of neurons that were paired one by one.
struct PairedCosine {
  double mean, flat;
};

/// Neuron i[n] of a with neuron j[n] of b.
PairedCosine paired_cosine(const Neurons& a, std::span<const std::int32_t> i, const Neurons& b,
                           std::span<const std::int32_t> j) {
  double cosines = 0;
  double dots = 0;
  double squares_a = 0;
  double squares_b = 0;
  for (std::size_t n = 0; n < i.size(); ++n) {
    const double product = dot(a.rows, i[n], b.rows, j[n]);
    const double norm_a = a.norms[static_cast<std::size_t>(i[n])];
    const double norm_b = b.norms[static_cast<std::size_t>(j[n])];
    cosines += ratio_or_zero(product, norm_a * norm_b);
    dots += product;
    squares_a += norm_a * norm_a;
    squares_b += norm_b * norm_b;
  }
  return {.mean = cosines / static_cast<double>(i.size()),
          .flat = ratio_or_zero(dots, std::sqrt(squares_a) * std::sqrt(squares_b))};
}

/// Cosines of those neurons of a with the same ones of b: [which, which].
Tensor cosines(const Neurons& a, const Neurons& b, std::span<const std::int32_t> which) {
  const bool all = std::ssize(which) == a.rows.rows();
  const Tensor some_a = all ? Tensor() : select_rows(a.rows, which);
  const Tensor some_b = all ? Tensor() : select_rows(b.rows, which);
  Tensor products = matmul(all ? a.rows : some_a, PackedWeights(all ? b.rows : some_b));
#pragma omp parallel for
  for (std::int64_t i = 0; i < products.rows(); ++i) {
    const double norm_a = a.norms[static_cast<std::size_t>(which[static_cast<std::size_t>(i)])];
    const std::span<float> row = products.row<float>(i);
    for (std::size_t j = 0; j < row.size(); ++j)
      row[j] = static_cast<float>(ratio_or_zero(row[j], norm_a * b.norms[static_cast<std::size_t>(which[j])]));
  }
  return products;
}

struct PairFigures {
  PairedCosine matched, assigned;
  double kendall_tau;
};

/// all: every neuron's number; which: those that are reordered.
PairFigures compare_pair(const Neurons& a, const Neurons& b, std::span<const std::int32_t> all,
                         std::span<const std::int32_t> which) {
  const Tensor gain = cosines(a, b, which);
  const auto n = static_cast<std::size_t>(gain.rows());
  const Assignment order = assign({gain.data<float>(), n * n}, gain.rows());
  std::vector<std::int32_t> partner;
  for (const std::int32_t column : order.column_of_row) partner.push_back(which[static_cast<std::size_t>(column)]);
  return {.matched = paired_cosine(a, all, b, all),
          .assigned = paired_cosine(a, which, b, partner),
          .kendall_tau = kendall_tau(order.column_of_row)};
}

/// The work of one rank.
class Analysis {
 public:
  Analysis(const CheckpointTensors& model, const ModelConfig& config, const CheckpointTensors* dense,
           const WeightSimilarityOptions& options, std::vector<int> layers)
      : model_(model),
        dense_(dense),
        options_(options),
        layers_(std::move(layers)),
        all_(sample_indices(config.d_ff, 0, 0)),
        blocks_(static_cast<std::size_t>(config.n_experts) + (dense != nullptr ? 1 : 0)) {
    out_.layers = options.layers;
    out_.n_experts = config.n_experts;
    out_.has_dense = dense != nullptr;
    out_.reordered = sample_indices(config.d_ff, options.sample_neurons, options.seed);
    const auto rows = std::max<std::int64_t>(1, std::ssize(options.layers) * static_cast<std::int64_t>(blocks_));
    out_.neurons = sample_indices(config.d_ff, std::clamp<std::int64_t>(kMostCoordinates / (2 * rows), 1, kMostPoints),
                                  options.seed);
    for (std::size_t a = 0; a < blocks_; ++a)
      for (std::size_t b = a + 1; b < blocks_; ++b) pairs_.emplace_back(a, b);
  }

  WeightSimilarity run() {
    for (const int layer : layers_) {
      compare_routers(layer);
      for (const FfnMatrix matrix : {FfnMatrix::gate, FfnMatrix::up, FfnMatrix::down}) {
        const std::vector<Neurons> blocks = read(layer, matrix);
        MatrixSimilarity& out = out_.matrices[static_cast<std::size_t>(matrix)];
        find_plane(blocks, out);
        compare_blocks(blocks, out);
      }
    }
    return std::move(out_);
  }

 private:
  std::vector<Neurons> read(int layer, FfnMatrix matrix) const {
    const std::string where = "layer " + std::to_string(layer);
    std::vector<Neurons> blocks;
    for (int e = 0; e < out_.n_experts; ++e)
      blocks.push_back(make_neurons(model_.expert(layer, e), matrix, where + ", expert " + std::to_string(e)));
    if (dense_ != nullptr) blocks.push_back(make_neurons(dense_->dense(layer), matrix, where + " of the dense model"));
    return blocks;
  }

  void compare_routers(int layer) {
    const Tensor router = model_.router(layer);
    for (std::int64_t a = 0; a < router.rows(); ++a)
      for (std::int64_t b = 0; b < router.rows(); ++b) {
        const double norms = std::sqrt(dot(router, a, router, a)) * std::sqrt(dot(router, b, router, b));
        out_.router_cosine.push_back(a == b ? 1 : ratio_or_zero(dot(router, a, router, b), norms));
      }
  }

  void find_plane(const std::vector<Neurons>& blocks, MatrixSimilarity& out) const {
    const NeuronPlane plane = neuron_plane(std::span(blocks).first(static_cast<std::size_t>(out_.n_experts)));
    for (const Neurons& block : blocks)
      for (const float coordinate : project(plane, block, out_.neurons)) out.coordinates.push_back(coordinate);
    out.explained.insert(out.explained.end(), plane.explained.begin(), plane.explained.end());
  }

  /// Pairs at once, each on its share of the threads.
  int pairs_at_once(std::int64_t row_bytes) const {
    const auto n = std::ssize(out_.reordered);
    return static_cast<int>(std::clamp<std::int64_t>(kPairBytes / (n * (4 * n + row_bytes)), 1, omp_get_max_threads()));
  }

  void compare_blocks(const std::vector<Neurons>& blocks, MatrixSimilarity& out) {
    const std::size_t begin = out.flat_cosine.size();
    for (auto* figure :
         {&out.flat_cosine, &out.matched_cosine, &out.assigned_cosine, &out.assigned_flat_cosine, &out.kendall_tau})
      figure->resize(begin + blocks_ * blocks_, 1.0);
    const int at_once = pairs_at_once(blocks.front().rows.row_bytes());
    const int threads_each = std::max(1, omp_get_max_threads() / at_once);
    omp_set_max_active_levels(2);
#pragma omp parallel num_threads(at_once)
    {
      omp_set_num_threads(threads_each);  // of regions within this one
#pragma omp for schedule(dynamic)
      for (std::size_t p = 0; p < pairs_.size(); ++p) {
        const auto [a, b] = pairs_[p];
        const PairFigures figures = compare_pair(blocks[a], blocks[b], all_, out_.reordered);
        for (const std::size_t at : {begin + a * blocks_ + b, begin + b * blocks_ + a}) {
          out.flat_cosine[at] = figures.matched.flat;
          out.matched_cosine[at] = figures.matched.mean;
          out.assigned_cosine[at] = figures.assigned.mean;
          out.assigned_flat_cosine[at] = figures.assigned.flat;
          out.kendall_tau[at] = figures.kendall_tau;
        }
#pragma omp critical
        options_.progress(++done_, layers_.size() * kFfnMatrices * pairs_.size());
      }
    }
  }

  const CheckpointTensors& model_;
  const CheckpointTensors* dense_;
  const WeightSimilarityOptions& options_;
  std::vector<int> layers_;  // this rank's
  std::vector<std::int32_t> all_;
  std::size_t blocks_;
  std::vector<std::pair<std::size_t, std::size_t>> pairs_;
  std::size_t done_ = 0;
  WeightSimilarity out_;
};

/// On rank 0 all ranks' values in the order of layers, layer l being rank l mod R's; the same number for each layer.
template <typename T>
void gather_layers(std::vector<T>& values, std::size_t layers, const Communicator& comm) {
  const std::vector<T> by_rank = comm.gather_v(std::span<const T>(values));
  if (comm.rank() != 0 || layers == 0) return;
  const std::size_t each = by_rank.size() / layers;
  const auto ranks = static_cast<std::size_t>(comm.size());
  values.resize(by_rank.size());
  std::size_t from = 0;
  for (std::size_t rank = 0; rank < ranks; ++rank)
    for (std::size_t l = rank; l < layers; l += ranks, from += each)
      std::copy_n(by_rank.begin() + static_cast<std::ptrdiff_t>(from), each,
                  values.begin() + static_cast<std::ptrdiff_t>(l * each));
}

}  // namespace

DType lossless_type(const Checkpoint& checkpoint) {
  for (const SafetensorsFile& file : checkpoint.files())
    for (const StoredTensor& tensor : file.tensors())
      if (tensor.dtype != "BF16") return DType::f32;
  return cpu_has_bf16() ? DType::bf16 : DType::f32;
}

WeightSimilarity weight_similarity(const CheckpointTensors& model, const ModelConfig& config,
                                   const CheckpointTensors* dense, const WeightSimilarityOptions& options,
                                   const Communicator& comm) {
  std::vector<int> own;
  for (std::size_t l = static_cast<std::size_t>(comm.rank()); l < options.layers.size();
       l += static_cast<std::size_t>(comm.size()))
    own.push_back(options.layers[l]);
  WeightSimilarity similarity = Analysis(model, config, dense, options, std::move(own)).run();
  const std::size_t layers = options.layers.size();
  for (MatrixSimilarity& matrix : similarity.matrices) {
    for (auto* figure : {&matrix.flat_cosine, &matrix.matched_cosine, &matrix.assigned_cosine,
                         &matrix.assigned_flat_cosine, &matrix.kendall_tau, &matrix.explained})
      gather_layers(*figure, layers, comm);
    gather_layers(matrix.coordinates, layers, comm);
  }
  gather_layers(similarity.router_cosine, layers, comm);
  return similarity;
}

}  // namespace switchyard
