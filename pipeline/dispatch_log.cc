#include "pipeline/dispatch_log.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <iterator>
#include <numeric>
#include <string>
#include <utility>

namespace switchyard {
namespace {

template <typename T>
void append(std::vector<T>& to, const std::vector<T>& from) {
  to.insert(to.end(), from.begin(), from.end());
}

/// [n_ranks, rows, width], as gathered -> [rows, n_ranks, width], as tables want it.
template <typename T>
std::vector<T> rank_behind_row(const std::vector<T>& gathered, std::uint64_t n_ranks, std::uint64_t rows,
                               std::uint64_t width = 1) {
  std::vector<T> turned(gathered.size());
  const T* from = gathered.data();
  for (std::uint64_t r = 0; r < n_ranks; ++r)
    for (std::uint64_t row = 0; row < rows; ++row, from += width)
      std::copy_n(from, width, turned.data() + (row * n_ranks + r) * width);
  return turned;
}

}  // namespace

DispatchLog::DispatchLog(const ModelFacts& model, const ExpertPlacement* placement, std::uint64_t row_bytes,
                         const ModelFlops& flops, const Communicator& comm)
    : n_layers_(model.n_moe_layers()),
      top_k_(model.top_k),
      placement_(placement),
      row_bytes_(row_bytes),
      flops_(flops),
      comm_(comm),
      clock_(measure_clock_offset(comm)),
      block_(empty_block()) {}

DispatchLog::Block DispatchLog::empty_block() const {
  return {0, std::vector<std::uint64_t>(layers() * n_ranks(), 0),
          std::vector<std::uint64_t>(layers() * (static_cast<std::size_t>(top_k_) + 1), 0), 0};
}

void DispatchLog::add_slots(std::size_t layer, std::span<const ExchangePlan> plans) {
  const LayerPlacement& placement = placement_->layer(static_cast<int>(layer));
  const auto n_physical = static_cast<std::size_t>(placement.n_physical());
  expert_slots_.resize(layers() * n_physical);
  std::uint64_t* const slots = expert_slots_.data() + layer * n_physical;
  for (const ExchangePlan& plan : plans) {
    for (std::size_t r = 0; r < plan.send_rows().size(); ++r)
      block_.traffic[layer * plan.send_rows().size() + r] += static_cast<std::uint64_t>(plan.send_rows()[r]);
    for (int physical = 0; physical < placement.n_physical(); ++physical)
      slots[physical] +=
          static_cast<std::uint64_t>(plan.rows_by_place()[static_cast<std::size_t>(placement.place_of(physical))]);
  }
}

void DispatchLog::add_send_ranks(std::span<const std::vector<std::uint16_t>> experts) {
  const auto k = static_cast<std::size_t>(top_k_);
  if (comm_.size() == 1) {
    for (std::size_t l = 0; l < layers(); ++l) block_.send_ranks[l * (k + 1) + 1] += experts[l].size() / k;
    return;
  }
#pragma omp parallel for schedule(dynamic, 1)
  for (std::size_t l = 0; l < layers(); ++l) {
    const LayerPlacement& placement = placement_->layer(static_cast<int>(l));
    std::uint64_t* const histogram = block_.send_ranks.data() + l * (k + 1);
    for (std::size_t slot = 0; slot < experts[l].size(); slot += k) {
      std::size_t distinct = 0;
      const auto token = static_cast<std::int64_t>(slot / k);
      const auto rank_of = [&](std::size_t j) {
        return placement.rank_of(placement.physical_for(experts[l][slot + j], token, comm_.rank()));
      };
      for (std::size_t j = 0; j < k; ++j) {
        const int rank = rank_of(j);
        bool seen = false;
        for (std::size_t i = 0; i < j && !seen; ++i) seen = rank_of(i) == rank;
        distinct += seen ? 0 : 1;
      }
      ++histogram[distinct];
    }
  }
}

PhaseSeconds DispatchLog::end_step(std::span<const std::uint32_t> positions, const StepTimes& times,
                                   double record_seconds) {
  PhaseSeconds seconds = times.phase_seconds();
  seconds[static_cast<std::size_t>(Phase::record)] += record_seconds;
  Step step;
  step.tokens = static_cast<std::uint32_t>(positions.size());
  step.flops = flops_.of(positions);
  step.expert_slots = std::exchange(expert_slots_, {});
  std::transform(seconds.begin(), seconds.end(), step.seconds.begin(), [](double s) { return static_cast<float>(s); });
  step.begin = std::chrono::duration<double>(times.begin.time_since_epoch()).count();
  step.layer_ends = times.layer_ends(n_layers_);
  if (step.tokens > 0 && layers() > 0) latest_imbalance_ = imbalance_of(step);
  block_steps_.push_back(std::move(step));
  return seconds;
}

void DispatchLog::add_record_seconds(double seconds) {
  if (!block_steps_.empty())
    block_steps_.back().seconds[static_cast<std::size_t>(Phase::record)] += static_cast<float>(seconds);
}

double DispatchLog::imbalance_of(const Step& step) const {
  const auto n_physical = static_cast<std::size_t>(placement_->n_physical());
  double imbalance = 0;
  for (std::size_t l = 0; l < layers(); ++l) {
    const std::span<const std::uint64_t> slots = std::span(step.expert_slots).subspan(l * n_physical, n_physical);
    const double mean = static_cast<double>(std::reduce(slots.begin(), slots.end())) / static_cast<double>(n_physical);
    imbalance += static_cast<double>(*std::ranges::max_element(slots)) / mean;
  }
  return imbalance / static_cast<double>(layers());
}

void DispatchLog::finish_block(std::uint64_t block, double joules) {
  for (Step& step : block_steps_) {
    step.block = block;
    finished_steps_.push_back(std::move(step));
  }
  block_steps_.clear();
  block_.block = block;
  block_.joules = joules;
  finished_blocks_.push_back(std::exchange(block_, empty_block()));
}

void DispatchLog::drop_block() {
  expert_slots_.clear();
  block_steps_.clear();
  block_ = empty_block();
}

std::vector<Table> DispatchLog::take() {
  std::vector<Table> tables = time_tables();
  const auto add = [&](std::vector<Table> more) { std::ranges::move(more, std::back_inserter(tables)); };
  add(energy_tables());
  add(slot_tables());
  add(step_tables());
  finished_steps_.clear();
  finished_blocks_.clear();
  return tables;
}

/// When each rank was where, on one clock.
std::vector<Table> DispatchLog::time_tables() {
  const ClockOffset before = std::exchange(clock_, measure_clock_offset(comm_));
  std::vector<double> begins;
  std::vector<float> ends;
  for (const Step& step : finished_steps_) {
    begins.push_back(common_time(step.begin, before, clock_));
    append(ends, step.layer_ends);
  }
  const std::vector<double> all_begins = comm_.gather_v<double>(begins);
  const std::vector<float> all_ends = comm_.gather_v<float>(ends);
  const std::vector<ClockOffset> clocks = comm_.all_gather(clock_);
  if (comm_.rank() != 0) return {};

  std::vector<double> offset;
  std::vector<double> uncertainty;
  for (std::uint64_t block = 0; block < n_blocks(); ++block)
    for (const ClockOffset& clock : clocks) {
      offset.push_back(clock.seconds);
      uncertainty.push_back(clock.uncertainty);
    }
  std::vector<Table> tables;
  tables.push_back({"/dispatch/step_begin",
                    {"step", "rank"},
                    {n_steps(), n_ranks()},
                    rank_behind_row(all_begins, n_ranks(), n_steps()),
                    "s",
                    "when each rank began the step, by rank 0's monotonic clock"});
  tables.push_back({"/dispatch/clock_offset",
                    {"block", "rank"},
                    {n_blocks(), n_ranks()},
                    std::move(offset),
                    "s",
                    "what was added to each rank's clock, as measured when the block was committed; before, by "
                    "interpolation from the measurement before"});
  tables.push_back({"/dispatch/clock_uncertainty",
                    {"block", "rank"},
                    {n_blocks(), n_ranks()},
                    std::move(uncertainty),
                    "s",
                    "that the offset is wrong by no more than"});
  if (layers() == 0) return tables;
  tables.push_back({"/dispatch/layer_end",
                    {"step", "layer", "rank", "part"},
                    {n_steps(), layers(), n_ranks(), kLayerParts},
                    rank_behind_row(all_ends, n_ranks(), n_steps() * layers(), kLayerParts),
                    "s",
                    "from a rank's step_begin to the end of each part of a layer; a part begins where the one before "
                    "it ends"});
  tables.push_back({"/dispatch/part_name",
                    {"part"},
                    {kLayerParts},
                    std::vector<std::string>(kLayerPartNames.begin(), kLayerPartNames.end()),
                    "1",
                    "names of the parts"});
  return tables;
}

/// What the ranks' GPUs took for each block; nothing where no counter was read.
std::vector<Table> DispatchLog::energy_tables() const {
  std::vector<double> mine;
  for (const Block& block : finished_blocks_) mine.push_back(block.joules);
  const std::vector<double> all = comm_.gather_v<double>(mine);
  if (std::ranges::all_of(all, [](double joules) { return std::isnan(joules); })) return {};
  return {{"/dispatch/joules",
           {"block", "rank"},
           {n_blocks(), n_ranks()},
           rank_behind_row(all, n_ranks(), n_blocks()),
           "J",
           "energy of each rank's GPU from the block's first step to its last; 0 where a rank before it counts their "
           "common GPU, NaN where none is counted"}};
}

/// Where slots go: to which experts and from rank to rank.
std::vector<Table> DispatchLog::slot_tables() const {
  if (layers() == 0) return {};
  std::vector<std::uint64_t> slots;
  for (const Step& step : finished_steps_) append(slots, step.expert_slots);
  std::vector<std::uint64_t> traffic;
  std::vector<std::uint64_t> send_ranks;
  for (const Block& block : finished_blocks_) {
    append(traffic, block.traffic);
    append(send_ranks, block.send_ranks);
  }
  comm_.sum_to_root(slots);
  comm_.sum_to_root(send_ranks);
  const std::vector<std::uint64_t> all_traffic = comm_.gather_v<std::uint64_t>(traffic);
  if (comm_.rank() != 0) return {};

  const auto n_physical = static_cast<std::uint64_t>(placement_->n_physical());
  std::vector<std::int32_t> rank_of;
  std::vector<std::uint16_t> logical;
  for (int l = 0; l < n_layers_; ++l)
    for (int p = 0; p < placement_->n_physical(); ++p) {
      rank_of.push_back(placement_->layer(l).rank_of(p));
      logical.push_back(static_cast<std::uint16_t>(placement_->layer(l).logical_of(p)));
    }
  return {{"/dispatch/expert_slots",
           {"step", "layer", "physical_expert"},
           {n_steps(), layers(), n_physical},
           std::vector<std::uint32_t>(slots.begin(), slots.end()),
           "1",
           "slots sent to each physical expert in each step, all ranks together"},
          {"/dispatch/placement",
           {"layer", "physical_expert"},
           {layers(), n_physical},
           std::move(rank_of),
           "1",
           "rank that holds the expert"},
          {"/dispatch/logical",
           {"layer", "physical_expert"},
           {layers(), n_physical},
           std::move(logical),
           "1",
           "logical expert of each physical expert"},
          {"/dispatch/traffic",
           {"block", "layer", "source_rank", "expert_rank"},
           {n_blocks(), layers(), n_ranks(), n_ranks()},
           rank_behind_row(all_traffic, n_ranks(), n_blocks() * layers(), n_ranks()),
           "1",
           "slots sent from rank to rank"},
          {"/dispatch/send_ranks",
           {"block", "layer", "ranks_reached"},
           {n_blocks(), layers(), static_cast<std::uint64_t>(top_k_) + 1},
           std::move(send_ranks),
           "1",
           "tokens by the number of distinct ranks that hold their experts"}};
}

/// How much each rank did in each step, and how long it took.
std::vector<Table> DispatchLog::step_tables() const {
  std::vector<std::uint32_t> tokens;
  std::vector<double> flops;
  std::vector<float> seconds;
  std::vector<std::uint64_t> block_of_step;
  for (const Step& step : finished_steps_) {
    tokens.push_back(step.tokens);
    flops.push_back(step.flops);
    seconds.insert(seconds.end(), step.seconds.begin(), step.seconds.end());
    block_of_step.push_back(step.block);
  }
  std::vector<std::uint64_t> blocks;
  for (const Block& block : finished_blocks_) blocks.push_back(block.block);
  comm_.sum_to_root(flops);
  const std::vector<std::uint32_t> all_tokens = comm_.gather_v<std::uint32_t>(tokens);
  const std::vector<float> all_seconds = comm_.gather_v<float>(seconds);
  if (comm_.rank() != 0) return {};
  return {{"/dispatch/step_tokens",
           {"step", "rank"},
           {n_steps(), n_ranks()},
           rank_behind_row(all_tokens, n_ranks(), n_steps()),
           "1",
           "tokens each rank brought to the step"},
          {"/dispatch/flops",
           {"step"},
           {n_steps()},
           std::move(flops),
           "FLOP",
           "floating-point operations of the model for the step's tokens"},
          {"/dispatch/seconds",
           {"step", "rank", "phase"},
           {n_steps(), n_ranks(), kPhases},
           rank_behind_row(all_seconds, n_ranks(), n_steps(), kPhases),
           "s",
           "time spent in each phase"},
          {"/dispatch/phase_name",
           {"phase"},
           {kPhases},
           std::vector<std::string>(kPhaseNames.begin(), kPhaseNames.end()),
           "1",
           "names of the phases"},
          {"/dispatch/block", {"step"}, {n_steps()}, std::move(block_of_step), "1", "block that the step belongs to"},
          {"/dispatch/traffic_block",
           {"block"},
           {n_blocks()},
           std::move(blocks),
           "1",
           "ordinal of the block that a row of traffic is about"},
          {"/dispatch/row_bytes",
           {"scalar"},
           {1},
           std::vector<std::uint64_t>{row_bytes_},
           "byte",
           "size of one dispatched row"}};
}

}  // namespace switchyard
