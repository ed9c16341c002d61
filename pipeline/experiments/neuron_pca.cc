#include "pipeline/experiments/neuron_pca.h"

#include <Spectra/SymEigsSolver.h>

#include <Eigen/Dense>
#include <algorithm>
#include <cmath>
#include <limits>

#include "parallel/bf16.h"
#include "parallel/error.h"
#include "pipeline/kernels/matmul.h"

namespace switchyard {
namespace {

double value_at(TensorView rows, std::int64_t i, std::int64_t k) {
  return rows.dtype() == DType::f32 ? rows.row<float>(i)[static_cast<std::size_t>(k)]
                                    : static_cast<float>(rows.row<Bf16>(i)[static_cast<std::size_t>(k)]);
}

/// Adds the block's columns to sums, and its [d, d] product with itself to products.
void add_moments(const Neurons& block, std::vector<double>& sums, Tensor& products) {
  const Tensor columns = transposed(block.rows);
  add_matmul(products, columns, PackedWeights(columns));
#pragma omp parallel for
  for (std::int64_t k = 0; k < columns.rows(); ++k)
    for (std::int64_t i = 0; i < columns.cols(); ++i) sums[static_cast<std::size_t>(k)] += value_at(columns, k, i);
}

Eigen::MatrixXd covariance_of(const Tensor& products, const std::vector<double>& mean, double n) {
  const auto d = static_cast<Eigen::Index>(mean.size());
  Eigen::MatrixXd covariance(d, d);
  for (Eigen::Index j = 0; j < d; ++j)
    for (Eigen::Index i = 0; i < d; ++i)
      covariance(i, j) =
          products.data<float>()[j * d + i] / n - mean[static_cast<std::size_t>(i)] * mean[static_cast<std::size_t>(j)];
  return covariance;
}

struct Eigenpairs {
  Eigen::VectorXd values;   // [2] descending
  Eigen::MatrixXd vectors;  // [d, 2]
};

Eigenpairs largest_two(const Eigen::MatrixXd& matrix) {
  constexpr Eigen::Index kSmall = 64;  // up to here all eigenvectors cost less than a search for two
  if (matrix.rows() <= kSmall) {
    const Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd> all(matrix);
    return {all.eigenvalues().tail<2>().reverse(), all.eigenvectors().rightCols<2>().rowwise().reverse()};
  }
  Spectra::DenseSymMatProd<double> product(matrix);
  Spectra::SymEigsSolver<Spectra::DenseSymMatProd<double>> solver(product, 2, kSmall / 2);
  solver.init();  // from a fixed vector
  solver.compute(Spectra::SortRule::LargestAlge, 1000, 1e-11);
  if (solver.info() != Spectra::CompInfo::Successful)
    throw Error("the principal components of the neurons did not converge", "weights");
  return {solver.eigenvalues(), solver.eigenvectors()};
}

/// With the entry of largest magnitude, the first of equals, positive.
std::vector<double> signed_axis(const Eigen::VectorXd& vector) {
  Eigen::Index most = 0;
  vector.cwiseAbs().maxCoeff(&most);
  const double sign = vector[most] < 0 ? -1 : 1;
  std::vector<double> axis(static_cast<std::size_t>(vector.size()));
  for (std::size_t k = 0; k < axis.size(); ++k) axis[k] = sign * vector[static_cast<Eigen::Index>(k)];
  return axis;
}

}  // namespace

NeuronPlane neuron_plane(std::span<const Neurons> blocks) {
  const std::int64_t d = blocks.front().rows.cols();
  NeuronPlane plane{.mean = std::vector<double>(static_cast<std::size_t>(d), 0.0), .axes = {}, .explained = {}};
  Tensor products(DType::f32, d, d);
  std::fill_n(products.data<float>(), d * d, 0.0F);
  std::int64_t neurons = 0;
  for (const Neurons& block : blocks) {
    add_moments(block, plane.mean, products);
    neurons += block.rows.rows();
  }
  for (double& mean : plane.mean) mean /= static_cast<double>(neurons);
  const Eigen::MatrixXd covariance = covariance_of(products, plane.mean, static_cast<double>(neurons));
  const double variance = covariance.trace();
  if (variance <= 0) {
    plane.axes.fill(std::vector<double>(plane.mean.size(), 0.0));
    plane.explained.fill(std::numeric_limits<double>::quiet_NaN());
    return plane;
  }
  const Eigenpairs found = largest_two(covariance);
  for (std::size_t c = 0; c < 2; ++c) {
    plane.axes[c] = signed_axis(found.vectors.col(static_cast<Eigen::Index>(c)));
    plane.explained[c] = found.values[static_cast<Eigen::Index>(c)] / variance;
  }
  return plane;
}

std::vector<float> project(const NeuronPlane& plane, const Neurons& block, std::span<const std::int32_t> which) {
  std::vector<float> coordinates;
  for (const std::int32_t i : which) {
    for (const std::vector<double>& axis : plane.axes) {
      double sum = 0;
      for (std::size_t k = 0; k < axis.size(); ++k)
        sum += axis[k] * (value_at(block.rows, i, static_cast<std::int64_t>(k)) - plane.mean[k]);
      coordinates.push_back(static_cast<float>(sum));
    }
  }
  return coordinates;
}

}  // namespace switchyard
