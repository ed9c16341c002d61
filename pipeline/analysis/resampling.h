#pragma once

#include <cstdint>
#include <random>
#include <span>
#include <string_view>
#include <vector>

namespace switchyard {

/// An independent stream of random numbers for each (seed, name, number), so that figures do not depend on threads,
/// ranks or the order of datasets.
std::mt19937_64 random_stream(std::uint64_t seed, std::string_view name, std::uint64_t number);

/// Uniform in [0, n), the same on every standard library.
std::size_t random_below(std::size_t n, std::mt19937_64& random);

/// [n] how often each of n pieces is drawn when n are drawn with replacement (Efron's bootstrap, 1979).
std::vector<std::uint32_t> bootstrap_times(std::size_t n, std::uint64_t seed, std::string_view name,
                                           std::uint64_t resample);

/// Value at quantile `at` of ascending values, between neighbours linearly.
double sorted_quantile(std::span<const double> sorted, double at);

}  // namespace switchyard
