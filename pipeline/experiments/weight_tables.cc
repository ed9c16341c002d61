#include "pipeline/experiments/weight_tables.h"

#include <string>

#include "pipeline/experiments/regression.h"

namespace switchyard {
namespace {

/// The cells [i, j], i < j < n, of layer l of a [layer, width, width] table.
std::vector<double> upper_triangle(const std::vector<double>& table, std::size_t l, std::size_t width, std::size_t n) {
  std::vector<double> cells;
  for (std::size_t i = 0; i < n; ++i)
    for (std::size_t j = i + 1; j < n; ++j) cells.push_back(table[(l * width + i) * width + j]);
  return cells;
}

void add_matrix(const WeightSimilarity& similarity, FfnMatrix which, std::vector<Table>& tables) {
  const MatrixSimilarity& matrix = similarity.matrices[static_cast<std::size_t>(which)];
  std::string group = "/";
  group.append(name_of(which)).append("/");
  const std::uint64_t layers = similarity.layers.size();
  const std::uint64_t blocks = static_cast<std::uint64_t>(similarity.n_experts) + (similarity.has_dense ? 1 : 0);
  const auto add = [&](const char* name, const std::vector<double>& values, const char* long_name) {
    tables.push_back({group + name, {"layer", "block", "block2"}, {layers, blocks, blocks}, values, "1", long_name});
  };
  add("flat_cosine", matrix.flat_cosine, "cosine of the whole matrices, flattened");
  add("matched_cosine", matrix.matched_cosine, "mean cosine of neurons of the same number");
  add("assigned_cosine", matrix.assigned_cosine, "mean cosine of neurons after the reordering of largest mean");
  add("assigned_flat_cosine", matrix.assigned_flat_cosine, "cosine of the flattened matrices after that reordering");
  add("kendall_tau", matrix.kendall_tau, "Kendall's tau of that reordering and the original order");
  tables.push_back({group + "coordinates",
                    {"layer", "block", "neuron", "component"},
                    {layers, blocks, similarity.neurons.size(), 2},
                    matrix.coordinates,
                    "1",
                    "principal components of the neurons, the experts' of a layer together"});
  tables.push_back(
      {group + "explained", {"layer", "component"}, {layers, 2}, matrix.explained, "1", "share of the variance"});
}

void add_router(const WeightSimilarity& similarity, std::vector<Table>& tables) {
  const std::size_t layers = similarity.layers.size();
  const auto experts = static_cast<std::size_t>(similarity.n_experts);
  const std::size_t blocks = experts + (similarity.has_dense ? 1 : 0);
  std::vector<double> slope;
  std::vector<double> intercept;
  std::vector<double> r_squared;
  for (std::size_t l = 0; l < layers; ++l) {
    const std::vector<double> router = upper_triangle(similarity.router_cosine, l, experts, experts);
    for (const MatrixSimilarity& matrix : similarity.matrices) {
      const Regression line = regress(upper_triangle(matrix.flat_cosine, l, blocks, experts), router);
      slope.push_back(line.slope);
      intercept.push_back(line.intercept);
      r_squared.push_back(line.r_squared);
    }
  }
  tables.push_back({"/router/cosine",
                    {"layer", "expert", "expert2"},
                    {layers, experts, experts},
                    similarity.router_cosine,
                    "1",
                    "cosine of the router's rows of two experts"});
  const auto add = [&](const char* path, std::vector<double> values, const char* long_name) {
    tables.push_back({path, {"layer", "matrix"}, {layers, kFfnMatrices}, std::move(values), "1", long_name});
  };
  add("/router/slope", std::move(slope), "of the routers' cosines on the flattened matrices', over pairs of experts");
  add("/router/intercept", std::move(intercept), "of that regression");
  add("/router/r_squared", std::move(r_squared), "share of the variance of the routers' cosines that it explains");
}

}  // namespace

std::vector<Table> weight_tables(const WeightSimilarity& similarity) {
  std::vector<std::string> blocks;
  for (int e = 0; e < similarity.n_experts; ++e) blocks.push_back(std::string("expert ") + std::to_string(e));
  if (similarity.has_dense) blocks.emplace_back("dense");
  std::vector<std::string> matrices;
  for (int m = 0; m < kFfnMatrices; ++m) matrices.emplace_back(name_of(static_cast<FfnMatrix>(m)));
  std::vector<Table> tables = {
      {"/weights/decoder_layer",
       {"layer"},
       {similarity.layers.size()},
       std::vector<std::int32_t>(similarity.layers.begin(), similarity.layers.end()),
       "1",
       "number of the decoder layer"},
      {"/weights/block_name", {"block"}, {blocks.size()}, blocks, "1", "what is compared, by row"},
      {"/weights/matrix_name", {"matrix"}, {matrices.size()}, matrices, "1", "name of the matrix"},
      {"/weights/neuron", {"neuron"}, {similarity.neurons.size()}, similarity.neurons, "1", "neurons with coordinates"},
      {"/weights/reordered",
       {"reordered_neuron"},
       {similarity.reordered.size()},
       similarity.reordered,
       "1",
       "neurons that are reordered"}};
  for (int m = 0; m < kFfnMatrices; ++m) add_matrix(similarity, static_cast<FfnMatrix>(m), tables);
  add_router(similarity, tables);
  return tables;
}

}  // namespace switchyard
