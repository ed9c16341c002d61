#pragma once

#include <bit>
#include <cstdint>
#include <filesystem>
#include <limits>
#include <span>
#include <string>
#include <vector>

#include "io/routing_writer.h"
#include "parallel/bf16.h"
#include "parallel/communicator.h"
#include "tests/support/temp_folder.h"

/// Records whose every element is a function of its row in the run, so that a reader knows what must be there.
namespace switchyard::testing {

inline ModelFacts small_model(int n_experts, int top_k, std::vector<int> moe_layers = {1, 12}) {
  return {"mixtral", "a small model", 14, 16, 1000, std::move(moe_layers), n_experts, top_k};
}

/// Rows [first, first + count) of the run.
inline TokenRows rows_of_run(const ModelFacts& model, RecordLevel level, std::uint64_t first, std::uint64_t count) {
  TokenRows rows;
  rows.layers.resize(model.moe_layers.size());
  const auto n_experts = static_cast<std::uint64_t>(model.n_experts);
  for (std::uint64_t row = first; row < first + count; ++row) {
    rows.id.push_back(static_cast<std::uint32_t>(row * 7 + 3));
    rows.document.push_back(static_cast<std::uint32_t>(row / 5));
    rows.position.push_back(static_cast<std::uint32_t>(row % 5));
    rows.predicted.push_back(static_cast<std::uint32_t>(row ^ 0x55U));
    rows.phase.push_back(static_cast<std::uint8_t>(row % 2));
    rows.loss.push_back(row % 5 == 4 ? std::numeric_limits<float>::quiet_NaN() : 0.25F * static_cast<float>(row));
    for (std::uint64_t layer = 0; layer < rows.layers.size(); ++layer) {
      TokenRows::Layer& columns = rows.layers[layer];
      for (std::uint64_t slot = 0; slot < static_cast<std::uint64_t>(model.top_k); ++slot) {
        columns.expert.push_back(static_cast<std::uint16_t>((row * 3 + slot * 5 + layer) % n_experts));
        columns.weight.push_back(to_half_bits(1.0F / static_cast<float>(1 + row % 8 + slot)));
      }
      columns.entropy.push_back(to_half_bits(0.125F * static_cast<float>((row + layer) % 16)));
      for (std::uint64_t e = 0; level == RecordLevel::logits && e < n_experts; ++e)
        columns.logits.push_back(static_cast<float>(row) + 0.5F * static_cast<float>(e) - static_cast<float>(layer));
    }
  }
  return rows;
}

/// Elements of `found` whose bits are not those of `expected`; all of them when the sizes differ.
template <typename T>
std::uint64_t different(const std::vector<T>& found, const std::vector<T>& expected) {
  if (found.size() != expected.size()) return std::max(found.size(), expected.size());
  std::uint64_t n = 0;
  for (std::size_t i = 0; i < found.size(); ++i) {
    if constexpr (std::is_same_v<T, float>) {
      n += std::bit_cast<std::uint32_t>(found[i]) != std::bit_cast<std::uint32_t>(expected[i]) ? 1U : 0U;
    } else {
      n += found[i] != expected[i] ? 1U : 0U;
    }
  }
  return n;
}

struct Compared {
  std::uint64_t elements = 0;
  std::uint64_t wrong = 0;
};

/// Every column of every row.
inline Compared compare(const TokenRows& found, const TokenRows& expected) {
  Compared result;
  const auto column = [&](const auto& a, const auto& b) {
    result.elements += b.size();
    result.wrong += different(a, b);
  };
  column(found.id, expected.id);
  column(found.document, expected.document);
  column(found.position, expected.position);
  column(found.predicted, expected.predicted);
  column(found.phase, expected.phase);
  column(found.loss, expected.loss);
  if (found.layers.size() != expected.layers.size()) return {result.elements, result.wrong + 1};
  for (std::size_t layer = 0; layer < expected.layers.size(); ++layer) {
    column(found.layers[layer].expert, expected.layers[layer].expert);
    column(found.layers[layer].weight, expected.layers[layer].weight);
    column(found.layers[layer].entropy, expected.layers[layer].entropy);
    column(found.layers[layer].logits, expected.layers[layer].logits);
  }
  return result;
}

/// A rank's share of a block: rank 0 brings nothing to even blocks and the last rank nothing to odd ones; the rest is
/// shared in proportion to what the rank is from there.
inline RowRange share_of(int rank, int n_ranks, std::uint64_t block, std::uint64_t first, std::uint64_t count) {
  if (n_ranks == 1) return {first, count};
  const auto before = [&](int r) {  // rows of ranks below r
    const std::uint64_t weight = block % 2 == 0 ? static_cast<std::uint64_t>(r * (r - 1))
                                                : static_cast<std::uint64_t>(r * (2 * n_ranks - r - 1));
    return count * weight / static_cast<std::uint64_t>(n_ranks * (n_ranks - 1));
  };
  return {first + before(rank), before(rank + 1) - before(rank)};
}

/// What one rank brings to a segment.
struct RankShare {
  std::vector<TokenRows> blocks;
  SegmentContents contents;
};

/// The segment that starts at row `first` of the run and has blocks of these sizes.
inline RankShare share_of_segment(const ModelFacts& model, RecordLevel level, std::uint64_t first,
                                  const std::vector<std::uint64_t>& block_rows, int rank, int n_ranks) {
  RankShare share;
  for (std::uint64_t block = 0; block < block_rows.size(); ++block) {
    const RowRange range = share_of(rank, n_ranks, block, share.contents.n_rows, block_rows[block]);
    share.contents.ranges.push_back(range);
    share.contents.n_rows += block_rows[block];
    share.blocks.push_back(rows_of_run(model, level, first + range.first, range.count));
  }
  for (const TokenRows& rows : share.blocks) share.contents.rows.push_back(&rows);
  return share;
}

/// Tables as a run leaves them: `ids` are those of the segment's documents, the first being document `first_document`
/// of the run; one step for each document, columns for `n_ranks` ranks with values 100 * step + rank.
inline std::vector<Table> segment_tables(const std::vector<std::string>& ids, std::uint64_t first_document,
                                         std::uint64_t n_ranks) {
  const std::uint64_t n = ids.size();
  std::vector<std::int16_t> category;
  std::vector<std::uint64_t> first_token;
  std::vector<std::uint32_t> step_tokens;
  std::vector<float> seconds;
  for (std::uint64_t document = first_document; document < first_document + n; ++document) {
    category.push_back(document % 3 == 0 ? std::int16_t{-1} : static_cast<std::int16_t>(document));
    first_token.push_back(document * 5);
    for (std::uint64_t rank = 0; rank < n_ranks; ++rank) {
      step_tokens.push_back(static_cast<std::uint32_t>(100 * document + rank));
      seconds.push_back(static_cast<float>(document) + 0.5F * static_cast<float>(rank));
    }
  }
  return {
      {"/documents/id", {"document"}, {n}, ids, "1", "name of the document"},
      {"/documents/category", {"document"}, {n}, category, "1", "row of the corpus' categories, -1 none"},
      {"/documents/first_token", {"document"}, {n}, first_token, "1", "row of /tokens"},
      {"/dispatch/step_tokens", {"step", "rank"}, {n, n_ranks}, step_tokens, "1", "tokens of each rank in a step"},
      {"/dispatch/seconds", {"step", "rank"}, {n, n_ranks}, seconds, "s", "time of each rank in a step"},
      {"/accumulators/expert_count",
       {"layer", "expert"},
       {2, 3},
       std::vector<std::uint64_t>{1, 2, 3, 4, 5, 6},
       "1",
       "slots"},
      {"/accumulators/sparse/indptr", {"row"}, {3}, std::vector<std::uint64_t>{0, 0, 0}, "1", "starts of rows"},
      {"/accumulators/sparse/index", {"nonzero"}, {0}, std::vector<std::uint32_t>{}, "1", "columns"},
  };
}

/// A fresh folder of all ranks. Collective, also at the end.
class SharedFolder {
 public:
  explicit SharedFolder(const Communicator& comm) : comm_(comm) {
    if (comm.rank() == 0) owned_ = std::make_unique<TempFolder>();
    path_ = comm.broadcast(owned_ ? owned_->path().string() : std::string{});
  }
  SharedFolder(const SharedFolder&) = delete;
  SharedFolder& operator=(const SharedFolder&) = delete;
  ~SharedFolder() { comm_.barrier(); }

  const std::filesystem::path& path() const { return path_; }

 private:
  const Communicator& comm_;
  std::unique_ptr<TempFolder> owned_;
  std::filesystem::path path_;
};

}  // namespace switchyard::testing
