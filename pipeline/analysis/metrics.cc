#include "pipeline/analysis/metrics.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

namespace switchyard {
namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

double total(std::span<const std::uint64_t> counts) {
  return static_cast<double>(std::accumulate(counts.begin(), counts.end(), std::uint64_t{0}));
}

double mean(std::span<const std::uint64_t> counts) { return total(counts) / static_cast<double>(counts.size()); }

double binomial(int n, int k) {
  if (k < 0 || k > n) return 0;
  double result = 1;
  for (int i = 1; i <= k; ++i) result = result * (n - k + i) / i;
  return result;
}

double x_log_x(double x) { return x > 0 ? x * std::log(x) : 0; }

}  // namespace

double coefficient_of_variation(std::span<const std::uint64_t> counts) {
  const double m = mean(counts);
  if (m == 0) return kNan;
  double squares = 0;
  for (const std::uint64_t c : counts) squares += (static_cast<double>(c) - m) * (static_cast<double>(c) - m);
  return std::sqrt(squares / static_cast<double>(counts.size())) / m;
}

double gini(std::span<const std::uint64_t> counts) {
  const double sum = total(counts);
  if (sum == 0) return kNan;
  std::vector<std::uint64_t> sorted(counts.begin(), counts.end());
  std::sort(sorted.begin(), sorted.end());
  const auto n = static_cast<double>(sorted.size());
  double weighted = 0;  // sum over i of (2 i - n - 1) c_(i), i from 1: the pairwise differences of sorted counts
  for (std::size_t i = 0; i < sorted.size(); ++i)
    weighted += (2 * static_cast<double>(i + 1) - n - 1) * static_cast<double>(sorted[i]);
  return weighted / (n * sum);
}

double max_over_mean(std::span<const std::uint64_t> counts) {
  const double m = mean(counts);
  return m == 0 ? kNan : static_cast<double>(*std::max_element(counts.begin(), counts.end())) / m;
}

double min_over_mean(std::span<const std::uint64_t> counts) {
  const double m = mean(counts);
  return m == 0 ? kNan : static_cast<double>(*std::min_element(counts.begin(), counts.end())) / m;
}

double effective_experts(std::span<const std::uint64_t> counts) { return std::exp(entropy_nats(usage(counts))); }

std::uint64_t dead_experts(std::span<const std::uint64_t> counts) {
  return static_cast<std::uint64_t>(std::count(counts.begin(), counts.end(), std::uint64_t{0}));
}

std::uint64_t underused_experts(std::span<const std::uint64_t> counts, double threshold) {
  const double limit = threshold * mean(counts);
  return static_cast<std::uint64_t>(
      std::count_if(counts.begin(), counts.end(), [&](std::uint64_t c) { return static_cast<double>(c) < limit; }));
}

std::vector<double> usage(std::span<const std::uint64_t> counts) {
  const double sum = total(counts);
  std::vector<double> shares(counts.size(), kNan);
  if (sum > 0)
    std::transform(counts.begin(), counts.end(), shares.begin(),
                   [&](std::uint64_t c) { return static_cast<double>(c) / sum; });
  return shares;
}

double entropy_nats(std::span<const double> p) {
  double h = 0;
  for (const double x : p) {
    if (std::isnan(x)) return kNan;
    h -= x_log_x(x);
  }
  return h;
}

double jensen_shannon(std::span<const double> p, std::span<const double> q) {
  double divergence = 0;
  for (std::size_t i = 0; i < p.size(); ++i)
    divergence += (x_log_x(p[i]) + x_log_x(q[i])) / 2 - x_log_x((p[i] + q[i]) / 2);
  return std::max(0.0, divergence);  // rounding may leave -1e-17 for equal distributions
}

double mutual_information(std::span<const std::uint64_t> table, std::size_t rows, std::size_t cols) {
  const double n = total(table);
  if (n == 0) return kNan;
  std::vector<double> row(rows, 0);
  std::vector<double> col(cols, 0);
  double joint = 0;
  for (std::size_t r = 0; r < rows; ++r)
    for (std::size_t c = 0; c < cols; ++c) {
      const auto x = static_cast<double>(table[r * cols + c]);
      row[r] += x;
      col[c] += x;
      joint += x_log_x(x / n);
    }
  double marginal = 0;
  for (const double x : row) marginal += x_log_x(x / n);
  for (const double x : col) marginal += x_log_x(x / n);
  return std::max(0.0, joint - marginal);
}

double miller_madow_bias(std::span<const std::uint64_t> table, std::size_t rows, std::size_t cols) {
  const double n = total(table);
  if (n == 0) return kNan;
  std::vector<char> row(rows, 0);
  std::vector<char> col(cols, 0);
  double cells = 0;
  for (std::size_t r = 0; r < rows; ++r)
    for (std::size_t c = 0; c < cols; ++c)
      if (table[r * cols + c] > 0) {
        ++cells;
        row[r] = col[c] = 1;
      }
  const auto used = [](const std::vector<char>& flags) {
    return static_cast<double>(std::count(flags.begin(), flags.end(), 1));
  };
  return (cells - used(row) - used(col) + 1) / (2 * n);
}

double load_balancing_loss(std::span<const std::uint64_t> counts, std::span<const double> probability_sum,
                           std::uint64_t tokens) {
  if (tokens == 0) return kNan;
  const auto t = static_cast<double>(tokens);
  double sum = 0;
  for (std::size_t e = 0; e < counts.size(); ++e) sum += static_cast<double>(counts[e]) / t * (probability_sum[e] / t);
  return static_cast<double>(counts.size()) * sum;
}

double balancedness(std::span<const double> rank_load) {
  constexpr double kGuard = 1e-5;
  const double sum = std::accumulate(rank_load.begin(), rank_load.end(), 0.0);
  const double largest = *std::max_element(rank_load.begin(), rank_load.end());
  return (sum / static_cast<double>(rank_load.size()) + kGuard) / (largest + kGuard);
}

double intersection_null(int n_experts, int top_k) {
  return 1 - binomial(n_experts - top_k, top_k) / binomial(n_experts, top_k);
}

double histogram_quantile(std::span<const std::uint64_t> histogram, double low, double high, double q) {
  const double n = total(histogram);
  if (n == 0) return kNan;
  const double width = (high - low) / static_cast<double>(histogram.size());
  double below = 0;
  for (std::size_t bin = 0; bin < histogram.size(); ++bin) {
    const auto here = static_cast<double>(histogram[bin]);
    if (here > 0 && below + here >= q * n)
      return low + width * (static_cast<double>(bin) + std::max(0.0, q * n - below) / here);
    below += here;
  }
  return high;
}

}  // namespace switchyard
