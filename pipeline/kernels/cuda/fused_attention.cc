#include "pipeline/kernels/cuda/fused_attention.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cassert>
#include <compare>
#include <map>
#include <tuple>

namespace switchyard::gpu {
namespace {

/// Planned when first asked for, kept for the process. Used from one thread, as is all work in the compute stream.
const CudnnGraph& graph_of(const AttentionGraphShape& shape, const std::string& plan) {
  const AttentionShape& heads = shape.heads;
  const auto key = std::tuple(heads.n_heads, heads.n_kv_heads, heads.head_dim, heads.sliding_window, heads.scale,
                              heads.softcap, shape.n_windows, shape.longest);
  static auto& known = *new std::map<std::remove_const_t<decltype(key)>, CudnnGraph>;
  if (const auto found = known.find(key); found != known.end()) return found->second;
  return known.emplace(key, plan_attention(CudnnDevice::current(), shape, plan)).first->second;
}

}  // namespace

std::int64_t length_of_graph(std::int64_t tokens) {
  constexpr std::uint64_t kShortest = 64;
  return static_cast<std::int64_t>(std::bit_ceil(std::max(static_cast<std::uint64_t>(tokens), kShortest)));
}

WindowLayout lay_out(std::span<const std::int32_t> offsets, const AttentionShape& heads) {
  assert(offsets.size() > 1);
  const std::size_t n = offsets.size() - 1;
  const std::size_t spare = std::bit_ceil(n) - n;
  WindowLayout layout = {.n_windows = static_cast<std::int64_t>(n + spare),
                         .longest = 0,
                         .query_offsets = {},
                         .key_offsets = {},
                         .lengths = {},
                         .spare_rows = static_cast<std::int64_t>(spare)};
  std::int64_t row = 0;
  const auto add_row = [&] {
    layout.query_offsets.push_back(row * heads.n_heads * heads.head_dim);
    layout.key_offsets.push_back(row * heads.n_kv_heads * heads.head_dim);
  };
  for (std::size_t w = 0; w < n + spare; ++w) {
    layout.lengths.push_back(w < n ? offsets[w + 1] - offsets[w] : 1);
    layout.longest = std::max<std::int64_t>(layout.longest, layout.lengths.back());
    add_row();
    row += layout.lengths.back();
  }
  add_row();
  return layout;
}

PackedWindows::PackedWindows(const WindowLayout& layout)
    : n_windows(layout.n_windows),
      longest(layout.longest),
      spare_rows(layout.spare_rows),
      query_offsets(std::span(layout.query_offsets)),
      key_offsets(std::span(layout.key_offsets)),
      lengths(std::span(layout.lengths)) {}

FusedAttention::FusedAttention(const AttentionShape& heads, std::int64_t context)
    : heads_(heads),
      context_(context),
      chosen_(&graph_of({.heads = heads, .n_windows = 1, .longest = length_of_graph(context_)}, {})) {}

Tensor FusedAttention::attend(const Tensor& q, const Tensor& k, const Tensor& v, const PackedWindows& windows) const {
  assert(q.dtype() == DType::bf16 && k.rows() == q.rows() && v.rows() == q.rows());
  const CudnnGraph& graph = graph_of({.heads = heads_,
                                      .n_windows = windows.n_windows,
                                      .longest = length_of_graph(std::max(context_, windows.longest))},
                                     chosen_->plan());
  Tensor out(DType::bf16, q.rows(), q.cols(), Device::gpu);
  using Operand = AttentionGraphShape::Operand;
  std::array<const void*, Operand::n_operands> operands = {};
  operands[Operand::queries] = q.bytes();
  operands[Operand::keys] = k.bytes();
  operands[Operand::values] = v.bytes();
  operands[Operand::out] = out.bytes();
  operands[Operand::query_offsets] = windows.query_offsets.data();
  operands[Operand::key_offsets] = windows.key_offsets.data();
  operands[Operand::lengths] = windows.lengths.data();
  graph.run(operands);
  out.keep_rows(q.rows() - windows.spare_rows);
  return out;
}

}  // namespace switchyard::gpu
