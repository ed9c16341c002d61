#pragma once

#include <cstdint>
#include <vector>

#include "pipeline/analysis/accumulators.h"

namespace switchyard {

/// What one expert gets of one token id.
struct TokenShare {
  std::uint32_t token = 0;
  std::uint64_t count = 0;  // N[v, e], slots of the id that went to the expert
  double share = 0;         // N[v, e] / N[e]: how much of the expert it is
  double of_token = 0;      // N[v, e] / N[v]: how much of the id goes there
  double lift = 0;          // share over the id's share of all slots: (N[v, e] / N[e]) / (N[v] / N)
};

enum class TokenOrder : std::uint8_t { count, lift };

/// The tokens of each expert of a layer, [E], highest first, at most `most` each; a tie goes to the higher count, then
/// to the lower id. Ids with fewer than min_count slots at this layer, over all experts, are left out. table: one of
/// Accumulators::token_tables.
std::vector<std::vector<TokenShare>> top_tokens(const SparseCounts& table, const AccumulatorShape& shape, int layer,
                                                TokenOrder order, std::uint64_t min_count, std::size_t most);

/// [E] slots of a token id at a layer.
std::vector<std::uint64_t> experts_of_token(const SparseCounts& table, const AccumulatorShape& shape, int layer,
                                            std::uint32_t token);

}  // namespace switchyard
