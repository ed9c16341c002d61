#include "pipeline/analysis/linear_assignment.h"

#include <algorithm>
#include <cassert>
#include <limits>

#include "pipeline/kernels/leaf_loops.h"

namespace switchyard {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr std::int64_t kBlock = 1024;  // columns whose extreme value is remembered, so that its place is found quickly
constexpr std::int32_t kNone = -1;

/// What a row would pay for a column is its price; a row wants the column of largest profit, gain minus price. Columns
/// that have a row are the one of largest profit to it: the invariant of every step.
class Solver {
 public:
  Solver(const float* gain, std::int64_t n)
      : gain_(gain),
        n_(n),
        blocks_((n + kBlock - 1) / kBlock),
        price_(static_cast<std::size_t>(n), -kInfinity),
        column_of_row_(static_cast<std::size_t>(n), kNone),
        row_of_column_(static_cast<std::size_t>(n), kNone),
        distance_(static_cast<std::size_t>(n)),
        open_price_(static_cast<std::size_t>(n)),
        previous_(static_cast<std::size_t>(n)),
        block_best_(static_cast<std::size_t>(blocks_)) {}

  Assignment solve() {
    reduce_columns();
    std::vector<std::int32_t> free_rows = transfer_reductions();
    for (int pass = 0; pass < 2; ++pass) free_rows = reduce_rows(free_rows);
    for (const std::int32_t row : free_rows) augment(row);
    return result();
  }

 private:
  const float* row(std::int64_t i) const { return gain_ + i * n_; }
  std::int64_t block_end(std::int64_t begin) const { return std::min(n_, begin + kBlock); }

  /// A column's price starts at its largest gain, and the first row with that gain takes it if it has none.
  void reduce_columns() {
    std::vector<std::int32_t> best(static_cast<std::size_t>(n_), 0);
    for (std::int64_t i = 0; i < n_; ++i) {
      const float* gains = row(i);
      for (std::size_t j = 0; j < best.size(); ++j) {
        if (gains[j] > price_[j]) {
          price_[j] = gains[j];
          best[j] = static_cast<std::int32_t>(i);
        }
      }
    }
    owned_.assign(static_cast<std::size_t>(n_), 0);
    for (std::size_t j = 0; j < best.size(); ++j) {
      const auto i = static_cast<std::size_t>(best[j]);
      if (owned_[i]++ == 0) join(best[j], static_cast<std::int32_t>(j));
    }
  }

  /// A row that is first for one column alone raises that price until its second choice is as good. Returns the rows
  /// without a column.
  std::vector<std::int32_t> transfer_reductions() {
    std::vector<std::int32_t> free_rows;
    for (std::int32_t i = 0; i < n_; ++i) {
      const std::int32_t owned = owned_[static_cast<std::size_t>(i)];
      if (owned == 0) free_rows.push_back(i);
      if (owned != 1 || n_ == 1) continue;
      const double second = best_profits(i).second;
      price_[static_cast<std::size_t>(column_of_row_[static_cast<std::size_t>(i)])] -= second;
    }
    return free_rows;
  }

  struct BestProfits {
    double first, second;
    std::int32_t column;
  };

  BestProfits best_profits(std::int32_t i) const {
    const float* gains = row(i);
    BestProfits best = {-kInfinity, -kInfinity, 0};
    std::int64_t first_block = 0;
    for (std::int64_t begin = 0; begin < n_; begin += kBlock) {
      const TwoLargest here =
          leaf().two_largest_profits(gains + begin, &price_[static_cast<std::size_t>(begin)], block_end(begin) - begin);
      if (here.first > best.first) first_block = begin;
      best.second = std::max({best.second, here.second, std::min(best.first, here.first)});
      best.first = std::max(best.first, here.first);
    }
    best.column = find_profit(gains, best.first, first_block);
    return best;
  }

  /// The first column from `begin` on whose profit is that; there is one.
  std::int32_t find_profit(const float* gains, double profit, std::int64_t begin) const {
    while (gains[begin] - price_[static_cast<std::size_t>(begin)] != profit) ++begin;
    return static_cast<std::int32_t>(begin);
  }

  /// Every free row takes its best column and raises its price until the second best is as good; a row that loses its
  /// column looks again, at once if the price rose, else in the next pass. Returns the rows that are left.
  std::vector<std::int32_t> reduce_rows(const std::vector<std::int32_t>& free_rows) {
    std::vector<std::int32_t> left;
    std::int64_t looks = 8 * n_;  // price wars over few columns are settled faster by paths
    for (std::int32_t i : free_rows) {
      while (i != kNone && looks-- > 0) {
        const auto [loser, rose] = bid(i);
        if (!rose && loser != kNone) left.push_back(loser);
        i = rose ? loser : kNone;
      }
      if (i != kNone) left.push_back(i);
    }
    return left;
  }

  struct Bid {
    std::int32_t loser;  // the row that had the column, or none
    bool rose;           // the price did
  };

  Bid bid(std::int32_t i) {
    const BestProfits best = best_profits(i);
    std::int32_t column = best.column;
    double& price = price_[static_cast<std::size_t>(column)];
    const double raised = price + (best.first - best.second);
    const bool rose = raised > price;
    price = raised;
    if (best.first == best.second && row_of_column_[static_cast<std::size_t>(column)] != kNone)
      column = find_profit(row(i), best.second, column + 1);  // as good, and perhaps free
    const std::int32_t loser = row_of_column_[static_cast<std::size_t>(column)];
    if (loser != kNone) column_of_row_[static_cast<std::size_t>(loser)] = kNone;
    join(i, column);
    return {loser, rose};
  }

  /// Dijkstra's search from a free row to the nearest free column, over slacks; then prices of the columns it settled
  /// rise, and the path changes hands.
  void augment(std::int32_t free_row) {
    open_price_ = price_;
    std::fill(distance_.begin(), distance_.end(), kInfinity);
    std::vector<std::pair<std::int32_t, double>> settled;
    std::int32_t i = free_row;
    double base = 0;
    while (true) {
      const auto [column, nearest] = shorten(i, base);
      if (row_of_column_[static_cast<std::size_t>(column)] == kNone) {
        for (const auto& [j, distance] : settled) price_[static_cast<std::size_t>(j)] += nearest - distance;
        change_hands(free_row, column);
        return;
      }
      settled.emplace_back(column, nearest);
      distance_[static_cast<std::size_t>(column)] = kInfinity;
      open_price_[static_cast<std::size_t>(column)] = kInfinity;  // so that no path to it is shorter
      i = row_of_column_[static_cast<std::size_t>(column)];
      base = nearest + (row(i)[column] - price_[static_cast<std::size_t>(column)]);
    }
  }

  /// Looks at the paths that go on from row i; returns the nearest open column, a free one if there is, and its
  /// distance.
  std::pair<std::int32_t, double> shorten(std::int32_t i, double base) {
    double nearest = kInfinity;
    for (std::int64_t b = 0; b < blocks_; ++b) {
      const auto begin = static_cast<std::size_t>(b * kBlock);
      double& best = block_best_[static_cast<std::size_t>(b)];
      best = leaf().shorten_paths(row(i) + b * kBlock, &open_price_[begin], base, i, &distance_[begin],
                                  &previous_[begin], block_end(b * kBlock) - b * kBlock);
      nearest = std::min(nearest, best);
    }
    std::int32_t found = kNone;
    for (std::int64_t b = 0; b < blocks_; ++b) {
      if (block_best_[static_cast<std::size_t>(b)] != nearest) continue;
      for (std::int64_t j = b * kBlock; j < block_end(b * kBlock); ++j) {
        if (distance_[static_cast<std::size_t>(j)] != nearest) continue;
        if (row_of_column_[static_cast<std::size_t>(j)] == kNone) return {static_cast<std::int32_t>(j), nearest};
        if (found == kNone) found = static_cast<std::int32_t>(j);
      }
    }
    return {found, nearest};
  }

  void change_hands(std::int32_t free_row, std::int32_t column) {
    std::int32_t i = kNone;
    while (i != free_row) {
      i = static_cast<std::int32_t>(previous_[static_cast<std::size_t>(column)]);
      const std::int32_t before = column_of_row_[static_cast<std::size_t>(i)];
      join(i, column);
      column = before;
    }
  }

  void join(std::int32_t i, std::int32_t column) {
    column_of_row_[static_cast<std::size_t>(i)] = column;
    row_of_column_[static_cast<std::size_t>(column)] = i;
  }

  Assignment result() {
    Assignment out{.column_of_row = column_of_row_,
                   .row_dual = std::vector<double>(static_cast<std::size_t>(n_)),
                   .column_dual = price_};
    for (std::int64_t i = 0; i < n_; ++i) {
      const auto at = static_cast<std::size_t>(i);
      const auto column = static_cast<std::size_t>(column_of_row_[at]);
      out.row_dual[at] = row(i)[column] - price_[column];
      out.total += row(i)[column];
    }
    return out;
  }

  const float* gain_;
  std::int64_t n_, blocks_;
  std::vector<double> price_;  // by column
  std::vector<std::int32_t> column_of_row_, row_of_column_;
  std::vector<std::int32_t> owned_;  // by row: columns that it is the first for
  // Of the search in progress, by column: shortest distance, infinite where settled; price, likewise; row before it.
  std::vector<double> distance_, open_price_;
  std::vector<std::int64_t> previous_;
  std::vector<double> block_best_;
};

}  // namespace

Assignment assign(std::span<const float> gain, std::int64_t n) {
  assert(std::ssize(gain) == n * n);
  return Solver(gain.data(), n).solve();
}

}  // namespace switchyard
