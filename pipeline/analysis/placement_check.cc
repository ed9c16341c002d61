#include "pipeline/analysis/placement_check.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <functional>
#include <limits>
#include <numeric>

#include "pipeline/analysis/metrics.h"
#include "pipeline/analysis/token_phase.h"

namespace switchyard {
namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr double kInterval = 1.96;  // standard deviations to either end of 95 %
using Estimate = CheckedFigure::Estimate;

Estimate exactly(double value) { return {value, value, value}; }
Estimate within(const Range& range) { return {(range.low + range.high) / 2, range.low, range.high}; }
Estimate about(double value, double deviation) {
  return {value, value - kInterval * deviation, value + kInterval * deviation};
}

/// One corpus of the re-run, figure by figure of a layer.
class Measured {
 public:
  Measured(const MeasuredCorpus& corpus, const PlacementTask& task)
      : corpus_(corpus), task_(task), ranks_(static_cast<std::size_t>(task.ranks)) {}

  double balancedness(std::size_t l) const {
    return switchyard::balancedness(std::span(corpus_.rank_slots).subspan(l * ranks_, ranks_));
  }
  double steps_balancedness_mean(std::size_t l) const {
    return corpus_.load.balancedness_sum[l] / static_cast<double>(corpus_.load.layer_steps[l]);
  }
  double steps_balancedness_ratio(std::size_t l) const { return corpus_.load.mean_sum[l] / corpus_.load.max_sum[l]; }
  double ranks_per_token(std::size_t l) const {
    const auto width = static_cast<std::size_t>(corpus_.load.top_k) + 1;
    double reached = 0;
    for (std::size_t n = 0; n < width; ++n) reached += static_cast<double>(n * corpus_.load.send_ranks[l * width + n]);
    return reached / corpus_.tokens();
  }
  double remote_slots_per_token(std::size_t l) const {
    return static_cast<double>(corpus_.load.remote_slots[l]) / corpus_.tokens();
  }
  double bytes_across_nodes_per_token(std::size_t l) const {
    double slots = 0;
    for (int source = 0; source < task_.ranks; ++source)
      for (int rank = 0; rank < task_.ranks; ++rank)
        if (task_.node_of(source) != task_.node_of(rank))
          slots +=
              corpus_
                  .traffic[(l * ranks_ + static_cast<std::size_t>(source)) * ranks_ + static_cast<std::size_t>(rank)];
    return slots * static_cast<double>(corpus_.load.row_bytes) / corpus_.tokens();
  }
  double step_seconds(std::size_t l) const {
    const auto of_layer = std::span(corpus_.time.seconds.experts).subspan(l * ranks_, ranks_);
    const double mean = std::accumulate(of_layer.begin(), of_layer.end(), 0.0) / task_.ranks;
    return (mean + corpus_.time.straggler_seconds[l]) / static_cast<double>(corpus_.time.steps);
  }
  double straggler_seconds(std::size_t l) const {
    return corpus_.time.straggler_seconds[l] / static_cast<double>(corpus_.time.steps);
  }

 private:
  const MeasuredCorpus& corpus_;
  const PlacementTask& task_;
  std::size_t ranks_;
};

/// The predictions for the re-run's placement, by layer, and the check that they and what was measured make.
class Checker {
 public:
  Checker(const Rerun& rerun, const PredictionBasis& basis, const PlacementTask& task)
      : rerun_(rerun), basis_(basis), task_(task) {}

  PlacementCheck check() {
    add_corpora();
    add_balance();
    add_traffic();
    if (basis_.cost || rerun_.corpora.front().time.steps > 0) add_seconds();
    return std::move(check_);
  }

 private:
  using Predict = std::function<Estimate(std::size_t)>;
  using Measure = double (Measured::*)(std::size_t) const;

  void add(const char* name, const char* units, const char* long_name, bool adds_up, const Predict& predict,
           Measure measure) {
    CheckedFigure figure{name, units, long_name, adds_up, {}, {}, {}};
    std::vector<double> value;
    std::vector<double> low;
    std::vector<double> high;
    for (std::size_t l = 0; l < rerun_.plans.size(); ++l) {
      figure.predicted.push_back(predict(l));
      value.push_back(figure.predicted.back().value);
      low.push_back(figure.predicted.back().low);
      high.push_back(figure.predicted.back().high);
    }
    figure.predicted_whole = {figure.whole(value), figure.whole(low), figure.whole(high)};
    for (const MeasuredCorpus& corpus : rerun_.corpora) {
      const Measured measured(corpus, task_);
      figure.measured.emplace_back();
      for (std::size_t l = 0; l < rerun_.plans.size(); ++l) figure.measured.back().push_back((measured.*measure)(l));
    }
    check_.figures.push_back(std::move(figure));
  }

  void add_corpora() {
    std::vector<bool> same;
    for (const MeasuredCorpus& corpus : rerun_.corpora) {
      const bool all = std::equal(corpus.expert_slots.begin(), corpus.expert_slots.end(), pooled().begin());
      same.push_back(all || std::ranges::find(basis_.datasets, corpus.expert_slots) != basis_.datasets.end());
      check_.corpora.push_back({corpus.name, same.back() ? "same text" : "other text",
                                static_cast<std::uint64_t>(corpus.tokens()), corpus.load.steps});
    }
    if (!same[0] && std::count(same.begin() + 1, same.end(), true) > 0) check_.corpora[0].text = "partly other text";
    const MeasuredCorpus& all = rerun_.corpora.front();
    check_.step_tokens = all.tokens() / static_cast<double>(all.load.steps);
    if (basis_.steps == nullptr || basis_.steps->steps() == 0) return;
    double slots = 0;
    for (std::size_t s = 0; s < basis_.steps->steps(); ++s)
      for (const std::uint32_t n : basis_.steps->at(s, 0)) slots += n;
    check_.recorded_step_tokens = slots / rerun_.model.top_k / static_cast<double>(basis_.steps->steps());
  }

  void add_balance() {
    add(
        "balancedness", "1", "mean over largest rank load of the slots of all steps together", false,
        [&](std::size_t l) {
          return exactly(balancedness(rank_loads(rerun_.plans[l], basis_.layers[l].load, task_.ranks)));
        },
        &Measured::balancedness);
    std::vector<LayerBalance> balance;
    if (basis_.steps != nullptr) balance = balance_over_steps(*basis_.steps, rerun_.plans, task_.ranks, basis_.cost);
    const auto of_steps = [&](double LayerBalance::*member) {
      return [&balance, member](std::size_t l) { return exactly(balance.empty() ? kNan : balance[l].*member); };
    };
    add("steps_balancedness_mean", "1", "mean over steps of (mean + 1e-5) / (max + 1e-5) of rank loads (SGLang)", false,
        of_steps(&LayerBalance::balancedness_mean), &Measured::steps_balancedness_mean);
    add("steps_balancedness_ratio", "1", "sum over steps of the mean over sum of the largest rank load (vLLM)", false,
        of_steps(&LayerBalance::balancedness_ratio), &Measured::steps_balancedness_ratio);
  }

  void add_traffic() {
    std::vector<LayerTraffic> traffic;
    if (basis_.rows != nullptr)
      traffic = replay_traffic(*basis_.rows, rerun_.plans, task_, rerun_.copies,
                               std::max<std::size_t>(1, static_cast<std::size_t>(check_.step_tokens)));
    const PlacementFigures by_pairs =
        placement_figures(rerun_.plans, basis_.layers, task_, ObjectiveWeights{}, rerun_.model.top_k);
    add(
        "ranks_per_token", "1", "distinct ranks that hold a token's experts", false,
        [&](std::size_t l) {
          return traffic.empty() ? within(by_pairs.layers[l].ranks_per_token) : exactly(traffic[l].ranks_per_token);
        },
        &Measured::ranks_per_token);
    // Each rank has as many tokens, and where a token's copy does not depend on its rank, their experts lie as those
    // of all: of `places`, one is the token's own.
    const bool own_matters = rerun_.copies == CopyRule::local_first && task_.replicas > 0;
    const auto elsewhere = [&](int places) { return own_matters ? kNan : rerun_.model.top_k * (1 - 1.0 / places); };
    add(
        "remote_slots_per_token", "1", "slots of a token on other ranks", false,
        [&](std::size_t l) {
          return exactly(traffic.empty() ? elsewhere(task_.ranks) : traffic[l].remote_slots_per_token);
        },
        &Measured::remote_slots_per_token);
    if (task_.nodes == 1) return;
    const auto row_bytes = static_cast<double>(rerun_.corpora.front().load.row_bytes);
    add(
        "bytes_across_nodes_per_token", "byte", "bytes of a token's rows to other nodes, one for each slot, one way",
        true,
        [&](std::size_t l) {
          return exactly(row_bytes *
                         (traffic.empty() ? elsewhere(task_.nodes) : traffic[l].remote_node_slots_per_token));
        },
        &Measured::bytes_across_nodes_per_token);
  }

  void add_seconds() {
    const auto step = [&](std::size_t first, std::size_t count) -> StepCost {
      if (!basis_.cost) return {kNan, kNan, kNan};
      return predicted_step(std::span(rerun_.plans).subspan(first, count), basis_.layers.subspan(first, count), task_,
                            rerun_.model.top_k, check_.step_tokens, *basis_.cost);
    };
    add(
        "step_seconds", "s", "seconds of a step's experts, slowest rank", true,
        [&](std::size_t l) {
          const StepCost cost = step(l, 1);
          return about(cost.seconds, cost.deviation);
        },
        &Measured::step_seconds);
    const StepCost whole = step(0, rerun_.plans.size());
    check_.figures.back().predicted_whole = about(whole.seconds, whole.deviation);
    add(
        "straggler_seconds", "s", "seconds of a step's experts, slowest less mean rank", true,
        [&](std::size_t l) { return exactly(step(l, 1).straggler_seconds); }, &Measured::straggler_seconds);
  }

  std::vector<double> pooled() const {
    std::vector<double> slots;
    for (const LayerDemand& layer : basis_.layers) slots.insert(slots.end(), layer.load.begin(), layer.load.end());
    return slots;
  }

  const Rerun& rerun_;
  const PredictionBasis& basis_;
  const PlacementTask& task_;
  PlacementCheck check_;
};

}  // namespace

std::vector<std::vector<double>> slots_of_corpora(const Statistics& statistics,
                                                  const std::vector<std::size_t>& datasets) {
  std::vector<std::string> names;
  std::vector<std::vector<double>> corpora;
  for (const std::size_t d : datasets) {
    const Dataset& dataset = statistics.datasets[d];
    const auto corpus = std::ranges::find_if(
        names, [&](const std::string& name) { return dataset_of(name, TokenPhase::decode) == dataset.name; });
    const auto place = static_cast<std::size_t>(corpus - names.begin());
    if (corpus == names.end()) {
      names.push_back(dataset.name);
      corpora.emplace_back(statistics.model.moe_layers.size() * static_cast<std::size_t>(statistics.model.n_experts),
                           0);
    }
    auto slots = corpora[place].begin();
    for (int l = 0; l < statistics.model.n_moe_layers(); ++l)
      for (const std::uint64_t count : dataset.accumulators.layer_counts(l)) *slots++ += static_cast<double>(count);
  }
  return corpora;
}

double CheckedFigure::whole(std::span<const double> layers) const {
  double sum = 0;
  double known = 0;
  for (const double value : layers)
    if (!std::isnan(value)) {
      sum += value;
      ++known;
    }
  if (known == 0 || (adds_up && known < static_cast<double>(layers.size()))) return kNan;
  return adds_up ? sum : sum / known;
}

PlacementCheck check_placement(const Rerun& rerun, const PredictionBasis& basis, const PlacementTask& task) {
  return Checker(rerun, basis, task).check();
}

std::vector<Table> check_tables(const PlacementCheck& check) {
  std::vector<Table> tables;
  const std::uint64_t n = check.corpora.size();
  const auto of_corpora = [&](const char* name, const char* long_name, auto member) {
    std::vector<std::decay_t<decltype(check.corpora.front().*member)>> values;
    for (const PlacementCheck::Corpus& corpus : check.corpora) values.push_back(corpus.*member);
    tables.push_back({std::string("/check/") + name, {"dataset"}, {n}, std::move(values), "1", long_name});
  };
  of_corpora("dataset_name", "corpus of the re-run, or all of them", &PlacementCheck::Corpus::name);
  of_corpora("text", "whether it is the text that is predicted from", &PlacementCheck::Corpus::text);
  of_corpora("tokens", "tokens that the re-run routed", &PlacementCheck::Corpus::tokens);
  of_corpora("steps", "steps of the re-run", &PlacementCheck::Corpus::steps);
  for (const auto& [name, value, long_name] : std::initializer_list<std::tuple<const char*, double, const char*>>{
           {"step_tokens", check.step_tokens, "tokens of the re-run's mean step, of all ranks"},
           {"recorded_step_tokens", check.recorded_step_tokens,
            "the same of the steps predicted from; 0: there are none"}})
    tables.push_back({std::string("/check/") + name, {}, {}, std::vector<double>{value}, "1", long_name});
  std::vector<std::string> names;
  std::vector<std::uint8_t> adds_up;
  for (const CheckedFigure& figure : check.figures) {
    const std::uint64_t layers = figure.predicted.size();
    names.push_back(figure.name);
    adds_up.push_back(figure.adds_up ? 1 : 0);
    const bool exact = std::ranges::none_of(figure.predicted, [](const Estimate& e) { return e.high > e.low; });
    for (const auto& [suffix, member, end] :
         std::initializer_list<std::tuple<const char*, double Estimate::*, const char*>>{
             {"", &Estimate::value, ""},
             {"_low", &Estimate::low, ", at least"},
             {"_high", &Estimate::high, ", at most"}}) {
      if (exact && member != &Estimate::value) continue;
      std::vector<double> values;
      for (const Estimate& estimate : figure.predicted) values.push_back(estimate.*member);
      tables.push_back({"/check/predicted_" + figure.name + suffix,
                        {"layer"},
                        {layers},
                        std::move(values),
                        figure.units,
                        "predicted: " + figure.long_name + end});
      tables.push_back(
          {"/check/whole_" + figure.name + suffix,
           {},
           {},
           std::vector<double>{figure.predicted_whole.*member},
           figure.units,
           std::string("predicted, ") + (figure.adds_up ? "sum" : "mean") + " over layers: " + figure.long_name + end});
    }
    std::vector<double> measured;
    std::vector<double> error;
    for (const std::vector<double>& corpus : figure.measured)
      for (std::size_t l = 0; l < layers; ++l) {
        measured.push_back(corpus[l]);
        error.push_back(corpus[l] - figure.predicted[l].value);
      }
    tables.push_back({"/check/measured_" + figure.name,
                      {"dataset", "layer"},
                      {n, layers},
                      std::move(measured),
                      figure.units,
                      "measured: " + figure.long_name});
    tables.push_back({"/check/error_" + figure.name,
                      {"dataset", "layer"},
                      {n, layers},
                      std::move(error),
                      figure.units,
                      "measured minus predicted: " + figure.long_name});
  }
  const std::uint64_t n_figures = names.size();
  tables.push_back({"/check/figure_name", {"figure"}, {n_figures}, std::move(names), "1", "figures that are checked"});
  tables.push_back({"/check/adds_up",
                    {"figure"},
                    {n_figures},
                    std::move(adds_up),
                    "1",
                    "1: over layers the figure adds up; 0: their mean is told"});
  return tables;
}

}  // namespace switchyard
