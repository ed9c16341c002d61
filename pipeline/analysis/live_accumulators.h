#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "parallel/tensor.h"
#include "pipeline/analysis/accumulators.h"
#include "pipeline/analysis/frequent_cells.h"

namespace switchyard {

/// One MoE layer's routing of n tokens, as the accumulators see it. What is not known, because a record does not keep
/// it or its source did not tell, is empty: it leaves moments and histograms alone, and makes sums NaN.
struct LayerView {
  std::span<const std::uint16_t> expert;    // [n, k]
  std::span<const float> weight;            // [n, k] or empty
  std::span<const float> entropy;           // [n] nats, or empty
  std::span<const float> margin;            // [n] or empty
  std::span<const float> top_probability;   // [n] or empty
  std::span<const float> log_sum_exp;       // [n] or empty
  std::span<const double> probability_sum;  // [E] over the included tokens, or empty
};

/// n tokens in corpus order with everything known of them.
struct TokenView {
  std::span<const std::uint32_t> token;      // [n] or empty
  std::span<const std::uint32_t> position;   // [n] in the window; 0 begins a window
  std::span<const std::uint16_t> group;      // [n] document_group of the token's document
  std::span<const std::int64_t> target;      // [n] next token, -1 where there is none
  std::span<const std::uint32_t> predicted;  // [n] or empty
  std::span<const float> loss;               // [n] nats, or empty
  std::span<const std::uint8_t> included;    // [n] 0: left out of every statistic (--exclude-special); empty: all count
  std::span<const LayerView> layers;         // [L]
  /// [n] 1: of the phase that is counted; empty: all are. Others are as good as not there: a token behind one of them
  /// begins a window, and is no neighbour of it.
  std::span<const std::uint8_t> of_phase = {};

  std::size_t size() const { return position.size(); }
  bool is_of_phase(std::size_t t) const { return of_phase.empty() || of_phase[t] != 0; }
  bool counts(std::size_t t) const { return is_of_phase(t) && (included.empty() || included[t] != 0); }
  /// Whether it counts, and so does the token before, of the same window.
  bool continues(std::size_t t) const { return t > 0 && position[t] > 0 && counts(t) && counts(t - 1); }
};

/// Tables of counts, [L][rows, E]; u32 because a segment has fewer than 2^32 tokens.
using LayerTables = std::vector<std::vector<std::uint32_t>>;

/// What was counted of the layers on a GPU.
struct LayerCounts {
  Accumulators sums;  // but for the tables below; coactivation: pairs of a choice and a later one
  std::array<LayerTables, kTokenTables> token_tables;  // [L][V, E]; empty where not all cells are kept
  LayerTables groups;                                  // [L][kDocumentGroups, E]
};

/// [n] 1 for tokens that count, 0 for those whose id is flagged in `excluded` [V]; empty when `excluded` is: all count.
std::vector<std::uint8_t> included_tokens(std::span<const std::uint32_t> ids, std::span<const std::uint8_t> excluded);
/// [n] the same of a view, also for tokens of another phase; empty where all count.
std::vector<std::uint8_t> counted_flags(const TokenView& tokens);
/// [E] sums over included tokens of router probabilities, [n, E] f32.
std::vector<double> probability_sums(TensorView probabilities, std::span<const std::uint8_t> included);

/// Token tables of no more cells (L * V * E) than this are counted exactly, unless told otherwise: 256 MiB each.
inline constexpr std::uint64_t kExactTokenCells = std::uint64_t{1} << 26U;

/// Which token tables to keep, and how many cells of each layer.
struct TokenTableChoice {
  std::array<bool, kTokenTables> keep = {true, true, true};
  std::uint64_t capacity = 0;  // 0: all of them, exactly; else the most frequent ones

  bool keeps_all(std::size_t which) const { return keep.at(which) && capacity == 0; }
  /// Exact tables where they have at most `cells` cells, else as many frequent ones as take the memory of `cells`.
  static TokenTableChoice within(std::uint64_t cells, const AccumulatorShape& shape);
};

/// Accumulators that are being filled. The same code sees tokens as they are routed and rows read back, so that both
/// give equal counts.
class LiveAccumulators {
 public:
  LiveAccumulators(const AccumulatorShape& shape, TokenTableChoice tables);

  void observe(const TokenView& tokens);
  /// The same beside a GPU that counts the layers (kernels/cuda/routing_counts.h): what is of no layer, and token
  /// tables of which the most frequent cells alone are kept. Of layers it wants the experts.
  void observe_beside_gpu(const TokenView& tokens);
  /// Adds what the GPU has counted.
  void add(const LayerCounts& counts);
  void add_documents(std::uint64_t documents) { sums_.documents[0] += documents; }
  /// Takes over what `other` has observed, and leaves it empty.
  void absorb(LiveAccumulators& other);
  void clear();

  /// Collective. The sum over ranks (on rank 0) of what was observed since the last call.
  Accumulators take(const Communicator& comm);

  /// Bytes that the token tables of a shape take at most in one of these.
  static std::uint64_t table_bytes(const AccumulatorShape& shape, TokenTableChoice tables);

 private:
  struct Run;
  template <std::size_t TopK>
  class LayerCounter;
  void make_tables();
  void add_tables(const std::array<LayerTables, kTokenTables>& token_tables, const LayerTables& groups);
  static std::vector<Run> runs_of(const TokenView& tokens);
  void observe_tokens(const TokenView& tokens);
  void observe_layer(const TokenView& tokens, std::span<const Run> runs, int layer);
  // TopK: shape_.top_k, or 0 for any.
  template <std::size_t TopK>
  void count_choices(const TokenView& tokens, std::span<const Run> runs, std::size_t layer);
  void observe_paths(const TokenView& tokens);

  AccumulatorShape shape_;
  TokenTableChoice choice_;
  Accumulators sums_;  // coactivation: pairs of a choice and a later one, until they are taken
  // [L][V, E] each, or [L] summaries where not all cells are kept, and [L][kDocumentGroups, E]. Dense ones are made
  // when they are first needed: beside a GPU that is late or never.
  std::array<LayerTables, kTokenTables> dense_;
  std::array<std::vector<FrequentCells>, kTokenTables> frequent_;
  LayerTables dense_groups_;
};

}  // namespace switchyard
