#include "jobs/place_summary.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <numeric>
#include <string_view>

#include "jobs/format.h"

namespace switchyard {
namespace {

template <typename... Values>
std::string text(const char* format, Values... values) {
  std::array<char, 128> line{};
  std::snprintf(line.data(), line.size(), format, values...);
  return line.data();
}

/// One value, "1.52", or what is known of it, "1.50-1.61".
std::string as_range(const Range& range) {
  if (std::isnan(range.low)) return "-";
  if (range.high - range.low < 0.005) return text("%.2f", range.low);
  return text("%.2f-%.2f", range.low, range.high);
}

Range mean_range(const PlacementFigures& figures, Range LayerFigures::*member) {
  Range mean;
  for (const LayerFigures& layer : figures.layers) {
    mean.low += (layer.*member).low / static_cast<double>(figures.layers.size());
    mean.high += (layer.*member).high / static_cast<double>(figures.layers.size());
  }
  return mean;
}

double mean_of(const std::vector<double>& values) {
  return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
}

/// Columns under their heads, as wide as the widest cell; the first to the left, the others to the right.
void print_columns(const std::vector<std::vector<std::string>>& rows) {
  std::vector<std::size_t> width;
  for (const std::vector<std::string>& row : rows) {
    width.resize(std::max(width.size(), row.size()), 0);
    for (std::size_t c = 0; c < row.size(); ++c) width[c] = std::max(width[c], row[c].size());
  }
  for (const std::vector<std::string>& row : rows) {
    std::printf(" ");
    for (std::size_t c = 0; c < row.size(); ++c)
      std::printf(c == 0 ? " %-*s" : "  %*s", static_cast<int>(width[c]), row[c].c_str());
    std::printf("\n");
  }
}

/// How a figure of a check is told.
struct CheckColumn {
  const char* name;
  const char* head;
  double scale;
  int digits;
};
constexpr std::array<CheckColumn, 8> kCheckColumns = {
    {{"balancedness", "balancedness", 1, 4},
     {"steps_balancedness_mean", "in steps", 1, 4},
     {"steps_balancedness_ratio", "by sums", 1, 4},
     {"ranks_per_token", "ranks a token", 1, 3},
     {"remote_slots_per_token", "remote slots", 1, 3},
     {"bytes_across_nodes_per_token", "KiB across nodes", 1.0 / 1024, 2},
     {"step_seconds", "ms a step", 1e3, 3},
     {"straggler_seconds", "of it waiting", 1e3, 3}}};

const CheckColumn& column_of(const CheckedFigure& figure) {
  return *std::ranges::find(kCheckColumns, std::string_view(figure.name), &CheckColumn::name);
}

std::string predicted_text(const CheckedFigure& figure) {
  const CheckColumn& column = column_of(figure);
  const CheckedFigure::Estimate& whole = figure.predicted_whole;
  if (std::isnan(whole.value)) return "-";
  std::string words = text("%.*f", column.digits, whole.value * column.scale);
  if (whole.high > whole.low)
    words += text(" (%.*f to %.*f)", column.digits, whole.low * column.scale, column.digits, whole.high * column.scale);
  return words;
}

std::string measured_text(const CheckedFigure& figure, std::size_t corpus) {
  const CheckColumn& column = column_of(figure);
  const double value = figure.whole(figure.measured[corpus]);
  if (std::isnan(value)) return "-";
  std::string words = text("%.*f", column.digits, value * column.scale);
  if (!std::isnan(figure.predicted_whole.value))
    words += text(" (%+.*f)", column.digits, (value - figure.predicted_whole.value) * column.scale);
  return words;
}

}  // namespace

void print_check(const PlacementCheck& check, const std::string& rerun) {
  std::printf("\nthe placement of %s (the plan of %s): predicted, and measured there with the error in brackets\n",
              rerun.c_str(), check.plan.empty() ? "none of these methods" : check.plan.c_str());
  std::vector<std::vector<std::string>> rows = {{""}, {"predicted"}};
  for (const CheckedFigure& figure : check.figures) {
    rows[0].emplace_back(column_of(figure).head);
    rows[1].push_back(predicted_text(figure));
  }
  for (std::size_t d = 0; d < check.corpora.size(); ++d) {
    rows.push_back({check.corpora[d].name + ", " + check.corpora[d].text});
    for (const CheckedFigure& figure : check.figures) rows.back().push_back(measured_text(figure, d));
  }
  print_columns(rows);
  std::printf(
      "\nmeans over layers; KiB (a token, one way, a row for each slot) and ms are sums of all layers. Predicted for "
      "the "
      "mean step of %s, %s tokens%s\n",
      rerun.c_str(), with_commas(static_cast<std::uint64_t>(check.step_tokens)).c_str(),
      check.recorded_step_tokens > 0 ? text("; in steps: over recorded ones of %s tokens",
                                            with_commas(static_cast<std::uint64_t>(check.recorded_step_tokens)).c_str())
                                           .c_str()
                                     : "");
  if (std::ranges::any_of(check.figures, [](const CheckedFigure& figure) {
        return figure.name == "step_seconds" && std::isnan(figure.predicted_whole.value);
      }))
    std::printf(
        "ms: not predicted, as the statistics hold no cost model that explains half of the seconds' variance\n");
}

void print_simulation(const Simulation& simulation, const std::vector<std::string>& datasets, bool replayed) {
  std::string names;
  for (const std::string& name : datasets) names.append(names.empty() ? "" : ", ").append(name);
  std::printf("virtual ranks, %s of %s; every figure is the mean over layers\n",
              replayed ? "token rows replayed" : "steps drawn by the counts (a model: real steps are less balanced)",
              names.c_str());
  for (std::size_t method = 0; method < simulation.methods.size(); ++method)
    for (std::size_t size = 0; size < simulation.step_tokens.size(); ++size) {
      std::printf("\n%s, %zu step%s of %s tokens of all ranks\n",
                  std::string(to_string(simulation.methods[method])).c_str(), simulation.steps[size],
                  simulation.steps[size] == 1 ? "" : "s", with_commas(simulation.step_tokens[size]).c_str());
      std::vector<std::vector<std::string>> rows = {
          {"ranks", "nodes", "replicas", "balancedness", "imbalance p50", "p90", "p99", "largest", "waiting"}};
      if (replayed)
        rows[0].insert(rows[0].end(), {"remote slots a token", "remote ranks", "remote nodes", "received max/mean"});
      for (std::size_t m = 0; m < simulation.machines.size(); ++m) {
        const PlacementTask& task = simulation.machines[m].task;
        std::vector<std::string> row = {std::to_string(task.ranks), std::to_string(task.nodes),
                                        std::to_string(task.replicas)};
        const Simulation::Figures& figures = simulation.at(method, m, size);
        if (figures.balance.empty()) {
          row.emplace_back("not defined");
          rows.push_back(std::move(row));
          continue;
        }
        const LayerBalance balance = mean_over_layers(figures.balance);
        for (const double value : {balance.balancedness_mean, balance.imbalance_p50, balance.imbalance_p90,
                                   balance.imbalance_p99, balance.imbalance_max})
          row.push_back(text("%.3f", value));
        row.push_back(text("%.1f %%", 100 * balance.straggler_share));
        if (!figures.traffic.empty()) {
          const LayerTraffic traffic = mean_over_layers(figures.traffic);
          for (const double value : {traffic.remote_slots_per_token, traffic.remote_ranks_per_token,
                                     traffic.remote_nodes_per_token, traffic.received_max_over_mean})
            row.push_back(std::isnan(value) ? "-" : text("%.3f", value));
        }
        rows.push_back(std::move(row));
      }
      print_columns(rows);
    }
  std::printf(
      "\nimbalance: largest over mean rank load less 1, quantiles over steps; waiting: slowest less mean rank, "
      "as a share of the slowest\n");
}

void print_drift(const Drift& drift, std::size_t every) {
  std::printf("\nhow a placement ages: balancedness of %zu blocks behind the first %zu\n", drift.block.size() - every,
              every);
  std::vector<std::vector<std::string>> rows = {{"placed", "mean", "worst block"}};
  const std::array<std::string, Drift::kPolicies> policies = {"contiguous", text("on the first %zu blocks", every),
                                                              text("anew every %zu blocks", every),
                                                              "on the block itself"};
  for (std::size_t policy = 0; policy < Drift::kPolicies; ++policy) {
    const std::vector<double> later(drift.balancedness[policy].begin() + static_cast<std::ptrdiff_t>(every),
                                    drift.balancedness[policy].end());
    const auto worst = std::min_element(later.begin(), later.end());
    const auto block = static_cast<std::size_t>(worst - later.begin()) + every;
    rows.push_back(
        {policies.at(policy), text("%.4f", mean_of(later)),
         text("%.4f (block %zu, ", *worst, static_cast<std::size_t>(drift.block[block])) + drift.dataset[block] + ")"});
  }
  print_columns(rows);
}

void print_holdout(const Holdout& holdout, const std::vector<std::string>& datasets, PlacementMethod chosen) {
  if (!holdout.halves.empty()) {
    std::printf("\non other text: fitted on one half of the documents, then on the other; balancedness\n");
    std::vector<std::vector<std::string>> rows = {{"method", "predicted", "held out", "error", "best there"}};
    for (const Holdout::Method& method : holdout.halves)
      rows.push_back({std::string(to_string(method.method)), text("%.4f", method.predicted),
                      text("%.4f", method.held_out), text("%+.4f", method.held_out - method.predicted),
                      text("%.4f", method.best)});
    print_columns(rows);
  }
  if (datasets.size() < 2) return;
  std::printf("\nfitted on one dataset (row), balancedness on each (column), by %s\n",
              std::string(to_string(chosen)).c_str());
  std::vector<std::vector<std::string>> rows = {{"fitted on"}};
  rows[0].insert(rows[0].end(), datasets.begin(), datasets.end());
  for (std::size_t d = 0; d < datasets.size(); ++d) {
    rows.push_back({datasets[d]});
    for (const double value : holdout.by_datasets[d]) rows.back().push_back(text("%.3f", value));
  }
  print_columns(rows);
}

void print_methods(const PlaceSummary& summary, const std::vector<MethodResult>& methods, std::size_t chosen) {
  const PlacementTask& task = summary.task;
  std::string names;
  for (const std::string& name : summary.datasets) names.append(names.empty() ? "" : ", ").append(name);
  std::printf("%zu layers of %d experts%s on %d rank%s of %d node%s, fitted on %s tokens of %s\n\n",
              summary.least_load.size(), summary.model.n_experts,
              task.replicas > 0 ? text(" and %d replicas", task.replicas).c_str() : "", task.ranks,
              task.ranks == 1 ? "" : "s", task.nodes, task.nodes == 1 ? "" : "s",
              with_commas(static_cast<std::uint64_t>(summary.tokens)).c_str(), names.c_str());
  const bool steps = !methods.front().balance.empty();
  const bool replayed = !methods.front().traffic.empty();
  const bool timed = methods.front().step.has_value();
  const bool bytes =
      summary.row_bytes && (replayed || !std::isnan(methods.front().figures.layers[0].nodes_per_token.low));
  std::vector<std::vector<std::string>> rows = {{"method", "balancedness", "by sums", "max/mean", "worst layer"}};
  if (steps) rows[0].insert(rows[0].end(), {"in steps", "by sums"});
  rows[0].insert(rows[0].end(), {"ranks a token", "nodes a token"});
  if (bytes) rows[0].push_back("KiB across nodes a token");
  if (timed) rows[0].insert(rows[0].end(), {"ms a step", "of it waiting"});
  rows[0].push_back("proven best");
  for (const MethodResult& method : methods) {
    std::vector<double> ratios;
    for (const LayerFigures& layer : method.figures.layers) ratios.push_back(layer.max_over_mean);
    std::vector<std::string> row = {std::string(to_string(method.placement.method)),
                                    text("%.4f", method.figures.balancedness_mean),
                                    text("%.4f", method.figures.balancedness_ratio), text("%.4f", mean_of(ratios)),
                                    text("%.4f", *std::max_element(ratios.begin(), ratios.end()))};
    if (steps) {
      const LayerBalance mean = mean_over_layers(method.balance);
      row.push_back(text("%.4f", mean.balancedness_mean));
      row.push_back(text("%.4f", mean.balancedness_ratio));
    }
    Range ranks = mean_range(method.figures, &LayerFigures::ranks_per_token);
    Range nodes = mean_range(method.figures, &LayerFigures::nodes_per_token);
    const double elsewhere = 1 - 1.0 / task.nodes;
    Range rows_across = {nodes.low * elsewhere, nodes.high * elsewhere};
    if (replayed) {
      const LayerTraffic mean = mean_over_layers(method.traffic);
      ranks = {mean.ranks_per_token, mean.ranks_per_token};
      nodes = {mean.nodes_per_token, mean.nodes_per_token};
      rows_across = {mean.remote_nodes_per_token, mean.remote_nodes_per_token};
    }
    row.push_back(as_range(ranks));
    row.push_back(as_range(nodes));
    if (bytes) {
      const double scale = *summary.row_bytes * static_cast<double>(summary.least_load.size()) / 1024;
      row.push_back(as_range({rows_across.low * scale, rows_across.high * scale}));
    }
    if (timed) {
      row.push_back(text("%.3f +- %.3f", 1e3 * method.step->seconds, 1.96e3 * method.step->deviation));
      row.push_back(text("%.1f %%", 100 * method.step->straggler_seconds / method.step->seconds));
    }
    const auto exact = std::count(method.placement.exact.begin(), method.placement.exact.end(), 1);
    row.push_back(method.placement.method == PlacementMethod::search ? text("%td layers", exact) : "");
    rows.push_back(std::move(row));
  }
  std::vector<double> balanced;
  for (const double least : summary.least_load) balanced.push_back(1 / least);
  rows.push_back({"bound", text("%.4f", mean_of(balanced)), text("%.4f", 1 / mean_of(summary.least_load)),
                  text("%.4f", mean_of(summary.least_load)),
                  text("%.4f", *std::max_element(summary.least_load.begin(), summary.least_load.end()))});
  print_columns(rows);

  std::printf(
      "\nbalancedness: mean over largest rank load, mean over layers (SGLang); by sums: of sums over layers "
      "(vLLM). No plan is better than the bound\n");
  for (const std::string& reason : summary.undefined) std::printf("left out: %s\n", reason.c_str());
  if (steps) std::printf("in steps: the same over the %zu recorded steps of each layer\n", summary.recorded_steps);
  if (replayed)
    std::printf("ranks, nodes: distinct ones of a token's experts, counted over %s token rows\n",
                with_commas(summary.replayed_tokens).c_str());
  else if (std::isnan(methods.front().figures.layers[0].ranks_per_token.low))
    std::printf("ranks, nodes: not known, as the file holds no pairs of experts that a token chose together\n");
  else if (summary.model.top_k > 2)
    std::printf(
        "ranks, nodes: distinct ones of a token's experts; pairs of experts only bound them for %d choices. A "
        "run's folder, with token rows, says them exactly\n",
        summary.model.top_k);
  if (bytes)
    std::printf(
        "KiB across nodes: all layers, one way, where a token's row is sent once to each other node; a row for "
        "each slot makes %s whatever the placement\n",
        text("%.2f", summary.model.top_k * (1 - 1.0 / task.nodes) * *summary.row_bytes *
                         static_cast<double>(summary.least_load.size()) / 1024)
            .c_str());
  if (timed)
    std::printf(
        "ms a step: experts of the slowest rank of each layer, for the mean step of %s tokens, with the 95 %% "
        "interval of the cost model (R^2 %.3f)\n",
        with_commas(static_cast<std::uint64_t>(*summary.step_tokens)).c_str(), summary.cost->r_squared);
  std::printf("chosen: %s\n", std::string(to_string(methods[chosen].placement.method)).c_str());
}

}  // namespace switchyard
