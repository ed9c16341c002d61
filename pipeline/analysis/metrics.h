#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace switchyard {

/// Figures of one layer's load. counts: [E] slots sent to each expert. All are defined for at least one expert; those
/// that divide by the mean are NaN when every count is 0. Formulas and sources: pipeline/analysis/README.md.

/// Population standard deviation over mean.
double coefficient_of_variation(std::span<const std::uint64_t> counts);
/// sum_ij |c_i - c_j| / (2 E^2 mean), in [0, 1 - 1/E].
double gini(std::span<const std::uint64_t> counts);
double max_over_mean(std::span<const std::uint64_t> counts);
double min_over_mean(std::span<const std::uint64_t> counts);
/// exp(entropy of usage): how many equally used experts would be as diverse, in [1, E].
double effective_experts(std::span<const std::uint64_t> counts);
/// Experts with count 0.
std::uint64_t dead_experts(std::span<const std::uint64_t> counts);
/// Experts with usage below threshold / E (dead ones included).
std::uint64_t underused_experts(std::span<const std::uint64_t> counts, double threshold = 0.1);
/// c_e / sum c; empty experts 0. All NaN when the sum is 0.
std::vector<double> usage(std::span<const std::uint64_t> counts);

/// Entropy of a distribution in nats; p need not be normalised to the last bit, zeros count nothing.
double entropy_nats(std::span<const double> p);
/// Jensen-Shannon divergence of two distributions over the same outcomes, nats, in [0, ln 2].
double jensen_shannon(std::span<const double> p, std::span<const double> q);
/// Mutual information of a contingency table [rows, cols] of counts, nats (plug-in estimate, no correction).
double mutual_information(std::span<const std::uint64_t> table, std::size_t rows, std::size_t cols);
/// What Miller-Madow subtracts from that estimate: (nonzero cells - nonzero rows - nonzero columns + 1) / (2 N).
double miller_madow_bias(std::span<const std::uint64_t> table, std::size_t rows, std::size_t cols);

/// E * sum_e f_e P_e with f_e = c_e / T and P_e the mean probability: k for a uniform router (Switch Transformer, eq.
/// 4-6, times k).
double load_balancing_loss(std::span<const std::uint64_t> counts, std::span<const double> probability_sum,
                           std::uint64_t tokens);

/// Slots of one step and layer on each rank -> mean over max with SGLang's guard, (mean + 1e-5) / (max + 1e-5).
double balancedness(std::span<const double> rank_load);

/// P(S_t and S_{t+1} intersect) when both are independent uniform k-subsets of E: 1 - C(E-k, k) / C(E, k).
double intersection_null(int n_experts, int top_k);

/// Value at quantile q of a histogram over [low, high) with equal bins, linear inside a bin. NaN when empty.
double histogram_quantile(std::span<const std::uint64_t> histogram, double low, double high, double q);

}  // namespace switchyard
