#include "pipeline/recorder.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <future>
#include <iterator>
#include <numeric>
#include <utility>

#include "parallel/bf16.h"

namespace switchyard {
namespace {

void append_half(std::vector<std::uint16_t>& to, std::span<const float> values) {
  const std::size_t first = to.size();
  to.resize(first + values.size());
  std::transform(values.begin(), values.end(), to.begin() + static_cast<std::ptrdiff_t>(first), to_half_bits);
}

template <typename T>
void append(std::vector<T>& to, std::span<const T> from) {
  to.insert(to.end(), from.begin(), from.end());
}

/// Rows `order` of a column of several steps; of: the column's values of a step, `width` for each token.
template <typename T, typename Of>
std::vector<T> gather_column(std::span<const HeldToken> order, std::size_t width, Of of) {
  std::vector<T> column;
  column.reserve(order.size() * width);
  for (const HeldToken& held : order) {
    const T* row = of(held.step) + held.token * width;
    column.insert(column.end(), row, row + width);
  }
  return column;
}

std::uint64_t bytes_of(const TokenRows& rows) {
  std::uint64_t bytes = rows.size() * (4 * sizeof(std::uint32_t) + sizeof(std::uint8_t) + sizeof(float));
  for (const TokenRows::Layer& layer : rows.layers)
    bytes += (layer.expert.size() + layer.weight.size() + layer.entropy.size()) * sizeof(std::uint16_t) +
             layer.logits.size() * sizeof(float);
  return bytes;
}

/// Rows `order` of several steps' routing of one layer.
template <typename Of>
Routing gather_routing(std::span<const HeldToken> order, Of of) {
  Routing all;
  if (order.empty()) return all;
  const auto of_tensor = [&](Tensor Routing::*column) {
    const Tensor& first = of(order.front().step).*column;
    if (first.cols() == 0) return Tensor();  // logits that no row keeps
    Tensor gathered(DType::f32, static_cast<std::int64_t>(order.size()), first.cols());
    for (std::size_t t = 0; t < order.size(); ++t) {
      const std::span<const float> row =
          (of(order[t].step).*column).view().template row<float>(static_cast<std::int64_t>(order[t].token));
      std::copy(row.begin(), row.end(), gathered.row<float>(static_cast<std::int64_t>(t)).begin());
    }
    return gathered;
  };
  const auto of_vector = [&]<typename T>(std::vector<T> Routing::*column, std::size_t width) {
    return gather_column<T>(order, width, [&](std::size_t s) { return (of(s).*column).data(); });
  };
  all.top_k = of(order.front().step).top_k;
  all.weights = of_vector(&Routing::weights, static_cast<std::size_t>(all.top_k));
  all.logits = of_tensor(&Routing::logits);
  all.probabilities = of_tensor(&Routing::probabilities);
  all.figures = Tensor(DType::f32, kRoutingFigures, static_cast<std::int64_t>(order.size()));
  for (std::int64_t figure = 0; figure < kRoutingFigures; ++figure)
    for (std::size_t t = 0; t < order.size(); ++t)
      all.figures.row<float>(figure)[t] = of(order[t].step).figures.template row<float>(figure)[order[t].token];
  return all;
}

class Stopwatch {
 public:
  double seconds() const { return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count(); }

 private:
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

/// No rows, but room for as many as `rows` has: the next block will bring about as many, and growing would copy them.
TokenRows empty_rows_like(const TokenRows& rows) {
  TokenRows empty;
  empty.layers.resize(rows.layers.size());
  for (auto column : {&TokenRows::id, &TokenRows::document, &TokenRows::position, &TokenRows::predicted})
    (empty.*column).reserve((rows.*column).size());
  empty.phase.reserve(rows.phase.size());
  empty.loss.reserve(rows.loss.size());
  for (std::size_t l = 0; l < rows.layers.size(); ++l) {
    for (auto column : {&TokenRows::Layer::expert, &TokenRows::Layer::weight, &TokenRows::Layer::entropy})
      (empty.layers[l].*column).reserve((rows.layers[l].*column).size());
    empty.layers[l].logits.reserve(rows.layers[l].logits.size());
  }
  return empty;
}

}  // namespace

Recorder::Recorder(const ModelFacts& model, RecordLevel level, TokenTableChoice tables,
                   std::vector<std::uint8_t> excluded_tokens, const ExpertPlacement* placement,
                   std::uint64_t dispatched_row_bytes, const ModelFlops& flops, const Communicator& comm,
                   bool generates)
    : model_(model),
      level_(level),
      tables_(tables),
      excluded_(std::move(excluded_tokens)),
      generates_(generates),
      placement_(placement),
      dispatched_row_bytes_(dispatched_row_bytes),
      flops_(flops),
      comm_(comm),
      clock_(measure_clock_offset(comm)),
      routing_(layers()),
      experts_(layers()),
      block_figures_(empty_figures()) {
  for (std::size_t phase = 0; phase < (generates ? kTokenPhases : 1); ++phase) {
    block_live_.emplace_back(shape_of(model), tables);
    segment_live_.emplace_back(shape_of(model), tables);
  }
  block_rows_.layers.resize(layers());
}

void Recorder::observe(int moe_layer, Routing&& routing, std::span<const ExchangePlan> plans) {
  const auto l = static_cast<std::size_t>(moe_layer);
  count_slots(l, plans);
  routing_[l] = std::move(routing);
  keep_choices(l);
  keep_logits(l);
}

/// Traffic and load, of what the plans send.
void Recorder::count_slots(std::size_t layer, std::span<const ExchangePlan> plans) {
  const LayerPlacement& placement = placement_->layer(static_cast<int>(layer));
  const auto n_physical = static_cast<std::size_t>(placement.n_physical());
  expert_slots_.resize(layers() * n_physical);
  std::uint64_t* const slots = expert_slots_.data() + layer * n_physical;
  for (const ExchangePlan& plan : plans) {
    for (std::size_t r = 0; r < plan.send_rows().size(); ++r)
      block_figures_.traffic[layer * plan.send_rows().size() + r] += static_cast<std::uint64_t>(plan.send_rows()[r]);
    for (int physical = 0; physical < placement.n_physical(); ++physical)
      slots[physical] +=
          static_cast<std::uint64_t>(plan.rows_by_place()[static_cast<std::size_t>(placement.place_of(physical))]);
  }
}

/// A GPU's travel to the host while the next layers are computed.
void Recorder::keep_choices(std::size_t layer) {
  const Routing& routing = routing_[layer];
  if (routing.on_gpu()) {
    ChoicesDownload& wanted = choices_on_way_.emplace_back(ChoicesDownload{Download(routing.gpu_ids), {}, {}});
    if (level_ == RecordLevel::counts && !generates_) return;
    wanted.weights.emplace(routing.gpu_weights.view());
    if (!generates_) wanted.entropies.emplace(routing.figures.rows(0, 1));
    return;
  }
  experts_[layer].resize(routing.ids.size());
  std::transform(routing.ids.begin(), routing.ids.end(), experts_[layer].begin(),
                 [](std::int32_t id) { return static_cast<std::uint16_t>(id); });
}

/// What the rows want of a layer's logits: a GPU's travel to the host while the next layer is computed, so that it
/// holds those of two layers at most.
void Recorder::keep_logits(std::size_t layer) {
  Tensor& logits = routing_[layer].logits;
  if (level_ != RecordLevel::logits) {
    logits = {};
  } else if (logits.device() == Device::gpu) {
    finish_logits();
    logits_on_way_.emplace(LogitsDownload{layer, Download(std::move(logits))});
  }
}

void Recorder::finish_logits() {
  if (!logits_on_way_) return;
  routing_[logits_on_way_->layer].logits = std::move(logits_on_way_->logits).finish();
  logits_on_way_.reset();
}

/// [L], or none where layers are the host's.
std::vector<Recorder::HostChoices> Recorder::finish_choices() {
  std::vector<HostChoices> there;
  for (ChoicesDownload& layer : choices_on_way_) {
    HostChoices& choices = there.emplace_back(HostChoices{std::move(layer.ids).finish(), {}, {}});
    if (layer.weights) choices.weights = std::move(*layer.weights).finish();
    if (layer.entropies) choices.entropies = std::move(*layer.entropies).finish();
  }
  choices_on_way_.clear();
  return there;
}

/// As the step's own.
void Recorder::use_choices(std::vector<HostChoices> choices, HeldStep& step) {
  for (std::size_t l = 0; l < choices.size(); ++l) {
    const auto* const ids = choices[l].ids.data<std::int32_t>();
    step.experts[l].resize(static_cast<std::size_t>(choices[l].ids.cols()));
    std::transform(ids, ids + choices[l].ids.cols(), step.experts[l].begin(),
                   [](std::int32_t id) { return static_cast<std::uint16_t>(id); });
    const Tensor& weights = choices[l].weights;
    step.routing[l].weights.assign(weights.data<float>(), weights.data<float>() + weights.rows() * weights.cols());
    if (choices[l].entropies.rows() > 0) step.routing[l].figures = std::move(choices[l].entropies);
  }
}

/// All layers', where they are a GPU's.
void Recorder::move_to_host(Tensor Routing::*column) {
  std::vector<Download> downloads;
  for (Routing& routing : routing_)
    if ((routing.*column).device() == Device::gpu) downloads.emplace_back(std::move(routing.*column));
  for (std::size_t l = 0; l < downloads.size(); ++l) routing_[l].*column = std::move(downloads[l]).finish();
}

bool Recorder::has_gpu_routing() const {
  return layers() > 0 && routing_.front().probabilities.device() == Device::gpu;
}

/// What is of the layers, into block_counts_.
void Recorder::count_on_gpu(const StepView& all) {
  while (block_counts_.size() < block_live_.size()) {
    block_counts_.emplace_back(shape_of(model_), tables_);
    segment_counts_.emplace_back(shape_of(model_), tables_);
  }
  for_each_phase(all, [&](std::size_t phase, TokenView tokens) { block_counts_[phase].observe(tokens, all.routing); });
}

Recorder::BlockFigures Recorder::empty_figures() const {
  return {0, std::vector<std::uint64_t>(layers() * static_cast<std::size_t>(comm_.size()), 0),
          std::vector<std::uint64_t>(layers() * (static_cast<std::size_t>(model_.top_k) + 1), 0), 0};
}

/// To how many ranks tokens go; by their numbers in the step, which choose among copies.
void Recorder::count_send_ranks(const StepView& all) {
  const auto k = static_cast<std::size_t>(model_.top_k);
  if (comm_.size() == 1) {
    for (std::size_t l = 0; l < layers(); ++l) block_figures_.send_ranks[l * (k + 1) + 1] += all.tokens.size();
    return;
  }
#pragma omp parallel for schedule(dynamic, 1)
  for (std::size_t l = 0; l < layers(); ++l) {
    const LayerPlacement& placement = placement_->layer(static_cast<int>(l));
    std::uint64_t* const histogram = block_figures_.send_ranks.data() + l * (k + 1);
    const std::vector<std::uint16_t>& experts = all.experts[l];
    for (std::size_t slot = 0; slot < experts.size(); slot += k) {
      std::size_t distinct = 0;
      const auto token = static_cast<std::int64_t>(slot / k);
      const auto rank_of = [&](std::size_t j) {
        return placement.rank_of(placement.physical_for(experts[slot + j], token, comm_.rank()));
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

PhaseSeconds Recorder::finish_step(const Batch& batch, const StepTokens& step, const TokenLosses& losses,
                                   const StepTimes& times) {
  const Stopwatch watch;
  finish_logits();
  const StepView all = {batch.tokens, batch.targets, step, losses, routing_, experts_};
  if (!has_gpu_routing()) {
    count_send_ranks(all);
    record_tokens(all);
    return end_step(step, times, watch.seconds());
  }
  std::vector<HostChoices> choices = finish_choices();
  count_on_gpu(all);
  for (Routing& routing : routing_) {
    routing.probabilities = {};
    routing.figures = {};
  }
  HeldStep kept = take_step(batch, step, losses);
  finish_recording();
  recording_ = std::async(std::launch::async, [this, kept = std::move(kept), choices = std::move(choices)]() mutable {
    use_choices(std::move(choices), kept);
    count_send_ranks(kept.view());
    record_beside_gpu(kept.view());
  });
  return end_step(step, times, watch.seconds());
}

PhaseSeconds Recorder::hold_step(const Batch& batch, StepTokens step, TokenLosses losses, const StepTimes& times) {
  finish_logits();
  move_to_host(&Routing::probabilities);  // where tokens are put in order
  move_to_host(&Routing::figures);
  std::vector<HostChoices> choices = finish_choices();
  const PhaseSeconds all = end_step(step, times, 0);
  HeldStep& held = held_.emplace_back(take_step(batch, std::move(step), std::move(losses)));
  use_choices(std::move(choices), held);
  count_send_ranks(held.view());
  return all;
}

/// The step that ends, with the routing observed, which has nothing of a GPU's any more.
Recorder::HeldStep Recorder::take_step(const Batch& batch, StepTokens step, TokenLosses losses) {
  for (Routing& routing : routing_) {
    routing.gpu_ids = {};
    routing.gpu_weights = {};
    routing.gpu_fault = {};
  }
  return {batch.tokens,
          batch.targets,
          std::move(step),
          std::move(losses),
          std::exchange(routing_, std::vector<Routing>(layers())),
          experts_};
}

/// Waits until all earlier steps are recorded.
void Recorder::finish_recording() {
  if (recording_.valid()) recording_.get();
}

double Recorder::record_held(std::span<const HeldToken> order) {
  const Stopwatch watch;
  if (order.empty()) {
    held_.clear();
    return 0;
  }
  finish_recording();
  const HeldStep all = gather_held(order);
  held_.clear();
  record_tokens(all.view());
  const double seconds = watch.seconds();
  if (!block_steps_.empty())
    block_steps_.back().seconds[static_cast<std::size_t>(Phase::record)] += static_cast<float>(seconds);
  return seconds;
}

Recorder::HeldStep Recorder::gather_held(std::span<const HeldToken> order) const {
  const auto of_tokens = [&]<typename T>(std::vector<T> HeldStep::*column) {
    return gather_column<T>(order, 1, [&](std::size_t s) { return (held_[s].*column).data(); });
  };
  const auto of_step = [&]<typename T>(std::vector<T> StepTokens::*column) {
    return gather_column<T>(order, 1, [&](std::size_t s) { return (held_[s].step.*column).data(); });
  };
  const auto of_losses = [&]<typename T>(std::vector<T> TokenLosses::*column) {
    return gather_column<T>(order, 1, [&](std::size_t s) { return (held_[s].losses.*column).data(); });
  };
  HeldStep all;
  all.tokens = of_tokens(&HeldStep::tokens);
  all.targets = of_tokens(&HeldStep::targets);
  all.step = {of_step(&StepTokens::document), of_step(&StepTokens::group), of_step(&StepTokens::position),
              of_step(&StepTokens::phase)};
  all.losses = {of_losses(&TokenLosses::loss), of_losses(&TokenLosses::predicted)};
  all.routing.resize(layers());
  all.experts.resize(layers());
  const auto k = static_cast<std::size_t>(model_.top_k);
#pragma omp parallel for schedule(dynamic, 1)
  for (std::size_t l = 0; l < layers(); ++l) {
    all.experts[l] = gather_column<std::uint16_t>(order, k, [&](std::size_t s) { return held_[s].experts[l].data(); });
    all.routing[l] = gather_routing(order, [&](std::size_t s) -> const Routing& { return held_[s].routing[l]; });
  }
  return all;
}

/// Calls visit with each phase and its tokens, of whose layers it knows the experts.
void Recorder::for_each_phase(const StepView& all, const std::function<void(std::size_t, TokenView)>& visit) const {
  const StepTokens& step = all.step;
  const std::vector<std::uint8_t> included = included_tokens(all.tokens, excluded_);
  std::vector<LayerView> layers;
  for (const std::vector<std::uint16_t>& experts : all.experts) layers.push_back({experts, {}, {}, {}, {}, {}, {}});
  for (std::size_t phase = 0; phase < (step.phase.empty() ? 1 : block_live_.size()); ++phase) {
    std::vector<std::uint8_t> of_phase;
    for (const std::uint8_t number : step.phase) of_phase.push_back(number == phase ? 1 : 0);
    visit(phase, {all.tokens, step.position, step.group, all.targets, all.losses.predicted, all.losses.loss, included,
                  layers, of_phase});
  }
}

void Recorder::record_tokens(const StepView& all) {
  for_each_phase(all, [&](std::size_t phase, TokenView tokens) {
    const std::vector<std::uint8_t> counted = counted_flags(tokens);
    std::vector<std::vector<double>> probability_sum(layers());
    std::vector<LayerView> views(layers());
#pragma omp parallel for schedule(dynamic, 1)
    for (std::size_t l = 0; l < layers(); ++l) {
      const Routing& routing = all.routing[l];
      probability_sum[l] = probability_sums(routing.probabilities, counted);
      views[l] = {all.experts[l],
                  routing.weights,
                  routing.figure(RoutingFigure::entropy),
                  routing.figure(RoutingFigure::margin),
                  routing.figure(RoutingFigure::top_probability),
                  routing.figure(RoutingFigure::log_sum_exp),
                  probability_sum[l]};
    }
    tokens.layers = views;
    block_live_[phase].observe(tokens);
  });
  if (level_ != RecordLevel::counts) append_rows(all);
}

/// What count_on_gpu leaves.
void Recorder::record_beside_gpu(const StepView& all) {
  for_each_phase(all, [&](std::size_t phase, TokenView tokens) { block_live_[phase].observe_beside_gpu(tokens); });
  if (level_ != RecordLevel::counts) append_rows(all);
}

PhaseSeconds Recorder::end_step(const StepTokens& step, const StepTimes& times, double record_seconds) {
  StepFigures figures;
  figures.begin = std::chrono::duration<double>(times.begin.time_since_epoch()).count();
  figures.layer_ends = times.layer_ends(model_.n_moe_layers());
  PhaseSeconds seconds = times.phase_seconds();
  figures.tokens = static_cast<std::uint32_t>(step.position.size());
  figures.flops = flops_.of(step.position);
  figures.expert_slots = std::exchange(expert_slots_, {});
  if (figures.tokens > 0 && layers() > 0) latest_imbalance_ = imbalance_of(figures);
  seconds[static_cast<std::size_t>(Phase::record)] += record_seconds;
  std::transform(seconds.begin(), seconds.end(), figures.seconds.begin(),
                 [](double s) { return static_cast<float>(s); });
  block_steps_.push_back(std::move(figures));
  return seconds;
}

/// Largest over mean count of the layers' physical experts, mean over layers.
double Recorder::imbalance_of(const StepFigures& figures) const {
  const auto n_physical = static_cast<std::size_t>(placement_->n_physical());
  double imbalance = 0;
  for (std::size_t l = 0; l < layers(); ++l) {
    const std::span<const std::uint64_t> slots = std::span(figures.expert_slots).subspan(l * n_physical, n_physical);
    const double mean = static_cast<double>(std::reduce(slots.begin(), slots.end())) / static_cast<double>(n_physical);
    imbalance += static_cast<double>(*std::ranges::max_element(slots)) / mean;
  }
  return imbalance / static_cast<double>(layers());
}

void Recorder::append_rows(const StepView& all) {
  TokenRows& rows = block_rows_;
  append(rows.id, all.tokens);
  append<std::uint32_t>(rows.document, all.step.document);
  append<std::uint32_t>(rows.position, all.step.position);
  append<std::uint32_t>(rows.predicted, all.losses.predicted);
  append<float>(rows.loss, all.losses.loss);
  append<std::uint8_t>(rows.phase, all.step.phase);
  rows.phase.resize(rows.id.size(), 0);
  // One layer a thread: every column of a layer is its own vector.
#pragma omp parallel for schedule(dynamic, 1)
  for (std::size_t l = 0; l < layers(); ++l) {
    const Routing& routing = all.routing[l];
    append<std::uint16_t>(rows.layers[l].expert, all.experts[l]);
    append_half(rows.layers[l].weight, routing.weights);
    append_half(rows.layers[l].entropy, routing.figure(RoutingFigure::entropy));
    if (level_ == RecordLevel::logits) {
      const float* logits = routing.logits.data<float>();
      rows.layers[l].logits.insert(rows.layers[l].logits.end(), logits,
                                   logits + routing.logits.rows() * routing.logits.cols());
    }
  }
}

void Recorder::finish_block(std::uint64_t block, std::array<std::uint64_t, kTokenPhases> n_documents, double joules) {
  finish_recording();
  for (std::size_t phase = 0; phase < block_live_.size(); ++phase) {
    block_live_[phase].add_documents(n_documents.at(phase));
    segment_live_[phase].absorb(block_live_[phase]);
    if (!block_counts_.empty()) segment_counts_[phase].absorb(block_counts_[phase]);
  }
  for (StepFigures& step : block_steps_) {
    step.block = block;
    finished_steps_.push_back(std::move(step));
  }
  block_steps_.clear();
  block_figures_.block = block;
  block_figures_.joules = joules;
  finished_blocks_.push_back(std::exchange(block_figures_, empty_figures()));
  row_bytes_ += bytes_of(block_rows_);
  TokenRows next = empty_rows_like(block_rows_);
  finished_rows_.push_back(std::exchange(block_rows_, std::move(next)));
}

/// When each rank was where, on one clock.
std::vector<Table> Recorder::time_tables() {
  const ClockOffset before = std::exchange(clock_, measure_clock_offset(comm_));
  const std::uint64_t n_steps = finished_steps_.size();
  const std::uint64_t n_blocks = finished_blocks_.size();
  const auto n_ranks = static_cast<std::uint64_t>(comm_.size());
  std::vector<double> begins;
  std::vector<float> ends;
  for (const StepFigures& step : finished_steps_) {
    begins.push_back(common_time(step.begin, before, clock_));
    append<float>(ends, step.layer_ends);
  }
  const std::vector<double> all_begins = comm_.gather_v<double>(begins);
  const std::vector<float> all_ends = comm_.gather_v<float>(ends);
  const std::vector<ClockOffset> clocks = comm_.all_gather(clock_);
  if (comm_.rank() != 0) return {};

  std::vector<double> step_begin(n_steps * n_ranks);
  std::vector<float> layer_end(all_ends.size());
  const std::uint64_t rows = n_steps * layers();
  for (std::uint64_t r = 0; r < n_ranks; ++r) {
    for (std::uint64_t s = 0; s < n_steps; ++s) step_begin[s * n_ranks + r] = all_begins[r * n_steps + s];
    for (std::uint64_t row = 0; row < rows; ++row)
      std::copy_n(all_ends.begin() + static_cast<std::ptrdiff_t>((r * rows + row) * kLayerParts), kLayerParts,
                  layer_end.begin() + static_cast<std::ptrdiff_t>((row * n_ranks + r) * kLayerParts));
  }
  std::vector<double> offset;
  std::vector<double> uncertainty;
  for (std::uint64_t block = 0; block < n_blocks; ++block)
    for (const ClockOffset& clock : clocks) {
      offset.push_back(clock.seconds);
      uncertainty.push_back(clock.uncertainty);
    }
  std::vector<Table> tables;
  tables.push_back({"/dispatch/step_begin",
                    {"step", "rank"},
                    {n_steps, n_ranks},
                    std::move(step_begin),
                    "s",
                    "when each rank began the step, by rank 0's monotonic clock"});
  tables.push_back({"/dispatch/clock_offset",
                    {"block", "rank"},
                    {n_blocks, n_ranks},
                    std::move(offset),
                    "s",
                    "what was added to each rank's clock, as measured when the block was committed; before, by "
                    "interpolation from the measurement before"});
  tables.push_back({"/dispatch/clock_uncertainty",
                    {"block", "rank"},
                    {n_blocks, n_ranks},
                    std::move(uncertainty),
                    "s",
                    "that the offset is wrong by no more than"});
  if (layers() == 0) return tables;
  tables.push_back({"/dispatch/layer_end",
                    {"step", "layer", "rank", "part"},
                    {n_steps, layers(), n_ranks, kLayerParts},
                    std::move(layer_end),
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
std::vector<Table> Recorder::energy_tables() const {
  std::vector<double> mine;
  for (const BlockFigures& figures : finished_blocks_) mine.push_back(figures.joules);
  const std::vector<double> all = comm_.gather_v<double>(mine);
  const std::uint64_t n_blocks = finished_blocks_.size();
  const auto n_ranks = static_cast<std::uint64_t>(comm_.size());
  if (std::ranges::all_of(all, [](double joules) { return std::isnan(joules); })) return {};
  std::vector<double> joules(n_blocks * n_ranks);
  for (std::uint64_t r = 0; r < n_ranks; ++r)
    for (std::uint64_t b = 0; b < n_blocks; ++b) joules[b * n_ranks + r] = all[r * n_blocks + b];
  return {{"/dispatch/joules",
           {"block", "rank"},
           {n_blocks, n_ranks},
           std::move(joules),
           "J",
           "energy of each rank's GPU from the block's first step to its last; 0 where a rank before it counts their "
           "common GPU, NaN where none is counted"}};
}

std::vector<Table> Recorder::dispatch_tables() {
  const std::uint64_t n_steps = finished_steps_.size();
  const std::uint64_t n_blocks = finished_blocks_.size();
  const auto n_ranks = static_cast<std::uint64_t>(comm_.size());
  const std::uint64_t n_layers = layers();
  const auto n_physical = static_cast<std::uint64_t>(n_layers == 0 ? 0 : placement_->n_physical());

  std::vector<std::uint64_t> slots;
  std::vector<std::uint32_t> tokens;
  std::vector<double> flops;
  std::vector<float> seconds;
  std::vector<std::uint64_t> step_block;
  for (const StepFigures& step : finished_steps_) {
    slots.insert(slots.end(), step.expert_slots.begin(), step.expert_slots.end());
    tokens.push_back(step.tokens);
    flops.push_back(step.flops);
    seconds.insert(seconds.end(), step.seconds.begin(), step.seconds.end());
    step_block.push_back(step.block);
  }
  std::vector<std::uint64_t> traffic;
  std::vector<std::uint64_t> send_ranks;
  std::vector<std::uint64_t> block;
  for (const BlockFigures& figures : finished_blocks_) {
    traffic.insert(traffic.end(), figures.traffic.begin(), figures.traffic.end());
    send_ranks.insert(send_ranks.end(), figures.send_ranks.begin(), figures.send_ranks.end());
    block.push_back(figures.block);
  }
  comm_.sum_to_root(slots);
  comm_.sum_to_root(flops);
  comm_.sum_to_root(send_ranks);
  const std::vector<std::uint32_t> all_tokens = comm_.gather_v<std::uint32_t>(tokens);
  const std::vector<float> all_seconds = comm_.gather_v<float>(seconds);
  const std::vector<std::uint64_t> all_traffic = comm_.gather_v<std::uint64_t>(traffic);
  std::vector<Table> tables = time_tables();
  std::vector<Table> energy = energy_tables();
  if (comm_.rank() != 0) return {};
  std::ranges::move(energy, std::back_inserter(tables));

  // Gathered data runs (source rank, step or block, ...); the tables want the rank behind the step or block.
  std::vector<std::uint32_t> step_tokens(n_steps * n_ranks);
  std::vector<float> step_seconds(n_steps * n_ranks * kPhases);
  std::vector<std::uint64_t> block_traffic(n_blocks * n_layers * n_ranks * n_ranks);
  for (std::uint64_t r = 0; r < n_ranks; ++r) {
    for (std::uint64_t s = 0; s < n_steps; ++s) {
      step_tokens[s * n_ranks + r] = all_tokens[r * n_steps + s];
      std::copy_n(all_seconds.begin() + static_cast<std::ptrdiff_t>((r * n_steps + s) * kPhases), kPhases,
                  step_seconds.begin() + static_cast<std::ptrdiff_t>((s * n_ranks + r) * kPhases));
    }
    for (std::uint64_t b = 0; b < n_blocks; ++b)
      for (std::uint64_t l = 0; l < n_layers; ++l)
        std::copy_n(all_traffic.begin() + static_cast<std::ptrdiff_t>(((r * n_blocks + b) * n_layers + l) * n_ranks),
                    n_ranks,
                    block_traffic.begin() + static_cast<std::ptrdiff_t>(((b * n_layers + l) * n_ranks + r) * n_ranks));
  }
  std::vector<std::int32_t> placement;
  std::vector<std::uint16_t> logical;
  for (std::uint64_t l = 0; l < n_layers; ++l)
    for (int p = 0; p < placement_->n_physical(); ++p) {
      const LayerPlacement& layer = placement_->layer(static_cast<int>(l));
      placement.push_back(layer.rank_of(p));
      logical.push_back(static_cast<std::uint16_t>(layer.logical_of(p)));
    }
  std::vector<std::uint32_t> expert_slots(slots.begin(), slots.end());
  std::vector<std::string> phases(kPhaseNames.begin(), kPhaseNames.end());

  if (n_layers > 0) {
    tables.push_back({"/dispatch/expert_slots",
                      {"step", "layer", "physical_expert"},
                      {n_steps, n_layers, n_physical},
                      std::move(expert_slots),
                      "1",
                      "slots sent to each physical expert in each step, all ranks together"});
    tables.push_back({"/dispatch/placement",
                      {"layer", "physical_expert"},
                      {n_layers, n_physical},
                      std::move(placement),
                      "1",
                      "rank that holds the expert"});
    tables.push_back({"/dispatch/logical",
                      {"layer", "physical_expert"},
                      {n_layers, n_physical},
                      std::move(logical),
                      "1",
                      "logical expert of each physical expert"});
    tables.push_back({"/dispatch/traffic",
                      {"block", "layer", "source_rank", "expert_rank"},
                      {n_blocks, n_layers, n_ranks, n_ranks},
                      std::move(block_traffic),
                      "1",
                      "slots sent from rank to rank"});
    tables.push_back({"/dispatch/send_ranks",
                      {"block", "layer", "ranks_reached"},
                      {n_blocks, n_layers, static_cast<std::uint64_t>(model_.top_k) + 1},
                      std::move(send_ranks),
                      "1",
                      "tokens by the number of distinct ranks that hold their experts"});
  }
  tables.push_back({"/dispatch/step_tokens",
                    {"step", "rank"},
                    {n_steps, n_ranks},
                    std::move(step_tokens),
                    "1",
                    "tokens each rank brought to the step"});
  tables.push_back({"/dispatch/flops",
                    {"step"},
                    {n_steps},
                    std::move(flops),
                    "FLOP",
                    "floating-point operations of the model for the step's tokens"});
  tables.push_back({"/dispatch/seconds",
                    {"step", "rank", "phase"},
                    {n_steps, n_ranks, kPhases},
                    std::move(step_seconds),
                    "s",
                    "time spent in each phase"});
  tables.push_back({"/dispatch/phase_name", {"phase"}, {kPhases}, std::move(phases), "1", "names of the phases"});
  tables.push_back(
      {"/dispatch/block", {"step"}, {n_steps}, std::move(step_block), "1", "block that the step belongs to"});
  tables.push_back({"/dispatch/traffic_block",
                    {"block"},
                    {n_blocks},
                    std::move(block),
                    "1",
                    "ordinal of the block that a row of traffic is about"});
  tables.push_back({"/dispatch/row_bytes",
                    {"scalar"},
                    {1},
                    std::vector<std::uint64_t>{dispatched_row_bytes_},
                    "byte",
                    "size of one dispatched row"});
  return tables;
}

std::uint64_t Recorder::gpu_bytes(const ModelFacts& model, TokenTableChoice tables, std::int64_t batch_tokens,
                                  bool generates) {
  const AccumulatorShape shape = shape_of(model);
  if (generates || shape.layers == 0) return 0;
  return 2 * gpu::RoutingCounts::bytes(shape, tables) + gpu::RoutingCounts::step_bytes(shape, batch_tokens);
}

RecordedBlocks Recorder::take() {
  finish_recording();
  for (LiveAccumulators& live : block_live_) live.clear();
  for (gpu::RoutingCounts& counts : block_counts_) counts.clear();
  block_steps_.clear();
  held_.clear();
  RecordedBlocks taken{std::exchange(finished_rows_, {}), {}, dispatch_tables()};
  for (std::size_t phase = 0; phase < segment_live_.size(); ++phase) {
    if (!segment_counts_.empty()) segment_live_[phase].add(segment_counts_[phase].take());
    Accumulators sums = segment_live_[phase].take(comm_);
    if (phase == 0 || sums.documents[0] > 0) taken.sums.push_back({static_cast<TokenPhase>(phase), std::move(sums)});
  }
  finished_steps_.clear();
  finished_blocks_.clear();
  row_bytes_ = 0;
  return taken;
}

}  // namespace switchyard
