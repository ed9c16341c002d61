#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace switchyard {

/// A permutation of largest total gain, with the proof that none is larger: gain[i, j] <= row_dual[i] + column_dual[j]
/// for all i and j (up to the rounding of doubles), and the duals sum to the total.
struct Assignment {
  std::vector<std::int32_t> column_of_row;  // [n]
  std::vector<double> row_dual;             // [n]
  std::vector<double> column_dual;          // [n]
  double total = 0;                         // sum_i gain[i, column_of_row[i]]
};

/// Linear assignment by shortest augmenting paths (Jonker and Volgenant, A shortest augmenting path algorithm for dense
/// and sparse linear assignment problems, 1987), O(n^3), with the dense scan of Crouse (On implementing 2D rectangular
/// assignment algorithms, 2016). Gains are floats, prices doubles. One thread; the same permutation on every CPU, also
/// where several are best. gain: [n, n], finite.
Assignment assign(std::span<const float> gain, std::int64_t n);

}  // namespace switchyard
