#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "parallel/tensor.h"
#include "pipeline/kernels/attention.h"

/// Graphs of cuDNN, whose library is opened when it is first asked for: nothing is linked against it. The graphs are
/// made in one source, because what it includes takes long to compile; where those headers are missing,
/// cudnn_graph_stub.cc takes its place.
namespace switchyard::gpu {

/// "9.19.0". Throws Error naming the remedy: a build without cuDNN's headers, no library, one that is too old.
std::string cudnn_version();

/// A GPU that cuDNN plans for.
class CudnnDevice {
 public:
  /// That of this process. Graphs run in its compute stream. Throws Error as cudnn_version, and where cuDNN cannot use
  /// the GPU.
  static const CudnnDevice& current();
  /// One that need not be there: graphs are planned for it, but not run. capability: as GpuReport::capability;
  /// description: of its sizes, as cuDNN writes it, JSON.
  CudnnDevice(int capability, const std::string& description);
  ~CudnnDevice();
  CudnnDevice(CudnnDevice&&) noexcept;

  struct State;
  const State& state() const { return *state_; }

 private:
  explicit CudnnDevice(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

/// A graph that was planned, with the kernel made for it.
class CudnnGraph {
 public:
  struct State;
  explicit CudnnGraph(std::unique_ptr<State> state);
  ~CudnnGraph();
  CudnnGraph(CudnnGraph&&) noexcept;

  /// The name of what computes it, and of its configuration.
  const std::string& plan() const;
  /// In the compute stream. operands: GPU memory, in the order that the graph's maker tells.
  void run(std::span<const void* const> operands) const;

 private:
  std::unique_ptr<State> state_;
};

/// Causal attention of windows that lie one behind the other, as attention() of attention.h, in bf16.
struct AttentionGraphShape {
  AttentionShape heads;
  std::int64_t n_windows;
  std::int64_t longest;  // no window has more tokens

  /// The operands: queries [n, n_heads * head_dim], keys and values [n, n_kv_heads * head_dim], out as the queries;
  /// where windows begin in queries and out, and in keys and values, [n_windows + 1] int64 each, in elements; tokens of
  /// windows, [n_windows] int32, none of them 0.
  enum Operand : std::uint8_t { queries, keys, values, out, query_offsets, key_offsets, lengths, n_operands };
};

/// plan: what has to compute it, as CudnnGraph::plan; empty: what cuDNN would choose. Throws Error with cuDNN's reason
/// when it cannot.
CudnnGraph plan_attention(const CudnnDevice& device, const AttentionGraphShape& shape, const std::string& plan = {});

/// Products of bf16 rows, grouped by expert, with their experts' weights; sums in f32.
struct GroupedGraphShape {
  std::int64_t n_experts, n_rows;
  std::int64_t n_out, n_in;
  DType out;

  /// The operands: rows [n_rows, n_in]; weights [n_experts * n_out, n_in]; each expert's first row, [n_experts] int32,
  /// ascending, its last one being before the next one's first, or the last of all; out [n_rows, n_out].
  enum Operand : std::uint8_t { rows, weights, first_rows, products, n_operands };
};

/// plan, errors: as plan_attention.
CudnnGraph plan_grouped_matmul(const CudnnDevice& device, const GroupedGraphShape& shape, const std::string& plan = {});

}  // namespace switchyard::gpu
