#pragma once

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

namespace switchyard {

/// McNemar's test (1947), exact and two-sided: of b + c pairs whose two outcomes differ, how likely are splits at least
/// as uneven as b to c when both directions are equally likely? min(1, 2 P(X <= min(b, c))), X binomial(b + c, 1/2). 1
/// without such pairs.
double mcnemar_exact(std::uint64_t b, std::uint64_t c);

/// [n] places of values in ascending order, from 1; equal values share the mean of theirs.
std::vector<double> mid_ranks(std::span<const double> values);

/// Values of two quantities of the same things.
using ValuePairs = std::vector<std::pair<double, double>>;

/// Spearman's rank correlation (1904): Pearson's of mid_ranks. Of several strata: ranks are those within each, their
/// deviations from the stratum's mean pooled. In [-1, 1]; NaN when one quantity is the same everywhere. Pairs must not
/// hold NaN.
double rank_correlation(std::span<const ValuePairs> strata);

}  // namespace switchyard
