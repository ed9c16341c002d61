#include "pipeline/row_observer.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "parallel/bf16.h"
#include "parallel/communicator.h"
#include "parallel/error.h"
#include "pipeline/kernels/router.h"

namespace switchyard {
namespace {

/// Token tables count in 32 bits.
constexpr std::uint64_t kMostLiveRows = std::uint64_t{1} << 31U;

/// [n] the id that follows in the document, -1 where there is none or it is not known.
std::vector<std::int64_t> targets_of(const TokenRows& rows, std::optional<std::uint32_t> next) {
  const std::size_t n = rows.size();
  std::vector<std::int64_t> target(n, -1);
  for (std::size_t t = 0; t < rows.id.size(); ++t) {
    const bool last =
        rows.loss.empty() ? t + 1 == n || rows.document[t + 1] != rows.document[t] : std::isnan(rows.loss[t]);
    if (last) continue;
    if (t + 1 < n)
      target[t] = rows.id[t + 1];
    else if (next)
      target[t] = *next;
  }
  return target;
}

}  // namespace

RowObserver::RowObserver(const ModelFacts& model, std::span<const std::uint8_t> excluded_tokens,
                         std::span<const std::uint16_t> document_groups, TokenTableChoice tables)
    : model_(model),
      excluded_(excluded_tokens),
      document_groups_(document_groups),
      tables_(tables),
      routing_(static_cast<std::size_t>(model.n_moe_layers())) {}

void RowObserver::observe(const TokenRows& rows, std::optional<std::uint32_t> next) {
  const std::size_t n = rows.size();
  const std::vector<std::int64_t> target = targets_of(rows, next);
  const std::vector<std::uint8_t> included = included_tokens(rows.id, excluded_);
  const std::vector<std::uint16_t> group = groups_of(rows);
  std::vector<LayerView> views(routing_.size());
#pragma omp parallel for schedule(dynamic, 1)
  for (std::size_t l = 0; l < routing_.size(); ++l) {
    const Routing& of_layer = routing_[l];
    route_layer(rows.layers[l], n, l);
    views[l] = {rows.layers[l].expert,
                of_layer.weights,
                of_layer.figure(RoutingFigure::entropy),
                of_layer.figure(RoutingFigure::margin),
                of_layer.figure(RoutingFigure::top_probability),
                of_layer.figure(RoutingFigure::log_sum_exp),
                {}};
  }
  for (std::size_t phase = 0; phase < kTokenPhases; ++phase) {
    const auto count = static_cast<std::size_t>(std::count(rows.phase.begin(), rows.phase.end(), phase));
    if (count == 0) continue;
    std::vector<std::uint8_t> of_phase;
    if (count < n)
      for (const std::uint8_t number : rows.phase) of_phase.push_back(number == phase ? 1 : 0);
    const TokenView tokens = {rows.id,   rows.position, group, target,  rows.predicted,
                              rows.loss, included,      views, of_phase};
    const std::vector<std::uint8_t> counted = counted_flags(tokens);
    std::vector<std::vector<double>> probability_sum(routing_.size());
#pragma omp parallel for schedule(dynamic, 1)
    for (std::size_t l = 0; l < routing_.size(); ++l) {
      if (rows.layers[l].logits.empty()) continue;
      probability_sum[l] = probability_sums(routing_[l].probabilities, counted);
      views[l].probability_sum = probability_sum[l];
    }
    std::optional<OfPhase>& sums = phases_.at(phase);
    if (!sums) sums = OfPhase{LiveAccumulators(shape_of(model_), tables_), Accumulators(shape_of(model_))};
    sums->live.observe(tokens);
  }
  live_rows_ += n;
  if (live_rows_ >= kMostLiveRows) take_live();
}

std::vector<PhaseSums> RowObserver::take() {
  take_live();
  std::vector<PhaseSums> taken;
  for (std::size_t phase = 0; phase < kTokenPhases; ++phase)
    if (std::optional<OfPhase> sums = std::exchange(phases_.at(phase), std::nullopt))
      taken.push_back({static_cast<TokenPhase>(phase), std::move(sums->taken)});
  return taken;
}

void RowObserver::take_live() {
  for (std::optional<OfPhase>& sums : phases_)
    if (sums) sums->taken.merge(sums->live.take(Communicator::self()));
  live_rows_ = 0;
}

std::vector<std::uint16_t> RowObserver::groups_of(const TokenRows& rows) const {
  std::vector<std::uint16_t> groups(rows.size());
  for (std::size_t t = 0; t < groups.size(); ++t) {
    const std::uint32_t document = rows.document[t];
    if (document >= document_groups_.size())
      throw Error("a token's document " + std::to_string(document) + " is not among the run's " +
                  std::to_string(document_groups_.size()));
    groups[t] = document_groups_[document];
  }
  return groups;
}

void RowObserver::route_layer(const TokenRows::Layer& rows, std::size_t n, std::size_t layer) {
  if (rows.logits.empty()) {
    Routing& routing = routing_[layer];
    routing.weights.resize(rows.weight.size());
    from_half_bits(rows.weight, routing.weights);
    const bool known = !rows.entropy.empty();
    routing.figures = Tensor(DType::f32, known ? 1 : 0, known ? static_cast<std::int64_t>(n) : 0);
    if (known) from_half_bits(rows.entropy, routing.figures.row<float>(0));
    return;
  }
  Tensor copy(DType::f32, static_cast<std::int64_t>(n), model_.n_experts);
  std::copy(rows.logits.begin(), rows.logits.end(), copy.data<float>());
  routing_[layer] = choose_experts(std::move(copy), {.top_k = model_.top_k, .renormalise = model_.renormalised},
                                   "layer " + std::to_string(model_.moe_layers[layer]));
}

}  // namespace switchyard
