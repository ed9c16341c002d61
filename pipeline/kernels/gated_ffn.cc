#include "pipeline/kernels/gated_ffn.h"

#include <omp.h>

#include <algorithm>
#include <cassert>
#include <cstring>
#include <functional>
#include <numeric>
#include <vector>

#include "pipeline/kernels/blocked_product.h"
#include "pipeline/kernels/leaf_loops.h"
#include "pipeline/kernels/tile_kernel.h"

namespace switchyard {

namespace {

/// Rows [begin, end), all of one expert, and where their activation begins.
struct Segment {
  std::size_t expert;
  std::int64_t begin, end;
  std::int64_t at = 0;

  std::int64_t rows() const { return end - begin; }
  /// Rows from `first` on, no more than `most`.
  Segment part(std::int64_t first, std::int64_t most) const {
    return {expert, first, std::min(end, first + most), at + first - begin};
  }
};

/// Columns of a panel of gate_up, as many of gate as of up.
std::int64_t even_panel(std::int64_t d_ff, std::int64_t d, DType type) {
  return PackedWeights::good_panel(2 * d_ff, d, type) / 2 * 2;
}

/// Columns of gate that lie side by side in gate_up, before as many of up: half of a panel, or of a block.
std::int64_t turn_of(const PackedWeights& gate_up) {
  return gate_up.in_blocks() ? AmxBlock::kColumns : gate_up.panel() / 2;
}

/// Gate and up, taken in turns of so many rows.
Tensor interleave(TensorView gate, TensorView up, std::int64_t turn) {
  Tensor both(gate.dtype(), 2 * gate.rows(), gate.cols());
  std::byte* to = both.bytes();
  for (std::int64_t begin = 0; begin < gate.rows(); begin += turn) {
    const std::int64_t end = std::min(gate.rows(), begin + turn);
    for (const TensorView part : {gate.rows(begin, end), up.rows(begin, end)}) {
      const std::int64_t bytes = part.rows() * part.row_bytes();
      std::memcpy(to, part.bytes(), static_cast<std::size_t>(bytes));
      to += bytes;
    }
  }
  return both;
}

/// All rows, expert by expert; counts as in run_experts.
std::vector<Segment> by_expert(std::span<const std::int32_t> counts, std::size_t n_experts) {
  std::vector<std::int64_t> begin(counts.size() + 1, 0);
  std::partial_sum(counts.begin(), counts.end(), begin.begin() + 1, std::plus<std::int64_t>());
  std::vector<Segment> segments;
  for (std::size_t e = 0; e < n_experts; ++e)
    for (std::size_t i = e; i < counts.size(); i += n_experts) segments.push_back({e, begin[i], begin[i + 1]});
  return segments;
}

/// Runs of segments whose activations have together so many bytes. A segment is cut only when it alone is too much,
/// because each part reads the expert's weights again.
std::vector<std::vector<Segment>> portions(const std::vector<Segment>& segments, std::int64_t row_bytes,
                                           std::int64_t bytes) {
  const std::int64_t fitting = bytes / row_bytes / kTileRows * kTileRows;
  const std::int64_t most = std::max<std::int64_t>(fitting, 8 * kTileRows);
  std::vector<std::vector<Segment>> runs;
  std::int64_t in_run = most;
  for (const Segment& segment : segments)
    for (std::int64_t row = segment.begin; row < segment.end; row += most) {
      Segment part = segment.part(row, most);
      if (in_run + part.rows() > most) {
        runs.emplace_back();
        in_run = 0;
      }
      part.at = in_run;
      in_run += amx_block_rows(part.rows());
      runs.back().push_back(part);
    }
  return runs;
}

/// Segments cut into even pieces of at most `most` rows, small enough that every thread gets several of (piece, panel),
/// of a multiple of `unit` rows but for the last of each segment.
std::vector<Segment> cut(std::span<const Segment> segments, int n_panels, std::int64_t most = 8 * kTileRows,
                         std::int64_t unit = kTileRows) {
  std::int64_t rows = 0;
  for (const Segment& s : segments) rows += s.rows();
  const std::int64_t tiles = rows / kTileRows * n_panels / (4 * omp_get_max_threads());
  const std::int64_t piece = std::clamp<std::int64_t>(tiles, 1, most / kTileRows) * kTileRows;
  std::vector<Segment> pieces;
  for (const Segment& s : segments) {
    const std::int64_t count = (s.rows() + piece - 1) / piece;
    const std::int64_t even = count == 0 ? 0 : ((s.rows() + count - 1) / count + unit - 1) / unit * unit;
    for (std::int64_t begin = s.begin; begin < s.end; begin += even) pieces.push_back(s.part(begin, even));
  }
  return pieces;
}

template <typename T>
auto gate_loop(Activation activation) {
  return activation == Activation::silu ? row_loops<T>().silu_gate : row_loops<T>().gelu_gate;
}

/// What an expert's activation is made of.
enum class Parts : std::uint8_t { gate_times_up, gate };

/// activation[r, panel's columns] = activation(gate) * up, or activation(gate), for a piece's rows.
template <typename T>
void activate(const PanelProduct& product, const GatedFfn& expert, int panel, TensorView rows, const Segment& piece,
              Parts parts, Tensor& activation) {
  const std::int64_t columns = expert.gate_up.panel_columns(panel);
  const std::int64_t turn = std::min(turn_of(expert.gate_up), columns / 2);
  const std::int64_t column = expert.gate_up.panel() / 2 * panel;
  std::byte* tile = thread_scratch(Scratch::scores, static_cast<std::size_t>(kTileRows * columns) * sizeof(float));
  auto* both = reinterpret_cast<float*>(tile);
  const auto activate_row = gate_loop<T>(expert.activation);
  for (std::int64_t begin = piece.begin; begin < piece.end; begin += kTileRows) {
    const std::int64_t end = std::min(piece.end, begin + kTileRows);
    product.run_tile(expert.gate_up, panel, rows, begin, end, tile);
    for (std::int64_t r = 0; r < end - begin; ++r) {
      T* out = activation.row<T>(piece.at + begin - piece.begin + r).data() + column;
      for (std::int64_t c = 0; c < columns; c += 2 * turn) {
        float* gate = both + r * columns + c;
        if (parts == Parts::gate) std::fill_n(gate + turn, turn, 1.0F);
        activate_row(gate, gate + turn, out + c / 2, turn);
      }
    }
  }
}

/// Rows that pass the experts together, and their results.
struct Work {
  std::span<const Segment> segments;  // of one portion
  std::span<const GatedFfn> experts;
  TensorView rows;
  Tensor& out;
  bool add;  // to what is in out

  const GatedFfn& shape() const { return experts.front(); }
  /// Rows of the activation.
  std::int64_t room() const { return segments.back().at + amx_block_rows(segments.back().rows()); }
};

void run_in_tiles(const Work& work) {
  const GatedFfn& shape = work.shape();
  const DType type = shape.down.dtype();
  const PanelProduct gate_up(shape.gate_up, DType::f32);
  const PanelProduct down(shape.down, work.out.dtype(), work.add);
  Tensor activation(type, work.room(), shape.d_ff());
  const std::vector<Segment> wide = cut(work.segments, shape.gate_up.n_panels());
  const std::vector<Segment> narrow = cut(work.segments, shape.down.n_panels());
  const auto n_wide = static_cast<std::int64_t>(wide.size());
  const auto n_narrow = static_cast<std::int64_t>(narrow.size());
#pragma omp parallel
  {
#pragma omp for schedule(dynamic)
    for (std::int64_t task = 0; task < n_wide * shape.gate_up.n_panels(); ++task) {
      const Segment& piece = wide[static_cast<std::size_t>(task % n_wide)];
      const auto panel = static_cast<int>(task / n_wide);
      const Parts parts = Parts::gate_times_up;
      if (type == DType::bf16) {
        activate<Bf16>(gate_up, work.experts[piece.expert], panel, work.rows, piece, parts, activation);
      } else {
        activate<float>(gate_up, work.experts[piece.expert], panel, work.rows, piece, parts, activation);
      }
    }
#pragma omp for schedule(dynamic)
    for (std::int64_t task = 0; task < n_narrow * shape.down.n_panels(); ++task) {
      const Segment& piece = narrow[static_cast<std::size_t>(task % n_narrow)];
      const auto panel = static_cast<int>(task / n_narrow);
      std::byte* to = work.out.bytes() + piece.begin * work.out.row_bytes() +
                      panel * shape.down.panel() * size_of(work.out.dtype());
      down.run(work.experts[piece.expert].down, panel, activation, piece.at, piece.at + piece.rows(), to,
               work.out.cols());
    }
  }
}

/// A piece's rows of the activation from one panel of gate_up, whose blocks have gate's columns on the left and up's on
/// the right.
void activate_blocks(const GatedFfn& expert, int panel, const AmxRows& left, const Segment& piece,
                     AmxRows& activation) {
  const std::int64_t first = panel * expert.gate_up.panel() / 2;
  const AmxFinish::Kind kind = expert.activation == Activation::silu ? AmxFinish::Kind::silu : AmxFinish::Kind::gelu;
  multiply_blocks(expert.gate_up, panel, left, piece.at, amx_block_rows(piece.rows()), [&](std::int64_t column) {
    const std::int64_t at = first + column / 2;  // 16 columns of a row of 32
    std::byte* out = activation.tiles(piece.at, at / 32 * 32) + at % 32 * 2;
    return AmxFinish{kind, out, 64, activation.block_stride(at), amx_block_rows(piece.rows())};
  });
}

/// A piece's results from one panel of down.
void write_blocks(const Work& work, int panel, const AmxRows& activation, const Segment& piece) {
  const PackedWeights& down = work.experts[piece.expert].down;
  const std::int64_t first = panel * down.panel();
  multiply_blocks(down, panel, activation, piece.at, amx_block_rows(piece.rows()), [&](std::int64_t column) {
    if (work.out.dtype() == DType::bf16)
      return write_to<Bf16>(AmxFinish::Kind::narrow, work.out, piece.begin, piece.end, first + column);
    const AmxFinish::Kind kind = work.add ? AmxFinish::Kind::add : AmxFinish::Kind::store;
    return write_to<float>(kind, work.out, piece.begin, piece.end, first + column);
  });
}

/// By panels that threads share out, gate and up of all rows before down.
void run_by_panels(const Work& work) {
  const GatedFfn& shape = work.shape();
  AmxRows left(work.room(), shape.gate_up.n_in());
  AmxRows activation(work.room(), shape.d_ff());
  const std::vector<Segment> tiles = cut(work.segments, 1, kTileRows);
  const std::vector<Segment> wide = cut(work.segments, shape.gate_up.n_panels(), kBlockedRows, kAmxBlock);
  const std::vector<Segment> narrow = cut(work.segments, shape.down.n_panels(), kBlockedRows, kAmxBlock);
  PanelQueue queue(wide.size(), shape.gate_up.n_panels());
  const auto n_narrow = static_cast<std::int64_t>(narrow.size());
#pragma omp parallel
  {
#pragma omp for schedule(dynamic)
    for (const Segment& tile : tiles) left.set(tile.at, work.rows.row<Bf16>(tile.begin).data(), tile.rows());
    queue.take([&](std::size_t piece, int panel) {
      activate_blocks(work.experts[wide[piece].expert], panel, left, wide[piece], activation);
    });
#pragma omp barrier
#pragma omp for schedule(dynamic)
    for (std::int64_t task = 0; task < n_narrow * shape.down.n_panels(); ++task)
      write_blocks(work, static_cast<int>(task % shape.down.n_panels()), activation,
                   narrow[static_cast<std::size_t>(task / shape.down.n_panels())]);
  }
}

/// Piece by piece from end to end: a thread's activations stay in its caches.
void run_by_pieces(const Work& work) {
  const GatedFfn& shape = work.shape();
  const std::vector<Segment> pieces = cut(work.segments, 1, kPieceRows, kAmxBlock);
#pragma omp parallel
  {
    AmxRows left(kPieceRows, shape.gate_up.n_in());
    AmxRows activation(kPieceRows, shape.d_ff());
#pragma omp for schedule(dynamic)
    for (Segment piece : pieces) {
      piece.at = 0;
      left.set(0, work.rows.row<Bf16>(piece.begin).data(), piece.rows());
      const GatedFfn& expert = work.experts[piece.expert];
      for (int panel = 0; panel < shape.gate_up.n_panels(); ++panel)
        activate_blocks(expert, panel, left, piece, activation);
      for (int panel = 0; panel < shape.down.n_panels(); ++panel) write_blocks(work, panel, activation, piece);
    }
  }
}

/// out (+)= the experts' results.
void run(TensorView rows, std::span<const std::int32_t> counts, std::span<const GatedFfn> experts, Tensor& out,
         bool add) {
  if (rows.rows() == 0) return;
  const GatedFfn& shape = experts.front();
  const bool blocks = shape.gate_up.in_blocks() && shape.down.in_blocks();
  const std::vector<Segment> segments = by_expert(counts, experts.size());
  Work work = {.segments = segments, .experts = experts, .rows = rows, .out = out, .add = add};
  if (blocks && enough_for_pieces(rows.rows())) return run_by_pieces(work);
  // Tiles want their activations in the last-level cache. Panels' blocks ask for theirs ahead, and have few tasks to
  // share out.
  const std::int64_t bytes = (blocks ? 64 : 8) << 20;
  for (const std::vector<Segment>& portion : portions(segments, shape.d_ff() * size_of(shape.down.dtype()), bytes)) {
    work.segments = portion;
    (blocks ? run_by_panels : run_in_tiles)(work);
  }
}

}  // namespace

GatedFfn::GatedFfn(TensorView gate, TensorView up, TensorView down_weights, Activation of_gate)
    : gate_up(2 * gate.rows(), gate.cols(), gate.dtype(), even_panel(gate.rows(), gate.cols(), gate.dtype())),
      down(down_weights),
      activation(of_gate) {
  gate_up.pack(interleave(gate, up, turn_of(gate_up)));
}

GatedFfn::GatedFfn(std::int64_t d, std::int64_t d_ff, DType type, Activation of_gate)
    : gate_up(2 * d_ff, d, type, even_panel(d_ff, d, type)), down(d, d_ff, type), activation(of_gate) {}

std::vector<std::span<std::byte>> GatedFfn::parts() {
  std::vector<std::span<std::byte>> parts = gate_up.parts();
  for (const std::span<std::byte> part : down.parts()) parts.push_back(part);
  return parts;
}

Tensor run_experts(TensorView rows, std::span<const std::int32_t> counts, std::span<const GatedFfn> experts) {
  assert(experts.empty() ? counts.empty() : counts.size() % experts.size() == 0);
  Tensor out(rows.dtype(), rows.rows(), rows.cols());
  run(rows, counts, experts, out, false);
  return out;
}

Tensor gate_activation(TensorView rows, const GatedFfn& expert) {
  Tensor state(DType::f32, rows.rows(), expert.d_ff());
  if (rows.rows() == 0) return state;
  const PanelProduct product(expert.gate_up, DType::f32);
  const Segment all = {0, 0, rows.rows()};
  const std::vector<Segment> pieces = cut(std::span(&all, 1), expert.gate_up.n_panels());
  const auto n_pieces = static_cast<std::int64_t>(pieces.size());
#pragma omp parallel for schedule(dynamic)
  for (std::int64_t task = 0; task < n_pieces * expert.gate_up.n_panels(); ++task)
    activate<float>(product, expert, static_cast<int>(task / n_pieces), rows,
                    pieces[static_cast<std::size_t>(task % n_pieces)], Parts::gate, state);
  return state;
}

void add_gated_ffn(Tensor& x, TensorView h, const GatedFfn& ffn) {
  const auto n = static_cast<std::int32_t>(h.rows());
  run(h, std::span(&n, 1), std::span(&ffn, 1), x, true);
}

}  // namespace switchyard
