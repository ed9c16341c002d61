#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "io/routing_schema.h"
#include "pipeline/analysis/live_accumulators.h"
#include "pipeline/analysis/token_phase.h"
#include "pipeline/model/routing.h"

namespace switchyard {

/// Token rows as the accumulators see them, phase by phase: what `reduce --recompute` reads back, what `import` makes.
class RowObserver {
 public:
  /// excluded_tokens: [V] flags of ids that do not count, or empty. document_groups: by rows.document. model and both
  /// are looked at in observe().
  RowObserver(const ModelFacts& model, std::span<const std::uint8_t> excluded_tokens,
              std::span<const std::uint16_t> document_groups, TokenTableChoice tables);

  /// Rows that end with a window's last token. next: the id that follows, for the last one's target.
  void observe(const TokenRows& rows, std::optional<std::uint32_t> next);
  /// What was observed since the last call, of the phases met. Documents are not counted.
  std::vector<PhaseSums> take();

 private:
  struct OfPhase {
    LiveAccumulators live;
    Accumulators taken;
  };
  void route_layer(const TokenRows::Layer& rows, std::size_t n, std::size_t layer);
  std::vector<std::uint16_t> groups_of(const TokenRows& rows) const;
  void take_live();

  const ModelFacts& model_;
  std::span<const std::uint8_t> excluded_;
  std::span<const std::uint16_t> document_groups_;
  TokenTableChoice tables_;
  std::array<std::optional<OfPhase>, kTokenPhases> phases_;
  std::uint64_t live_rows_ = 0;
  std::vector<Routing> routing_;  // [L] memory that is used again
};

}  // namespace switchyard
