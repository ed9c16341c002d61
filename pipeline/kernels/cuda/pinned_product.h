#pragma once

#include <compare>
#include <cstdint>

#include "parallel/tensor.h"

namespace switchyard::gpu {

/// y [rows, n_out] = x [rows, n_in] * w [n_out, n_in]^T, all row-major; x and w of one type, sums in f32.
struct ProductShape {
  std::int64_t n_out, n_in;
  DType in, out;
  bool add;  // to what is in y

  auto operator<=>(const ProductShape&) const = default;
};

/// A product for any number of rows by one algorithm of cublasLt, chosen once: its tiles and the order of its sums do
/// not depend on how many rows share a call, so that neither do a row's bits, on one model of GPU. No split of the sum
/// over n_in.
class PinnedProduct {
 public:
  /// Of that shape; chosen when first asked for, kept for the process. Throws Error when cublasLt has no algorithm that
  /// serves every number of rows.
  static const PinnedProduct& get(const ProductShape& shape);

  /// In the compute stream. x, w, y: GPU memory, each a whole number of rows behind the start of a tensor.
  void run(const void* x, const void* w, void* y, std::int64_t rows) const;

 private:
  struct Algorithm;
  PinnedProduct(const ProductShape& shape, const Algorithm& algorithm) : shape_(shape), algorithm_(&algorithm) {}

  ProductShape shape_;
  const Algorithm* algorithm_;  // never destroyed
};

}  // namespace switchyard::gpu
