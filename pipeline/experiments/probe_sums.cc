#include "pipeline/experiments/probe_sums.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <numbers>
#include <numeric>

#include "parallel/error.h"
#include "pipeline/kernels/leaf_loops.h"

namespace switchyard {
namespace {

constexpr float kSparse = 1e-3F;  // of the largest magnitude

/// Whether sums can hold the number and its square.
bool is_summable(double magnitude) { return magnitude < ExactSum::kMost; }

void require(bool all_summable, const char* what, const std::string& where, std::size_t expert) {
  if (!all_summable)
    throw Error(std::string(what) + " is NaN, infinite or beyond 2^24", where + ", expert " + std::to_string(expert),
                "check the checkpoint, or try --precision f32");
}

/// Inner products of every two outputs of each token: [n, E * E] f32, of which [expert, expert2 <= expert] are set.
Tensor output_products(const ExpertOutputs& outputs, std::int64_t n_experts) {
  const std::int64_t width = outputs.width();
  Tensor products(DType::f32, outputs.n_tokens(), n_experts * n_experts);
#pragma omp parallel
  {
    std::vector<float> token(static_cast<std::size_t>(n_experts * width));
#pragma omp for
    for (std::int64_t t = 0; t < outputs.n_tokens(); ++t) {
      outputs.copy_token(t, token.data());
      for (std::int64_t e = 0; e < n_experts; ++e)
        leaf().dot_rows(token.data() + e * width, token.data(), products.row<float>(t).data() + e * n_experts, e + 1,
                        width);
    }
  }
  return products;
}

double cosine(double product, double norm, double norm2) {
  return norm > 0 && norm2 > 0 ? std::clamp(product / (norm * norm2), -1.0, 1.0) : 0.0;
}

/// Adds up all ranks' sums; whole on rank 0.
std::vector<ExactSum> sum_to_root(const std::vector<ExactSum>& mine, const Communicator& comm) {
  const std::vector<ExactSum> all = comm.gather_v(std::span<const ExactSum>(mine));
  std::vector<ExactSum> sums(mine.size());
  for (std::size_t i = 0; i < all.size(); ++i) sums[i % sums.size()].add(all[i]);
  return sums;
}

std::vector<double> means(const std::vector<ExactSum>& sums, double n) {
  std::vector<double> values;
  for (const ExactSum& sum : sums) values.push_back(sum.value() / n);
  return values;
}

/// Copies [expert, expert2 < expert] to [expert2, expert].
void mirror(std::vector<double>& pairs, std::size_t n_experts) {
  for (std::size_t e = 0; e < n_experts; ++e)
    for (std::size_t f = 0; f < e; ++f) pairs[f * n_experts + e] = pairs[e * n_experts + f];
}

/// Cosines of every two rows of [E, width].
std::vector<double> row_cosines(std::span<const float> rows, std::size_t n_experts) {
  const std::size_t width = rows.size() / n_experts;
  const auto product = [&](std::size_t e, std::size_t f) {
    return std::inner_product(rows.begin() + static_cast<std::ptrdiff_t>(e * width),
                              rows.begin() + static_cast<std::ptrdiff_t>((e + 1) * width),
                              rows.begin() + static_cast<std::ptrdiff_t>(f * width), 0.0, std::plus<>(),
                              [](double a, double b) { return a * b; });
  };
  std::vector<double> norms;
  for (std::size_t e = 0; e < n_experts; ++e) norms.push_back(std::sqrt(product(e, e)));
  std::vector<double> cosines(n_experts * n_experts);
  for (std::size_t e = 0; e < n_experts; ++e)
    for (std::size_t f = 0; f <= e; ++f) cosines[e * n_experts + f] = cosine(product(e, f), norms[e], norms[f]);
  mirror(cosines, n_experts);
  return cosines;
}

}  // namespace

std::vector<std::size_t> descending_ranks(std::span<const double> values) {
  std::vector<std::size_t> order(values.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return values[a] > values[b]; });
  std::vector<std::size_t> ranks(values.size());
  for (std::size_t place = 0; place < order.size(); ++place) ranks[order[place]] = place;
  return ranks;
}

ProbeSums::ProbeSums(const LayerPlacement& placement, int rank, std::int64_t d_ff, std::string where)
    : placement_(&placement),
      n_experts_(static_cast<std::size_t>(placement.n_experts())),
      d_ff_(static_cast<std::size_t>(d_ff)),
      where_(std::move(where)),
      my_experts_(placement.experts_of(rank).begin(), placement.experts_of(rank).end()),
      cosine_(n_experts_ * n_experts_),
      angular_(n_experts_ * n_experts_),
      norm_(n_experts_),
      norm_squared_(n_experts_),
      ranks_(n_experts_ * n_experts_),
      states_(my_experts_.size() * d_ff_),
      sparse_(n_experts_) {}

void ProbeSums::add_states(int local_expert, TensorView states) {
  const auto expert = static_cast<std::size_t>(my_experts_[static_cast<std::size_t>(local_expert)]);
  std::vector<float> threshold;  // [n]
  for (std::int64_t t = 0; t < states.rows(); ++t) {
    float most = 0;
    bool all_summable = true;
    for (const float a : states.row<float>(t)) {
      most = std::max(most, std::abs(a));
      all_summable = all_summable && is_summable(std::abs(a));
    }
    require(all_summable, "an intermediate state", where_, expert);
    threshold.push_back(kSparse * most);
  }
  std::uint64_t sparse = 0;
  ExactSum* sums = states_.data() + static_cast<std::size_t>(local_expert) * d_ff_;
  constexpr std::size_t kColumns = 256;  // of a task: their sums stay in the first-level cache
#pragma omp parallel for reduction(+ : sparse)
  for (std::size_t begin = 0; begin < d_ff_; begin += kColumns) {
    for (std::size_t t = 0; t < threshold.size(); ++t) {
      const float* state = states.row<float>(static_cast<std::int64_t>(t)).data();
      for (std::size_t i = begin; i < std::min(d_ff_, begin + kColumns); ++i) {
        sums[i].add(state[i]);
        if (state[i] == 0 || std::abs(state[i]) < threshold[t]) ++sparse;
      }
    }
  }
  sparse_[expert] += sparse;
}

void ProbeSums::add_norms_and_ranks(std::span<const double> norms, std::span<const float> scores) {
  for (std::size_t e = 0; e < n_experts_; ++e) {
    require(is_summable(norms[e]), "the norm of an output", where_, e);
    norm_[e].add(norms[e]);
    norm_squared_[e].add(norms[e] * norms[e]);
  }
  const std::vector<std::size_t> norm_rank = descending_ranks(norms);
  const std::vector<std::size_t> score_rank = descending_ranks(std::vector<double>(scores.begin(), scores.end()));
  for (std::size_t e = 0; e < n_experts_; ++e) ++ranks_[norm_rank[e] * n_experts_ + score_rank[e]];
}

void ProbeSums::add_outputs(const ExpertOutputs& outputs, TensorView scores) {
  const std::size_t n = n_experts_;
  const auto n_tokens = static_cast<std::size_t>(outputs.n_tokens());
  const Tensor products = output_products(outputs, static_cast<std::int64_t>(n));
  std::vector<double> norms(n_tokens * n);  // [n_tokens, E]
  for (std::size_t t = 0; t < n_tokens; ++t) {
    const std::span<const float> of_token = products.row<float>(static_cast<std::int64_t>(t));
    for (std::size_t e = 0; e < n; ++e) norms[t * n + e] = std::sqrt(static_cast<double>(of_token[e * n + e]));
    add_norms_and_ranks(std::span(norms).subspan(t * n, n), scores.row<float>(static_cast<std::int64_t>(t)));
  }
#pragma omp parallel for schedule(dynamic)
  for (std::size_t e = 0; e < n; ++e) {
    for (std::size_t t = 0; t < n_tokens; ++t) {
      const float* product = products.row<float>(static_cast<std::int64_t>(t)).data() + e * n;
      const double* norm = norms.data() + t * n;
      for (std::size_t f = 0; f <= e; ++f) {
        // Not by its formula, whose rounding the arc cosine would magnify.
        const double similarity = f == e && norm[e] > 0 ? 1.0 : cosine(product[f], norm[e], norm[f]);
        cosine_[e * n + f].add(similarity);
        angular_[e * n + f].add(1 - std::acos(similarity) / std::numbers::pi);
      }
    }
  }
}

ProbedLayer ProbeSums::finish(std::uint64_t n_tokens, const Communicator& comm) const {
  const auto n = static_cast<double>(n_tokens);
  ProbedLayer layer;
  layer.output_cosine = means(sum_to_root(cosine_, comm), n);
  layer.output_angular = means(sum_to_root(angular_, comm), n);
  mirror(layer.output_cosine, n_experts_);
  mirror(layer.output_angular, n_experts_);
  layer.output_norm = means(sum_to_root(norm_, comm), n);
  layer.output_norm_std = means(sum_to_root(norm_squared_, comm), n);
  for (std::size_t e = 0; e < n_experts_; ++e) {
    const double variance = layer.output_norm_std[e] - layer.output_norm[e] * layer.output_norm[e];
    layer.output_norm_std[e] = std::sqrt(variance < 0 ? 0 : variance);
  }
  layer.norm_score_rank = ranks_;
  comm.sum_to_root(std::span<std::uint64_t>(layer.norm_score_rank));
  std::vector<std::uint64_t> sparse = sparse_;
  comm.sum_to_root(std::span<std::uint64_t>(sparse));
  for (const std::uint64_t count : sparse)
    layer.sparsity.push_back(static_cast<double>(count) / (n * static_cast<double>(d_ff_)));

  std::vector<float> mine;
  for (const double mean : means(states_, n)) mine.push_back(static_cast<float>(mean));
  const std::vector<float> by_rank = comm.gather_v(std::span<const float>(mine));
  if (comm.rank() != 0) return layer;
  layer.intermediate_mean.resize(by_rank.size());
  auto from = by_rank.begin();
  for (int rank = 0; rank < comm.size(); ++rank)
    for (const std::int32_t expert : placement_->experts_of(rank)) {
      const auto width = static_cast<std::ptrdiff_t>(d_ff_);
      std::copy(from, from + width, layer.intermediate_mean.begin() + expert * width);
      from += width;
    }
  layer.intermediate_cosine = row_cosines(layer.intermediate_mean, n_experts_);
  return layer;
}

}  // namespace switchyard
