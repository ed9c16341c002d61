#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "io/hdf5/table.h"
#include "io/routing_schema.h"
#include "parallel/clock_offset.h"
#include "parallel/communicator.h"
#include "parallel/exchange_plan.h"
#include "parallel/expert_placement.h"
#include "pipeline/model/model_flops.h"
#include "pipeline/model/step_times.h"

namespace switchyard {

/// What the machine does for the tokens, for /dispatch: of each step slots, FLOP and times, of each block of steps
/// traffic and energy. A running block is dropped, or finished.
class DispatchLog {
 public:
  /// Collective. placement: nullptr for a dense model. row_bytes: of a dispatched row.
  DispatchLog(const ModelFacts& model, const ExpertPlacement* placement, std::uint64_t row_bytes,
              const ModelFlops& flops, const Communicator& comm);

  /// Of the running step, what the plans of a layer send.
  void add_slots(std::size_t layer, std::span<const ExchangePlan> plans);
  /// Of the running block, to how many ranks tokens go. experts: [L][n, k] of a step; which copy of an expert a token
  /// goes to follows from its number there.
  void add_send_ranks(std::span<const std::vector<std::uint16_t>> experts);
  /// Ends the step. positions: [n] of its tokens; times: of this rank; returned by phase, with the time that recording
  /// took.
  PhaseSeconds end_step(std::span<const std::uint32_t> positions, const StepTimes& times, double record_seconds);
  /// More of that, of the running block's latest step, if it has one.
  void add_record_seconds(double seconds);
  /// Of this rank's latest step that had tokens: largest over mean count of the physical experts, mean over layers; 0
  /// before there is one.
  double latest_imbalance() const { return latest_imbalance_; }

  /// joules: what this rank's GPU took for it; NaN where that is not known.
  void finish_block(std::uint64_t block, double joules);
  /// Forgets the running block.
  void drop_block();
  /// Collective. Rank 0: the tables of the blocks finished since the last call.
  std::vector<Table> take();

 private:
  // What this rank's tokens did in one step, and in one block.
  struct Step {
    std::uint64_t block = 0;
    std::uint32_t tokens = 0;
    double flops = 0;
    std::vector<std::uint64_t> expert_slots;  // [L, physical expert]
    std::array<float, kPhases> seconds{};
    double begin = 0;               // s, by this rank's clock
    std::vector<float> layer_ends;  // [L, kLayerParts] s after `begin`
  };
  struct Block {
    std::uint64_t block = 0;
    std::vector<std::uint64_t> traffic;     // [L, expert rank] slots
    std::vector<std::uint64_t> send_ranks;  // [L, k + 1] tokens by the number of ranks their experts are on
    double joules = 0;                      // of this rank's GPU
  };

  Block empty_block() const;
  /// Largest over mean count of the layers' physical experts, mean over layers.
  double imbalance_of(const Step& step) const;
  std::vector<Table> time_tables();
  std::vector<Table> energy_tables() const;
  std::vector<Table> slot_tables() const;
  std::vector<Table> step_tables() const;
  std::size_t layers() const { return static_cast<std::size_t>(n_layers_); }
  std::uint64_t n_ranks() const { return static_cast<std::uint64_t>(comm_.size()); }
  std::uint64_t n_steps() const { return finished_steps_.size(); }
  std::uint64_t n_blocks() const { return finished_blocks_.size(); }

  int n_layers_, top_k_;
  const ExpertPlacement* placement_;
  std::uint64_t row_bytes_;
  ModelFlops flops_;
  const Communicator& comm_;
  ClockOffset clock_;  // as measured last
  double latest_imbalance_ = 0;

  std::vector<std::uint64_t> expert_slots_;  // [L, physical expert] of the running step
  std::vector<Step> block_steps_, finished_steps_;
  Block block_;
  std::vector<Block> finished_blocks_;
};

}  // namespace switchyard
