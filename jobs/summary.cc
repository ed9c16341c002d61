#include "jobs/summary.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <numeric>
#include <optional>
#include <ostream>
#include <span>

#include "jobs/format.h"
#include "pipeline/analysis/metrics.h"

namespace switchyard {
namespace {

constexpr std::size_t kMostBars = 64;

/// With `digits` behind the point; "-" for what is not known.
std::string as_number(double value, int digits) {
  if (std::isnan(value)) return "-";
  std::array<char, 64> text{};
  std::snprintf(text.data(), text.size(), "%.*f", digits, value);
  return text.data();
}

void print_dataset(std::ostream& out, const ModelFacts& model, const Dataset& dataset) {
  const Accumulators& a = dataset.accumulators;
  std::array<char, 512> line{};
  out << "\n"
      << dataset.name << ": " << with_commas(a.tokens[0]) << " tokens of " << with_commas(a.documents[0])
      << " documents, loss " << as_number(a.loss[0].mean, 3) << " nats/token, next token right "
      << as_number(100.0 * static_cast<double>(a.correct[0]) / static_cast<double>(a.loss[0].n), 1) << " %\n";
  if (model.n_moe_layers() == 0 || a.n_tokens() == 0) return;
  const auto n_experts = static_cast<std::size_t>(model.n_experts);
  const std::size_t width = n_experts <= kMostBars ? std::max<std::size_t>(n_experts, 7) : 0;
  out << "  layer  " << (width > 0 ? "experts" + std::string(width - 7, ' ') + "  " : "")
      << "   CV  max/mean  entropy nats (bits)  top expert: usage (ideal "
      << std::round(1000.0 / static_cast<double>(n_experts)) / 10.0 << " %)\n";
  for (int l = 0; l < model.n_moe_layers(); ++l) {
    const std::vector<std::uint64_t> counts = a.layer_counts(l);
    const auto top = static_cast<std::size_t>(std::max_element(counts.begin(), counts.end()) - counts.begin());
    const double entropy = a.entropy[static_cast<std::size_t>(l)].mean;
    out << "  ";
    std::snprintf(line.data(), line.size(), "%5d  ", model.moe_layers[static_cast<std::size_t>(l)]);
    out << line.data();
    if (width > 0) out << as_bars(counts) << std::string(width - std::min(width, n_experts), ' ') << "  ";
    std::snprintf(line.data(), line.size(), "%5.3f  %8.3f      %6s  (%5s)  %10zu: %.1f %%\n",
                  coefficient_of_variation(counts), max_over_mean(counts), as_number(entropy, 3).c_str(),
                  as_number(entropy / std::log(2.0), 3).c_str(), top, 100 * usage(counts)[top]);
    out << line.data();
  }
}

void print_cost(std::ostream& out, const Cost& cost, std::optional<double> peak_flops) {
  if (!(cost.seconds > 0)) return;
  out << "  cost: " << with_commas(static_cast<std::uint64_t>(static_cast<double>(cost.tokens) / cost.seconds))
      << " tokens/s";
  std::array<char, 128> part{};
  if (std::isfinite(cost.flops)) {
    std::snprintf(part.data(), part.size(), ", %.1f MFLOP/token, %.1f GFLOP/s",
                  cost.flops / static_cast<double>(cost.tokens) / 1e6, cost.flops / cost.seconds / 1e9);
    out << part.data();
    if (peak_flops) {
      std::snprintf(part.data(), part.size(), " (%.1f %% of the peak)",
                    100 * cost.flops / (*peak_flops * cost.rank_seconds));
      out << part.data();
    }
  }
  if (cost.joules_tokens > 0) {
    std::snprintf(part.data(), part.size(), ", %.4g J/token (%.4g J of GPUs)",
                  cost.joules / static_cast<double>(cost.joules_tokens), cost.joules);
    out << part.data();
  }
  out << "; " << phase_shares(cost.phase_seconds) << "\n";
}

/// What waiting for the slowest rank's experts cost, where parts of layers were timed on several ranks.
void print_stragglers(std::ostream& out, const ModelFacts& model, const Dataset& dataset) {
  const RankTime& time = dataset.time;
  if (time.ranks < 2 || time.steps == 0 || time.steps != dataset.ranks.steps) return;
  const double cost = std::accumulate(time.straggler_seconds.begin(), time.straggler_seconds.end(), 0.0);
  if (!(cost > 0)) return;
  const auto layer = std::ranges::max_element(time.straggler_seconds) - time.straggler_seconds.begin();
  const auto of_layer = std::span(time.straggler_by_expert)
                            .subspan(static_cast<std::size_t>(layer) * static_cast<std::size_t>(time.experts),
                                     static_cast<std::size_t>(time.experts));
  const auto expert = std::ranges::max_element(of_layer) - of_layer.begin();
  std::array<char, 192> line{};
  std::snprintf(
      line.data(), line.size(),
      "  stragglers: ranks waited %.1f %% of step time for the slowest one's experts; layer %d cost most (%.1f "
      "%% of it), there expert %td (%.1f %%)\n",
      100 * cost / dataset.ranks.step_seconds, model.moe_layers[static_cast<std::size_t>(layer)],
      100 * time.straggler_seconds[static_cast<std::size_t>(layer)] / cost, expert,
      100 * of_layer[static_cast<std::size_t>(expert)] / cost);
  out << line.data();
}

}  // namespace

void print_summary(std::ostream& out, const Statistics& reduced) {
  for (const Dataset& dataset : reduced.datasets) {
    print_dataset(out, reduced.model, dataset);
    print_cost(out, dataset.cost, reduced.peak_flops);
    print_stragglers(out, reduced.model, dataset);
  }
}

void print_documents(std::ostream& out, const Statistics& reduced) {
  constexpr std::size_t kShown = 3;
  const auto experts = static_cast<std::size_t>(reduced.model.n_experts);
  for (const Dataset& dataset : reduced.datasets)
    for (const DocumentUsage& document : dataset.documents) {
      out << "\n"
          << dataset.name << ", document " << document.id
          << (document.category.empty() ? "" : " (" + document.category + ")") << ": " << with_commas(document.tokens)
          << " tokens\n";
      if (document.tokens == 0 || experts == 0) continue;
      out << "  layer  experts: share of the document's slots (of the dataset's)\n";
      for (int l = 0; l < reduced.model.n_moe_layers(); ++l) {
        const auto begin = document.count.begin() + static_cast<std::ptrdiff_t>(static_cast<std::size_t>(l) * experts);
        const std::vector<std::uint64_t> counts(begin, begin + static_cast<std::ptrdiff_t>(experts));
        const std::vector<double> own = usage(counts);
        const std::vector<double> overall = usage(dataset.accumulators.layer_counts(l));
        std::vector<std::size_t> order(experts);
        std::iota(order.begin(), order.end(), std::size_t{0});
        std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return own[a] > own[b]; });
        std::array<char, 96> text{};
        std::snprintf(text.data(), text.size(), "  %5d ", reduced.model.moe_layers[static_cast<std::size_t>(l)]);
        out << text.data();
        for (std::size_t i = 0; i < std::min(kShown, experts) && own[order[i]] > 0; ++i) {
          std::snprintf(text.data(), text.size(), "  %zu: %.1f %% (%.1f %%)", order[i], 100 * own[order[i]],
                        100 * overall[order[i]]);
          out << text.data();
        }
        out << "\n";
      }
    }
}

std::string phase_shares(const PhaseSeconds& seconds) {
  const double total = std::accumulate(seconds.begin(), seconds.end(), 0.0);
  std::string text;
  for (std::size_t p = 0; p < kPhases; ++p) {
    std::array<char, 64> part{};
    std::snprintf(part.data(), part.size(), "%s%s %.1f %%", p > 0 ? ", " : "", std::string(kPhaseNames[p]).c_str(),
                  total > 0 ? 100 * seconds[p] / total : 0.0);
    text += part.data();
  }
  return text;
}

}  // namespace switchyard
