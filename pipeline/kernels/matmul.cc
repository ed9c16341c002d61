#include "pipeline/kernels/matmul.h"

#include <omp.h>

#include <algorithm>
#include <cassert>
#include <cstring>
#include <vector>

#include "pipeline/kernels/blocked_product.h"
#include "pipeline/kernels/leaf_loops.h"
#include "pipeline/kernels/tile_kernel.h"

namespace switchyard {

struct PackedWeights::Panels {
  Tensor memory;                       // of all, so that it lies in large pages
  std::vector<dnnl::memory> memories;  // [n_panels]
};

namespace {

TileShape tile_shape(const PackedWeights& weights, std::int64_t columns, DType out) {
  return {.m = kTileRows,
          .n = columns,
          .k = weights.n_in(),
          .in = weights.dtype(),
          .out = out,
          .right = RightLayout::packed};
}

bool runs_in_blocks(std::int64_t n_out, std::int64_t n_in, DType type) {
  constexpr std::int64_t kShort = 256;  // gains less from the caches than rows cost to be put in order
  return type == DType::bf16 && n_in > kShort && has_amx() && fits_amx_blocks(n_out, n_in);
}

std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

/// kTileRows readable rows from `begin` on: the rows behind `end` do not matter, as long as they exist.
const std::byte* full_tile(TensorView rows, std::int64_t begin, std::int64_t end) {
  if (begin + kTileRows <= rows.rows()) return rows.rows(begin, end).bytes();
  const auto row_bytes = static_cast<std::size_t>(rows.row_bytes());
  std::byte* copy = thread_scratch(Scratch::left, kTileRows * row_bytes);
  const std::size_t used = static_cast<std::size_t>(end - begin) * row_bytes;
  std::memcpy(copy, rows.rows(begin, end).bytes(), used);
  std::memset(copy + used, 0, kTileRows * row_bytes - used);
  return copy;
}

/// Rows [begin, begin + n_rows) of the product with a panel; left: these from `row` on.
void write_panel(const PackedWeights& weights, int panel, const AmxRows& left, std::int64_t row, std::int64_t begin,
                 std::int64_t n_rows, Tensor& out, bool add) {
  const AmxFinish::Kind kind = add ? AmxFinish::Kind::add : AmxFinish::Kind::store;
  multiply_blocks(weights, panel, left, row, amx_block_rows(n_rows), [&](std::int64_t column) {
    return write_to<float>(kind, out, begin, begin + n_rows, panel * weights.panel() + column);
  });
}

/// The same as multiply, in AMX's blocks: rows in pieces that each pass all panels in one thread, or, where they are
/// too few for that, panels that threads share out.
void multiply_in_blocks(TensorView in, const PackedWeights& weights, Tensor& out, bool add) {
  if (enough_for_pieces(in.rows())) {
#pragma omp parallel
    {
      AmxRows left(kPieceRows, in.cols());
#pragma omp for schedule(dynamic)
      for (std::int64_t begin = 0; begin < in.rows(); begin += kPieceRows) {
        const std::int64_t n_rows = std::min(in.rows() - begin, kPieceRows);
        left.set(0, in.row<Bf16>(begin).data(), n_rows);
        for (int panel = 0; panel < weights.n_panels(); ++panel)
          write_panel(weights, panel, left, 0, begin, n_rows, out, add);
      }
    }
    return;
  }
  AmxRows left(amx_block_rows(in.rows()), in.cols());
  const std::int64_t pieces = ceil_div(in.rows(), kBlockedRows);
#pragma omp parallel
  {
#pragma omp for schedule(dynamic)
    for (std::int64_t begin = 0; begin < in.rows(); begin += kTileRows)
      left.set(begin, in.row<Bf16>(begin).data(), std::min(kTileRows, in.rows() - begin));
#pragma omp for schedule(dynamic)
    for (std::int64_t task = 0; task < pieces * weights.n_panels(); ++task) {
      const std::int64_t begin = task / weights.n_panels() * kBlockedRows;
      const std::int64_t n_rows = std::min(in.rows() - begin, kBlockedRows);
      write_panel(weights, static_cast<int>(task % weights.n_panels()), left, begin, begin, n_rows, out, add);
    }
  }
}

void multiply(TensorView in, const PackedWeights& weights, Tensor& out, bool add) {
  assert(in.cols() == weights.n_in() && in.dtype() == weights.dtype() && out.rows() == in.rows());
  if (weights.in_blocks()) return multiply_in_blocks(in, weights, out, add);
  const PanelProduct product(weights, out.dtype(), add);
  const std::int64_t tiles = ceil_div(in.rows(), kTileRows);
  // A task takes one panel past several tiles of rows; there are a few tasks for each thread.
  const std::int64_t per_task =
      std::clamp<std::int64_t>(tiles * weights.n_panels() / (4 * omp_get_max_threads()), 1, 8);
  const std::int64_t chunks = ceil_div(tiles, per_task);
  const std::int64_t element = size_of(out.dtype());
#pragma omp parallel for schedule(dynamic) if (chunks * weights.n_panels() > 1)
  for (std::int64_t task = 0; task < chunks * weights.n_panels(); ++task) {
    const auto panel = static_cast<int>(task / chunks);
    const std::int64_t begin = (task % chunks) * per_task * kTileRows;
    const std::int64_t end = std::min(in.rows(), begin + per_task * kTileRows);
    product.run(weights, panel, in, begin, end,
                out.bytes() + begin * out.row_bytes() + panel * weights.panel() * element, out.cols());
  }
}

}  // namespace

std::int64_t PackedWeights::good_panel(std::int64_t n_out, std::int64_t n_in, DType type) {
  constexpr std::int64_t kPanelBytes = 512 << 10;
  constexpr std::int64_t kOfBlocks = 256;  // tasks small enough to be shared out
  const std::int64_t most = runs_in_blocks(n_out, n_in, type)
                                ? kOfBlocks
                                : std::clamp<std::int64_t>(kPanelBytes / (n_in * size_of(type)) / 64 * 64, 128, 512);
  const std::int64_t even = ceil_div(n_out, ceil_div(n_out, most));
  return std::min(n_out, ceil_div(even, 64) * 64);
}

PackedWeights::PackedWeights(std::int64_t n_out, std::int64_t n_in, DType type, std::int64_t panel)
    : n_in_(n_in),
      n_out_(n_out),
      panel_(panel > 0 ? std::min(panel, n_out) : good_panel(n_out, n_in, type)),
      type_(type),
      panels_(std::make_unique<Panels>()) {
  constexpr std::size_t kLine = 64;
  std::vector<const TileKernel*> kernels;
  std::vector<std::size_t> begin = {0};  // of each panel, in bytes
  for (int p = 0; p < n_panels(); ++p) {
    kernels.push_back(&TileKernel::get(tile_shape(*this, panel_columns(p), DType::f32)));
    begin.push_back(begin.back() + (kernels.back()->right_layout().get_size() + kLine - 1) / kLine * kLine);
  }
  panels_->memory = Tensor(DType::f32, 1, static_cast<std::int64_t>(begin.back() / sizeof(float)));
  for (std::size_t p = 0; p < kernels.size(); ++p)
    panels_->memories.push_back(packed_memory(*kernels[p], panels_->memory.bytes() + begin[p]));
}

PackedWeights::PackedWeights(TensorView weights, std::int64_t panel)
    : PackedWeights(weights.rows(), weights.cols(), weights.dtype(), panel) {
  pack(weights);
}

void PackedWeights::pack(TensorView weights) {
  assert(weights.rows() == n_out_ && weights.cols() == n_in_ && weights.dtype() == type_);
  for (int p = 0; p < n_panels(); ++p) {
    const std::int64_t begin = p * panel_;
    const std::int64_t columns = panel_columns(p);
    pack_right(TileKernel::get(tile_shape(*this, columns, DType::f32)), weights.rows(begin, begin + columns),
               panels_->memories[static_cast<std::size_t>(p)]);
  }
}

std::vector<std::span<std::byte>> PackedWeights::parts() {
  std::vector<std::span<std::byte>> parts;
  for (const dnnl::memory& memory : panels_->memories)
    parts.emplace_back(static_cast<std::byte*>(memory.get_data_handle()), memory.get_desc().get_size());
  return parts;
}

bool PackedWeights::in_blocks() const { return runs_in_blocks(n_out_, n_in_, type_) && panel_ % kAmxBlock == 0; }

const std::byte* PackedWeights::packed(int panel) const {
  return static_cast<const std::byte*>(panels_->memories[static_cast<std::size_t>(panel)].get_data_handle());
}

PackedWeights::~PackedWeights() = default;
PackedWeights::PackedWeights(PackedWeights&&) noexcept = default;
PackedWeights& PackedWeights::operator=(PackedWeights&&) noexcept = default;

PanelProduct::PanelProduct(const PackedWeights& weights, DType out, bool add)
    : out_(out),
      add_(add),
      full_(&TileKernel::get(tile_shape(weights, weights.panel(), out))),
      last_(&TileKernel::get(tile_shape(weights, weights.panel_columns(weights.n_panels() - 1), out))) {
  assert(!add || out == DType::f32);
}

void PanelProduct::run_tile(const PackedWeights& weights, int panel, TensorView rows, std::int64_t begin,
                            std::int64_t end, void* tile) const {
  const TileKernel& kernel = panel + 1 < weights.n_panels() ? *full_ : *last_;
  kernel.run(full_tile(rows, begin, end), weights.panels_->memories[static_cast<std::size_t>(panel)], tile);
}

void PanelProduct::run(const PackedWeights& weights, int panel, TensorView rows, std::int64_t begin, std::int64_t end,
                       std::byte* out, std::int64_t stride) const {
  const std::int64_t columns = weights.panel_columns(panel);
  const std::int64_t element = size_of(out_);
  for (std::int64_t r = begin; r < end; r += kTileRows, out += kTileRows * stride * element) {
    const std::int64_t n_rows = std::min(end - r, kTileRows);
    if (n_rows == kTileRows && stride == columns && !add_) {
      run_tile(weights, panel, rows, r, r + n_rows, out);
      continue;
    }
    std::byte* tile = thread_scratch(Scratch::out, static_cast<std::size_t>(kTileRows * columns * element));
    run_tile(weights, panel, rows, r, r + n_rows, tile);
    for (std::int64_t i = 0; i < n_rows; ++i) {
      std::byte* to = out + i * stride * element;
      const std::byte* from = tile + i * columns * element;
      if (add_) {
        leaf().f32.accumulate(reinterpret_cast<float*>(to), reinterpret_cast<const float*>(from), 1.0F, columns);
      } else {
        std::memcpy(to, from, static_cast<std::size_t>(columns * element));
      }
    }
  }
}

Tensor matmul(TensorView in, const PackedWeights& weights) {
  Tensor out(DType::f32, in.rows(), weights.n_out());
  multiply(in, weights, out, false);
  return out;
}

void add_matmul(Tensor& x, TensorView in, const PackedWeights& weights) { multiply(in, weights, x, true); }

}  // namespace switchyard
