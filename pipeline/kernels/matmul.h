#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "parallel/tensor.h"

namespace switchyard {

class TileKernel;

/// Rows of every product that the CPU computes at once. A shorter rest is filled up, never computed by another kernel:
/// so each row's bits depend on that row and the weights alone, whatever shares its batch.
inline constexpr std::int64_t kTileRows = 64;

/// Rows that pass a panel at once where products run in AMX's blocks.
inline constexpr std::int64_t kBlockedRows = 256;

/// A weight matrix [n_out, n_in] in the layout that the CPU's matrix units read, cut into panels of output columns that
/// stay in a core's second-level cache while rows pass by.
class PackedWeights {
 public:
  /// weights: [n_out, n_in], f32 or bf16, which is also what products compute in. panel: output columns of a panel, 0:
  /// a good one. Throws Error when this CPU cannot multiply that type.
  explicit PackedWeights(TensorView weights, std::int64_t panel = 0);
  /// Room for weights of that shape, which pack() or parts() fill.
  PackedWeights(std::int64_t n_out, std::int64_t n_in, DType type, std::int64_t panel = 0);
  ~PackedWeights();
  PackedWeights(PackedWeights&&) noexcept;
  PackedWeights& operator=(PackedWeights&&) noexcept;

  /// weights: of this shape and type.
  void pack(TensorView weights);

  std::int64_t n_in() const { return n_in_; }
  std::int64_t n_out() const { return n_out_; }
  DType dtype() const { return type_; }
  int n_panels() const { return static_cast<int>((n_out_ + panel_ - 1) / panel_); }
  /// Output columns of all panels but the last, which may have fewer.
  std::int64_t panel() const { return panel_; }
  std::int64_t panel_columns(int p) const { return p + 1 < n_panels() ? panel_ : n_out_ - panel_ * (n_panels() - 1); }

  /// The memory of each panel, which a rank on a CPU of the same kind can use as it is.
  std::vector<std::span<std::byte>> parts();

  /// Whether products run in AMX's blocks (blocked_product.h) instead of by a PanelProduct.
  bool in_blocks() const;
  /// A panel as it is packed.
  const std::byte* packed(int panel) const;

  /// Output columns of a panel for that many input columns.
  static std::int64_t good_panel(std::int64_t n_out, std::int64_t n_in, DType type);

 private:
  friend class PanelProduct;
  struct Panels;
  std::int64_t n_in_, n_out_, panel_;
  DType type_;
  std::unique_ptr<Panels> panels_;
};

/// Products of rows with panels of weights of one shape. Made outside of parallel regions, run inside them.
class PanelProduct {
 public:
  /// For results of type `out`. `add`: the result is added to what is there, which is f32.
  PanelProduct(const PackedWeights& weights, DType out, bool add = false);

  /// out[r, c] = rows[begin + r] * panel for r in [0, end - begin), `stride` elements from row to row.
  void run(const PackedWeights& weights, int panel, TensorView rows, std::int64_t begin, std::int64_t end,
           std::byte* out, std::int64_t stride) const;

  /// One dense tile: at most kTileRows rows, into room for kTileRows times the panel's columns; what follows the rows
  /// asked for is undefined.
  void run_tile(const PackedWeights& weights, int panel, TensorView rows, std::int64_t begin, std::int64_t end,
                void* tile) const;

 private:
  DType out_;
  bool add_;
  const TileKernel* full_;  // for all panels but the last
  const TileKernel* last_;
};

/// in [n, n_in] * weights -> [n, n_out] f32. n may be 0.
Tensor matmul(TensorView in, const PackedWeights& weights);
/// x [n, n_out] f32 += in [n, n_in] * weights.
void add_matmul(Tensor& x, TensorView in, const PackedWeights& weights);

}  // namespace switchyard
