#include "pipeline/recorder.h"

#include <algorithm>
#include <chrono>
#include <future>
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
      comm_(comm),
      dispatch_(model, placement, dispatched_row_bytes, flops, comm),
      routing_(layers()),
      experts_(layers()) {
  for (std::size_t phase = 0; phase < (generates ? kTokenPhases : 1); ++phase) {
    block_live_.emplace_back(shape_of(model), tables);
    segment_live_.emplace_back(shape_of(model), tables);
  }
  block_rows_.layers.resize(layers());
}

void Recorder::observe(int moe_layer, Routing&& routing, std::span<const ExchangePlan> plans) {
  const auto l = static_cast<std::size_t>(moe_layer);
  dispatch_.add_slots(l, plans);
  routing_[l] = std::move(routing);
  keep_choices(l);
  keep_logits(l);
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

PhaseSeconds Recorder::finish_step(const Batch& batch, const StepTokens& step, const TokenLosses& losses,
                                   const StepTimes& times) {
  const Stopwatch watch;
  finish_logits();
  const StepView all = {batch.tokens, batch.targets, step, losses, routing_, experts_};
  if (!has_gpu_routing()) {
    dispatch_.add_send_ranks(all.experts);
    record_tokens(all);
    return dispatch_.end_step(step.position, times, watch.seconds());
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
    dispatch_.add_send_ranks(kept.experts);
    record_beside_gpu(kept.view());
  });
  return dispatch_.end_step(step.position, times, watch.seconds());
}

PhaseSeconds Recorder::hold_step(const Batch& batch, StepTokens step, TokenLosses losses, const StepTimes& times) {
  finish_logits();
  move_to_host(&Routing::probabilities);  // where tokens are put in order
  move_to_host(&Routing::figures);
  std::vector<HostChoices> choices = finish_choices();
  const PhaseSeconds all = dispatch_.end_step(step.position, times, 0);
  HeldStep& held = held_.emplace_back(take_step(batch, std::move(step), std::move(losses)));
  use_choices(std::move(choices), held);
  dispatch_.add_send_ranks(held.experts);
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
  dispatch_.add_record_seconds(seconds);
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
  dispatch_.finish_block(block, joules);
  row_bytes_ += bytes_of(block_rows_);
  TokenRows next = empty_rows_like(block_rows_);
  finished_rows_.push_back(std::exchange(block_rows_, std::move(next)));
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
  held_.clear();
  if (block_rows_.size() > 0) block_rows_ = empty_rows_like(block_rows_);  // else it has room for as many already
  dispatch_.drop_block();
  RecordedBlocks taken{std::exchange(finished_rows_, {}), {}, dispatch_.take()};
  for (std::size_t phase = 0; phase < segment_live_.size(); ++phase) {
    if (!segment_counts_.empty()) segment_live_[phase].add(segment_counts_[phase].take());
    Accumulators sums = segment_live_[phase].take(comm_);
    if (phase == 0 || sums.documents[0] > 0) taken.sums.push_back({static_cast<TokenPhase>(phase), std::move(sums)});
  }
  row_bytes_ = 0;
  return taken;
}

}  // namespace switchyard
