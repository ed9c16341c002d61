#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <future>
#include <limits>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "io/hdf5/table.h"
#include "io/routing_schema.h"
#include "parallel/communicator.h"
#include "parallel/device/download.h"
#include "parallel/expert_placement.h"
#include "pipeline/analysis/live_accumulators.h"
#include "pipeline/analysis/token_phase.h"
#include "pipeline/dispatch_log.h"
#include "pipeline/kernels/cuda/routing_counts.h"
#include "pipeline/model/batch.h"
#include "pipeline/model/model_flops.h"
#include "pipeline/model/routing.h"
#include "pipeline/model/step_times.h"

namespace switchyard {

/// What the rows say of each token of a step besides its routing.
struct StepTokens {
  std::vector<std::uint32_t> document;   // [n] row of /documents
  std::vector<std::uint16_t> group;      // [n] document_group of that document
  std::vector<std::uint32_t> position;   // [n] in the window
  std::vector<std::uint8_t> phase = {};  // [n] TokenPhase; empty: all prefill
};

/// A token whose record waits for those before it in its document: which of the held steps, and where in its batch.
struct HeldToken {
  std::size_t step = 0;
  std::size_t token = 0;
};

/// What a rank remembers of finished blocks until their segment is committed.
struct RecordedBlocks {
  std::vector<TokenRows> rows;  // a block each; empty at level counts
  std::vector<PhaseSums> sums;  // rank 0: of all ranks; decode only where there are answers
  std::vector<Table> dispatch;  // rank 0: /dispatch/*
};

/// Watches the forward pass and keeps what the record will hold: accumulators always, token rows at levels tokens and
/// logits, and the dispatch tables. Blocks are recorded one after another; an abandoned block leaves no trace.
class Recorder : public RoutingObserver {
 public:
  /// Collective. excluded_tokens: [V] flags of token ids left out of the statistics (rows keep them), or empty.
  /// placement: nullptr for a dense model. generates: whether there are tokens of phase decode.
  Recorder(const ModelFacts& model, RecordLevel level, TokenTableChoice tables,
           std::vector<std::uint8_t> excluded_tokens, const ExpertPlacement* placement,
           std::uint64_t dispatched_row_bytes, const ModelFlops& flops, const Communicator& comm,
           bool generates = false);

  void observe(int moe_layer, Routing&& routing, std::span<const ExchangePlan> plans) override;
  /// Ends a step: the layers observed since the last call belong to `batch`. times: of this rank; returned by phase,
  /// with the time spent here. Layers of a GPU are counted where their routing lies, behind what it was given before,
  /// and the rest is recorded by a thread beside the next step, whose finish_step waits for it, as finish_block and
  /// take() do; on CPUs, where that would take cores from the next step, at once.
  PhaseSeconds finish_step(const Batch& batch, const StepTokens& step, const TokenLosses& losses,
                           const StepTimes& times);
  /// The same, but the tokens are held: rows, and statistics of neighbours, want a document's tokens one after another,
  /// and decoding brings those of many documents by turns.
  PhaseSeconds hold_step(const Batch& batch, StepTokens step, TokenLosses losses, const StepTimes& times);
  /// Records all tokens held since the last call, in this order. Returns the seconds it took.
  double record_held(std::span<const HeldToken> order);
  /// Ends the block with this ordinal. n_documents: those that begin in it, by phase; given on one rank, 0 on the
  /// others. joules: what this rank's GPU took for it, as EnergyMeter counts; NaN where that is not known.
  void finish_block(std::uint64_t block, std::array<std::uint64_t, kTokenPhases> n_documents,
                    double joules = std::numeric_limits<double>::quiet_NaN());
  /// Bytes of the rows of finished blocks since the last take().
  std::uint64_t row_bytes() const { return row_bytes_; }
  /// Largest over mean count of the physical experts in this rank's latest step, mean over layers; 0 before there is
  /// one.
  double latest_imbalance() const { return dispatch_.latest_imbalance(); }

  /// Collective. Everything of the blocks finished since the last call; a block that is not finished is dropped.
  RecordedBlocks take();

  /// Bytes of GPU memory that recording takes, in batches of so many tokens: the counts of the running block and of
  /// those before it, and a step's while it is counted. None where answers are generated, which are counted on the
  /// host.
  static std::uint64_t gpu_bytes(const ModelFacts& model, TokenTableChoice tables, std::int64_t batch_tokens,
                                 bool generates);

 private:
  /// Everything known of a step's tokens, where it lies.
  struct StepView {
    std::span<const std::uint32_t> tokens;
    std::span<const std::int64_t> targets;
    const StepTokens& step;
    const TokenLosses& losses;
    std::span<const Routing> routing;                     // [L]
    std::span<const std::vector<std::uint16_t>> experts;  // [L]
  };
  /// The same, kept.
  struct HeldStep {
    std::vector<std::uint32_t> tokens;
    std::vector<std::int64_t> targets;
    StepTokens step;
    TokenLosses losses;
    std::vector<Routing> routing;                     // [L]
    std::vector<std::vector<std::uint16_t>> experts;  // [L]

    StepView view() const { return {tokens, targets, step, losses, routing, experts}; }
  };

  /// Logits on their way from the GPU to the routing of a layer.
  struct LogitsDownload {
    std::size_t layer;
    Download logits;
  };
  /// What else of a GPU's layer is wanted on the host; of weights and entropies, what the rows keep.
  struct ChoicesDownload {
    Download ids;
    std::optional<Download> weights, entropies;
  };
  /// The same, there; empty where not wanted.
  struct HostChoices {
    Tensor ids;        // [1, n * k]
    Tensor weights;    // [n, k]
    Tensor entropies;  // [1, n]
  };

  void keep_choices(std::size_t layer);
  void keep_logits(std::size_t layer);
  void finish_logits();
  std::vector<HostChoices> finish_choices();
  static void use_choices(std::vector<HostChoices> choices, HeldStep& step);
  void move_to_host(Tensor Routing::*column);
  bool has_gpu_routing() const;
  void count_on_gpu(const StepView& all);
  HeldStep take_step(const Batch& batch, StepTokens step, TokenLosses losses);
  void finish_recording();
  void for_each_phase(const StepView& all, const std::function<void(std::size_t, TokenView)>& visit) const;
  void record_tokens(const StepView& all);
  void record_beside_gpu(const StepView& all);
  void append_rows(const StepView& all);
  HeldStep gather_held(std::span<const HeldToken> order) const;
  std::size_t layers() const { return static_cast<std::size_t>(model_.n_moe_layers()); }

  ModelFacts model_;
  RecordLevel level_;
  TokenTableChoice tables_;
  std::vector<std::uint8_t> excluded_;
  bool generates_;  // so that steps are held
  const Communicator& comm_;
  DispatchLog dispatch_;
  std::uint64_t row_bytes_ = 0;

  std::vector<Routing> routing_;  // [L] of the running step; logits at level logits alone, on the host
  std::optional<LogitsDownload> logits_on_way_;
  std::vector<ChoicesDownload> choices_on_way_;      // of the running step's layers, in order, on a GPU
  std::vector<std::vector<std::uint16_t>> experts_;  // [L][n, k] the ids of CPUs, as narrow as rows keep them
  // A running block apart from finished ones, so that a stop between two steps can drop it. By phase.
  std::vector<LiveAccumulators> block_live_, segment_live_;
  std::vector<gpu::RoutingCounts> block_counts_, segment_counts_;  // made for the first step of a GPU
  std::vector<HeldStep> held_;
  TokenRows block_rows_;
  std::vector<TokenRows> finished_rows_;
  std::future<void> recording_;  // of a GPU's latest step, into block_*; ends before they do
};

}  // namespace switchyard
