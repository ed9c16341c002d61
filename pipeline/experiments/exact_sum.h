#pragma once

#include <cmath>

namespace switchyard {

/// A sum of numbers, each rounded to a multiple of 2^-56 and added as an integer: the same bits in any order of
/// addition, so for any batches and ranks. 2^22 numbers below kMost^2 in magnitude fit.
class ExactSum {
 public:
  static constexpr double kMost = 0x1p24;

  void add(double value) { sum_ += static_cast<__int128>(std::nearbyint(value * 0x1p56)); }
  void add(const ExactSum& other) { sum_ += other.sum_; }
  double value() const { return static_cast<double>(sum_) * 0x1p-56; }

 private:
  __int128 sum_ = 0;
};

}  // namespace switchyard
