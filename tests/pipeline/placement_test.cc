#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <numeric>
#include <random>
#include <set>

#include "io/placement_file.h"
#include "parallel/error.h"
#include "pipeline/analysis/placement_figures.h"
#include "pipeline/analysis/placement_methods.h"
#include "pipeline/analysis/placement_plan.h"
#include "pipeline/analysis/placement_search.h"
#include "pipeline/analysis/placement_update.h"
#include "tests/support/error_text.h"

namespace switchyard {
namespace {

using Loads = std::vector<double>;

double largest_load(const LayerPlan& plan, const Loads& load, int ranks) {
  const std::vector<double> loads = rank_loads(plan, load, ranks);
  return *std::max_element(loads.begin(), loads.end());
}

/// What every plan must be: a copy of each expert at least, no two of one on a rank, as many as the task says, none
/// beyond a rank's capacity.
void expect_plan_of_task(const LayerPlan& plan, const PlacementTask& task, int experts) {
  ASSERT_EQ(plan.size(), static_cast<std::size_t>(experts));
  int copies = 0;
  for (const auto& ranks : plan) {
    ASSERT_FALSE(ranks.empty());
    EXPECT_TRUE(std::is_sorted(ranks.begin(), ranks.end()));
    EXPECT_EQ(std::set<std::int32_t>(ranks.begin(), ranks.end()).size(), ranks.size());
    EXPECT_GE(ranks.front(), 0);
    EXPECT_LT(ranks.back(), task.ranks);
    copies += static_cast<int>(ranks.size());
  }
  EXPECT_EQ(copies, task.physical(experts));
  const std::vector<int> held = copies_of_ranks(plan, task.ranks);
  EXPECT_LE(*std::max_element(held.begin(), held.end()), task.capacity(experts));
}

/// Calls `see` with every plan of the task.
void for_every_plan(const PlacementTask& task, std::size_t experts, const std::function<void(const LayerPlan&)>& see) {
  LayerPlan plan(experts);
  std::vector<int> held(static_cast<std::size_t>(task.ranks), 0);
  const int room = task.capacity(static_cast<int>(experts));
  const std::function<void(std::size_t, int)> from = [&](std::size_t e, int left) {
    if (e == experts) {
      if (left == 0) see(plan);
      return;
    }
    for (unsigned chosen = 1; chosen < (1U << static_cast<unsigned>(task.ranks)); ++chosen) {
      plan[e].clear();
      bool fits = true;
      for (int r = 0; r < task.ranks; ++r)
        if ((chosen >> static_cast<unsigned>(r) & 1U) != 0) {
          plan[e].push_back(r);
          fits = fits && held[static_cast<std::size_t>(r)] < room;
        }
      const int extra = static_cast<int>(plan[e].size()) - 1;
      if (!fits || extra > left) continue;
      for (const std::int32_t r : plan[e]) ++held[static_cast<std::size_t>(r)];
      const std::vector<std::int32_t> mine = plan[e];
      from(e + 1, left - extra);
      for (const std::int32_t r : mine) --held[static_cast<std::size_t>(r)];
    }
  };
  from(0, task.replicas);
}

Loads skewed_loads(std::size_t experts, std::mt19937_64& random) {
  Loads load(experts);
  for (double& l : load) l = std::floor(std::exp(std::uniform_real_distribution<double>(0, 6)(random)));
  return load;
}

TEST(Placement, EplbEqualsItsDocumentedExample) {
  const PlacementTask task{.ranks = 8, .nodes = 2, .replicas = 4, .groups = 4};
  const Loads first = {90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86};
  const Loads second = {20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27};
  EXPECT_EQ(eplb_layout(first, task), (std::vector<std::int32_t>{5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1}));
  EXPECT_EQ(eplb_layout(second, task), (std::vector<std::int32_t>{7, 10, 6, 8, 6, 11, 8, 9, 2, 4, 5, 1, 5, 0, 3, 1}));
  const LayerPlan plan = place_by(PlacementMethod::eplb_hierarchical, first, task);
  EXPECT_EQ(plan[5], (std::vector<std::int32_t>{0, 1}));
  EXPECT_EQ(plan[10], (std::vector<std::int32_t>{4, 5}));
  EXPECT_EQ(plan[1], (std::vector<std::int32_t>{6, 7}));
  EXPECT_EQ(plan[0], (std::vector<std::int32_t>{6}));
}

TEST(Placement, KnownPlans) {
  const Loads load = {7, 1, 4, 4, 2, 6};
  const PlacementTask three{.ranks = 3};
  EXPECT_EQ(place_contiguous(load, three), (LayerPlan{{0}, {0}, {1}, {1}, {2}, {2}}));
  EXPECT_EQ(place_round_robin(load, three), (LayerPlan{{0}, {1}, {2}, {0}, {1}, {2}}));
  // 7 | 6 | 4, then 4 to the 4, which is full; 2 to the 6, 1 to the 7.
  EXPECT_EQ(place_greedy(load, three), (LayerPlan{{0}, {0}, {2}, {2}, {1}, {1}}));
  // Without a limit: 7 | 6 | 4, 4 to the 4, 2 to the 6, 1 to the 7: the same loads 8, 8, 8.
  EXPECT_EQ(rank_loads(place_greedy(load, {.ranks = 3, .experts_per_rank = 6}), load, 3), (Loads{8, 8, 8}));
  EXPECT_EQ(least_largest_load(load, three), 8);
  EXPECT_EQ(replicate(load, 9, 3), (std::vector<int>{2, 1, 2, 1, 1, 2}));
  // A rank may hold more experts than others only where it is allowed.
  const Loads one_heavy = {9, 1, 1, 1};
  EXPECT_EQ(largest_load(place_greedy(one_heavy, {.ranks = 2}), one_heavy, 2), 10);
  EXPECT_EQ(largest_load(place_greedy(one_heavy, {.ranks = 2, .experts_per_rank = 3}), one_heavy, 2), 9);
  EXPECT_EQ(least_largest_load(one_heavy, {.ranks = 2}), 10);
  EXPECT_EQ(least_largest_load(one_heavy, {.ranks = 2, .experts_per_rank = 3}), 9);
}

TEST(Placement, ReplicasOfAnExpertLieOnDifferentRanks) {
  const Loads load = {100, 1, 1, 1};
  // All that EPLB would make are copies of expert 0, which two ranks cannot hold three of.
  const PlacementTask task{.ranks = 2, .replicas = 2};
  const LayerPlan plan = place_by(PlacementMethod::eplb, load, task);
  expect_plan_of_task(plan, task, 4);
  EXPECT_EQ(plan[0], (std::vector<std::int32_t>{0, 1}));
  // Of experts 0 0 1 | 0 2 3 the second 0 must leave its rank, and does so for a copy that rank 1 holds.
  const LayerPlan apart = plan_of({{0, 0}, {0, 0}, {1, 0}, {2, 1}, {3, 1}, {4, 1}}, Loads{8, 1, 5, 4, 1}, 2);
  EXPECT_EQ(apart, (LayerPlan{{0, 1}, {0}, {1}, {0}, {1}}));
  // With nobody to change places with, the copy goes alone.
  EXPECT_EQ(plan_of({{0, 0}, {0, 0}}, Loads{1}, 3), (LayerPlan{{0, 1}}));
}

TEST(Placement, EveryMethodGivesAPlanOfTheTask) {
  std::mt19937_64 random(1);
  int plans = 0;
  for (const auto& [experts, task] :
       std::vector<std::pair<int, PlacementTask>>{{8, {.ranks = 2}},
                                                  {8, {.ranks = 4, .nodes = 2, .replicas = 4, .groups = 2}},
                                                  {7, {.ranks = 3}},
                                                  {7, {.ranks = 3, .replicas = 5}},
                                                  {6, {.ranks = 6, .replicas = 30}},
                                                  {64, {.ranks = 16, .nodes = 4, .replicas = 16, .groups = 8}},
                                                  {4, {.ranks = 12, .nodes = 3, .replicas = 8}},
                                                  {5, {.ranks = 1}},
                                                  {256, {.ranks = 32, .nodes = 4, .replicas = 32, .groups = 8}}})
    for (int draw = 0; draw < 20; ++draw) {
      const Loads load = skewed_loads(static_cast<std::size_t>(experts), random);
      require_possible(task, experts);
      for (std::size_t m = 0; m < kPlacementMethods.size(); ++m) {
        const auto method = static_cast<PlacementMethod>(m);
        if (method == PlacementMethod::search || why_undefined(method, task, experts)) continue;
        const LayerPlan plan = place_by(method, load, task);
        expect_plan_of_task(plan, task, experts);
        const double largest = largest_load(plan, load, task.ranks);
        EXPECT_GE(largest, least_largest_load(load, task) * (1 - 1e-12));
        ++plans;
      }
    }
  EXPECT_GT(plans, 600);
}

TEST(Placement, NoPlanIsBelowTheBoundAndMethodsStayNearTheBest) {
  std::mt19937_64 random(2);
  std::uint64_t seen = 0;
  double bound_over_best = 0;
  int cases = 0;
  for (const auto& [experts, task] :
       std::vector<std::pair<std::size_t, PlacementTask>>{{6, {.ranks = 2}},
                                                          {6, {.ranks = 3}},
                                                          {7, {.ranks = 3}},
                                                          {6, {.ranks = 3, .experts_per_rank = 6}},
                                                          {5, {.ranks = 3, .replicas = 1}},
                                                          {4, {.ranks = 3, .replicas = 2}},
                                                          {4, {.ranks = 3, .replicas = 3, .experts_per_rank = 4}}})
    for (int draw = 0; draw < 12; ++draw) {
      const Loads load = skewed_loads(experts, random);
      double best = 1e300;
      for_every_plan(task, experts, [&](const LayerPlan& plan) {
        best = std::min(best, largest_load(plan, load, task.ranks));
        ++seen;
      });
      const double bound = least_largest_load(load, task);
      EXPECT_LE(bound, best * (1 + 1e-12));
      bound_over_best += bound / best;
      ++cases;
      EXPECT_GE(largest_load(place_greedy(load, task), load, task.ranks), best * (1 - 1e-12));
      if (task.replicas == 0 && task.experts_per_rank > 0) {  // Graham's bound for LPT, 4/3 - 1/(3 R)
        EXPECT_LE(largest_load(place_greedy(load, task), load, task.ranks), best * (4.0 / 3 - 1.0 / (3 * task.ranks)));
      }
    }
  EXPECT_GT(seen, 10'000U);
  EXPECT_GT(bound_over_best / cases, 0.85);  // a bound of use, not 0
}

TEST(Placement, ReplicationIsTheBestThereIs) {
  std::mt19937_64 random(3);
  for (int draw = 0; draw < 50; ++draw) {
    const Loads load = skewed_loads(4, random);
    const std::vector<int> copies = replicate(load, 8, 3);
    EXPECT_EQ(std::accumulate(copies.begin(), copies.end(), 0), 8);
    const auto largest = [&](const std::vector<int>& n) {
      double most = 0;
      for (std::size_t e = 0; e < 4; ++e) most = std::max(most, load[e] / n[e]);
      return most;
    };
    double best = 1e300;
    for (int a = 1; a <= 3; ++a)
      for (int b = 1; b <= 3; ++b)
        for (int c = 1; c <= 3; ++c)
          if (const int d = 8 - a - b - c; d >= 1 && d <= 3) best = std::min(best, largest({a, b, c, d}));
    EXPECT_EQ(largest(copies), best);
  }
}

/// Tokens that choose two experts of E, some pairs more than others.
LayerDemand random_demand(std::size_t experts, std::mt19937_64& random) {
  LayerDemand demand{Loads(experts, 0), Loads(experts * experts, 0)};
  for (std::size_t i = 0; i < experts; ++i)
    for (std::size_t j = 0; j < i; ++j) {
      const double tokens = std::floor(std::exp(std::uniform_real_distribution<double>(0, 5)(random)));
      demand.pairs[i * experts + j] = demand.pairs[j * experts + i] = tokens;
      demand.load[i] += tokens;
      demand.load[j] += tokens;
    }
  return demand;
}

/// Gives each expert's load to steps at random.
void split_into_steps(LayerDemand& demand, std::size_t steps, std::mt19937_64& random) {
  const std::size_t experts = demand.load.size();
  demand.steps.assign(steps * experts, 0);
  for (std::size_t e = 0; e < experts; ++e)
    for (int slot = 0; slot < static_cast<int>(demand.load[e]); ++slot)
      ++demand.steps[random() % (1 + random() % steps) * experts + e];
}

TEST(Placement, BalanceOfSteps) {
  // Two experts that are busy in turn are well together, though their sum is large.
  const LayerDemand demand{{6, 6, 6, 6}, {}, {6, 0, 6, 0, 0, 6, 0, 6}};
  const PlacementTask task{.ranks = 2};
  EXPECT_DOUBLE_EQ(placement_objective({{0}, {1}, {0}, {1}}, demand, task, {}), 2);
  EXPECT_DOUBLE_EQ(placement_objective({{0}, {0}, {1}, {1}}, demand, task, {}), 1);
  EXPECT_DOUBLE_EQ(least_balance(demand, task), 1);
  const SearchResult found = search_placement(demand, task, {}, {.exact_nodes = 0});
  EXPECT_DOUBLE_EQ(found.objective, 1);
  EXPECT_TRUE(found.exact);
  // One plan must serve steps [8, 1, 1, 1] and [1, 1, 1, 8]: their best maxima are 9 and 9 of means 5.5.
  const LayerDemand other{{9, 2, 2, 9}, {}, {8, 1, 1, 1, 1, 1, 1, 8}};
  EXPECT_DOUBLE_EQ(least_balance(other, task), 18 / 11.0);
}

TEST(Placement, PairsTogetherOfAKnownPlan) {
  // Tokens: 6 of (0, 1), 3 of (0, 2), 1 of (1, 2).
  const LayerDemand demand{{9, 7, 4}, {0, 6, 3, 6, 0, 1, 3, 1, 0}};
  const PlacementTask task{.ranks = 4, .nodes = 2, .replicas = 1};
  const LayerPlan plan = {{0, 2}, {2}, {3}};
  const PairsTogether together = pairs_together(plan, demand, task);
  EXPECT_DOUBLE_EQ(together.on_rank, (6 * 0.5) / 10);
  EXPECT_DOUBLE_EQ(together.on_node, (6 * 0.5 + 3 * 0.5 + 1) / 10);
  // Loads 4.5, 0, 11.5, 4 of mean 5.
  EXPECT_DOUBLE_EQ(placement_objective(plan, demand, task, {.ranks = 0.5, .nodes = 2}), 2.3 + 0.5 * 0.7 + 2 * 0.45);
  EXPECT_DOUBLE_EQ(placement_objective(plan, {demand.load, {}}, task, {.ranks = 0.5, .nodes = 2}), 2.3);
}

TEST(Placement, ExactSearchEqualsBruteForceAndLocalSearchComesNear) {
  std::mt19937_64 random(4);
  std::uint64_t seen = 0;
  int cases = 0;
  int equal = 0;
  for (const auto& [experts, task] :
       std::vector<std::pair<std::size_t, PlacementTask>>{{6, {.ranks = 2}},
                                                          {6, {.ranks = 3}},
                                                          {8, {.ranks = 4, .nodes = 2}},
                                                          {6, {.ranks = 4, .nodes = 2, .experts_per_rank = 3}},
                                                          {5, {.ranks = 3, .replicas = 1}},
                                                          {4, {.ranks = 4, .nodes = 2, .replicas = 2}},
                                                          {4, {.ranks = 3, .replicas = 3, .experts_per_rank = 4}}})
    for (const ObjectiveWeights weights : {ObjectiveWeights{0, 0}, ObjectiveWeights{0.1, 0.3}, ObjectiveWeights{3, 5}})
      for (int draw = 0; draw < 4; ++draw) {
        LayerDemand demand = random_demand(experts, random);
        if (draw % 2 == 1) split_into_steps(demand, 3, random);
        double best = 1e300;
        double others = 1e300;
        for_every_plan(task, experts, [&](const LayerPlan& plan) {
          best = std::min(best, placement_objective(plan, demand, task, weights));
          ++seen;
        });
        for (const auto method : {PlacementMethod::greedy, PlacementMethod::contiguous, PlacementMethod::round_robin})
          others = std::min(others, placement_objective(place_by(method, demand.load, task), demand, task, weights));
        const SearchResult exact = search_placement(demand, task, weights, {});
        const SearchResult local = search_placement(demand, task, weights, {.exact_nodes = 0});
        expect_plan_of_task(exact.plan, task, static_cast<int>(experts));
        expect_plan_of_task(local.plan, task, static_cast<int>(experts));
        ASSERT_TRUE(exact.exact);
        EXPECT_NEAR(exact.objective, best, 1e-9);
        EXPECT_NEAR(exact.objective, placement_objective(exact.plan, demand, task, weights), 1e-12);
        EXPECT_LE(least_balance(demand, task), best + 1e-9);
        EXPECT_LE(local.objective, others + 1e-12);
        EXPECT_GE(local.objective, best - 1e-9);
        equal += local.objective < best + 1e-9 ? 1 : 0;
        ++cases;
      }
  EXPECT_GT(seen, 20'000U);
  EXPECT_GT(equal, cases * 8 / 10) << cases;
}

TEST(Placement, SearchIsRepeatableAndFindsWhatIsHidden) {
  // 32 experts in 8 cliques of 4 that are chosen together, of ids spread over all: a rank can hold one each.
  constexpr std::size_t kExperts = 32;
  LayerDemand demand{Loads(kExperts, 300), Loads(kExperts * kExperts, 0)};
  for (std::size_t i = 0; i < kExperts; ++i)
    for (std::size_t j = 0; j < kExperts; ++j)
      if (i != j && i * 11 % 32 / 4 == j * 11 % 32 / 4) demand.pairs[i * kExperts + j] = 100;
  const PlacementTask task{.ranks = 8, .nodes = 2};
  const SearchResult found = search_placement(demand, task, {}, {.seed = 7});
  EXPECT_DOUBLE_EQ(found.objective, 1);
  EXPECT_DOUBLE_EQ(pairs_together(found.plan, demand, task).on_rank, 1);
  std::mt19937_64 random(5);
  const LayerDemand other = random_demand(kExperts, random);
  const PlacementTask replicated{.ranks = 8, .nodes = 2, .replicas = 8};
  const SearchResult first = search_placement(other, replicated, {}, {.seed = 7});
  EXPECT_EQ(first.plan, search_placement(other, replicated, {}, {.seed = 7}).plan);
  expect_plan_of_task(first.plan, replicated, kExperts);
}

TEST(Placement, DistinctPlacesFollowFromPairsOrAreBounded) {
  const auto expect = [](const Range& range, double low, double high) {
    EXPECT_NEAR(range.low, low, 1e-12);
    EXPECT_NEAR(range.high, high, 1e-12);
  };
  expect(distinct_places(1, 4, 0), 1, 1);
  expect(distinct_places(2, 4, 0.25), 1.75, 1.75);
  expect(distinct_places(3, 4, 0), 3, 3);
  expect(distinct_places(3, 4, 3), 1, 1);
  // Splits 1+1+1, 2+1 and 3 put 0, 1 and 3 pairs together.
  expect(distinct_places(3, 4, 1), 2, 3 - 2.0 / 3);
  expect(distinct_places(3, 2, 1), 2, 2);  // two places: one pair at least
  expect(distinct_places(4, 2, 2.5), 2 - 0.5 / 4, 2);
}

TEST(Placement, BoundsOfDistinctRanksHoldTheTruth) {
  // Tokens of k = 4 of 12 experts, chosen alike, so that pairs are known and ranks can be counted.
  std::mt19937_64 random(6);
  constexpr std::size_t kExperts = 12;
  constexpr int kTop = 4;
  int inside = 0;
  double width = 0;
  for (int draw = 0; draw < 20; ++draw) {
    LayerDemand demand{Loads(kExperts, 0), Loads(kExperts * kExperts, 0)};
    std::vector<std::set<std::size_t>> tokens;
    const Loads likes = skewed_loads(kExperts, random);
    for (int t = 0; t < 500; ++t) {
      std::set<std::size_t> chosen;
      const std::size_t topic = random() % 3;
      while (chosen.size() < kTop) {
        const auto e = std::discrete_distribution<std::size_t>(likes.begin(), likes.end())(random);
        chosen.insert(random() % 4 == 0 ? e : topic * 4 + e % 4);
      }
      for (const std::size_t a : chosen) {
        ++demand.load[a];
        for (const std::size_t b : chosen)
          if (a != b) ++demand.pairs[a * kExperts + b];
      }
      tokens.push_back(chosen);
    }
    const PlacementTask task{.ranks = 4, .nodes = 2};
    const std::vector<LayerPlan> plans = {search_placement(demand, task, {}, {}).plan};
    double ranks = 0;
    double nodes = 0;
    for (const auto& chosen : tokens) {
      std::set<std::int32_t> of_ranks;
      std::set<int> of_nodes;
      for (const std::size_t e : chosen) {
        of_ranks.insert(plans[0][e][0]);
        of_nodes.insert(task.node_of(plans[0][e][0]));
      }
      ranks += static_cast<double>(of_ranks.size()) / 500;
      nodes += static_cast<double>(of_nodes.size()) / 500;
    }
    const LayerFigures figures = placement_figures(plans, {{demand}}, task, {}, kTop).layers[0];
    EXPECT_LE(figures.ranks_per_token.low, ranks + 1e-9);
    EXPECT_GE(figures.ranks_per_token.high, ranks - 1e-9);
    EXPECT_LE(figures.nodes_per_token.low, nodes + 1e-9);
    EXPECT_GE(figures.nodes_per_token.high, nodes - 1e-9);
    width += figures.ranks_per_token.high - figures.ranks_per_token.low;
    ++inside;
  }
  EXPECT_EQ(inside, 20);
  EXPECT_LT(width / inside, 1);
}

TEST(Placement, FiguresOfKnownLayers) {
  // Layers [2, 1] and [1, 2] on 2 ranks are not balanced, though their sum is.
  const std::vector<LayerDemand> layers = {{{2, 1}, {}}, {{1, 2}, {}}};
  const PlacementTask task{.ranks = 2};
  const Placement placement = place_layers(PlacementMethod::contiguous, layers, task, {}, {});
  const PlacementFigures figures = placement_figures(placement.layers, layers, task, {}, 1);
  EXPECT_NEAR(figures.balancedness_mean, 0.75, 1e-5);
  EXPECT_DOUBLE_EQ(figures.balancedness_ratio, 0.75);
  EXPECT_TRUE(std::isnan(figures.layers[0].ranks_per_token.low));
}

TEST(Placement, CostOfAStep) {
  const std::vector<LayerDemand> layers = {{{60, 20, 20, 0}, {}}};
  const std::vector<LayerPlan> plans = {{{0}, {0}, {1}, {1}}};
  CostModel cost{.intercept = 1, .per_slot = 0.1, .per_expert = 0.5};
  cost.covariance = {0.04, 0, 0, 0, 0.0001, 0, 0, 0, 0};
  // 10 tokens of one choice: 8 slots and 1 - 0.4^10 + 1 - 0.8^10 experts on rank 0; 2 slots on rank 1.
  const double first = 1 + 0.8 + 0.5 * (2 - std::pow(0.4, 10) - std::pow(0.8, 10));
  const double second = 1 + 0.2 + 0.5 * (1 - std::pow(0.8, 10));
  const StepCost step = predicted_step(plans, layers, {.ranks = 2}, 1, 10, cost);
  EXPECT_DOUBLE_EQ(step.seconds, first);
  EXPECT_DOUBLE_EQ(step.straggler_seconds, first - (first + second) / 2);
  EXPECT_DOUBLE_EQ(step.deviation, std::sqrt(0.04 + 64 * 0.0001));
}

int kept_copies(const LayerPlan& plan, const LayerPlan& before) {
  int kept = 0;
  for (std::size_t e = 0; e < plan.size(); ++e)
    for (const std::int32_t rank : plan[e]) kept += static_cast<int>(std::ranges::count(before[e], rank));
  return kept;
}

TEST(Placement, RanksAreRenamedSoThatFewExpertsMove) {
  // Against every renaming of the ranks that keeps those of a node together.
  constexpr int kExperts = 12;
  std::mt19937_64 random(5);
  int gained = 0;
  for (const PlacementTask& task : {PlacementTask{.ranks = 4}, PlacementTask{.ranks = 6, .nodes = 2, .replicas = 4},
                                    PlacementTask{.ranks = 6, .nodes = 3}})
    for (int trial = 0; trial < 20; ++trial) {
      Loads first(kExperts);
      Loads second(kExperts);
      for (double& load : first) load = static_cast<double>(random() % 100);
      for (double& load : second) load = static_cast<double>(random() % 100);
      const LayerPlan before = place_greedy(first, task);
      const LayerPlan plan = place_greedy(second, task);
      const LayerPlan aligned = aligned_with(plan, before, task);
      expect_plan_of_task(aligned, task, kExperts);

      std::vector<std::int32_t> names(static_cast<std::size_t>(task.ranks));
      std::iota(names.begin(), names.end(), 0);
      int most = 0;
      bool found = false;  // the result is one of the renamings
      do {
        std::set<std::pair<int, int>> nodes;
        for (int rank = 0; rank < task.ranks; ++rank)
          nodes.insert({task.node_of(rank), task.node_of(names[static_cast<std::size_t>(rank)])});
        if (nodes.size() != static_cast<std::size_t>(task.nodes)) continue;
        LayerPlan renamed = plan;
        for (auto& ranks : renamed) {
          for (std::int32_t& rank : ranks) rank = names[static_cast<std::size_t>(rank)];
          std::ranges::sort(ranks);
        }
        most = std::max(most, kept_copies(renamed, before));
        found = found || renamed == aligned;
      } while (std::ranges::next_permutation(names).found);
      EXPECT_TRUE(found);
      EXPECT_EQ(kept_copies(aligned, before), most);
      gained += most - kept_copies(plan, before);
    }
  EXPECT_GT(gained, 60);
}

TEST(Placement, ExpertsMoveOnlyWhereItPays) {
  const PlacementTask task{.ranks = 2};
  const LayerPlan before = {{0}, {0}, {1}, {1}};
  const auto better = [&](const Loads& load) {
    return better_plan(before, {load, {}}, task, PlacementMethod::search, {}, {});
  };
  EXPECT_FALSE(better({50, 50, 50, 50}));
  EXPECT_FALSE(better({50.4, 50, 49.9, 49.7}));  // 0.4 % is to be had
  const auto moved = better({50, 40, 20, 10});
  ASSERT_TRUE(moved);
  EXPECT_EQ(*moved, (LayerPlan{{0}, {1}, {1}, {0}}));  // 60 and 60; expert 0 stays, whatever search calls its rank
}

TEST(Placement, PlansAndPlacementsAreTheSame) {
  const std::vector<LayerPlan> plans = {{{0}, {1, 3}, {2}}};
  const ExpertPlacement placement = as_placement(plans, 4, CopyRule::local_first);
  EXPECT_EQ(as_plan(placement.layer(0)), plans[0]);
  EXPECT_EQ(placement.layer(0).rank_of(placement.layer(0).physical_for(1, 0, 3)), 3);
  EXPECT_EQ(as_placement(plans, 4).layer(0).physical_for(1, 0, 3), 2);
}

TEST(Placement, WhatCannotBeIsNamed) {
  const auto text = [](const PlacementTask& task, int experts) {
    return testing::error_text([&] { require_possible(task, experts); });
  };
  EXPECT_NE(text({.ranks = 0}, 8).find("--ranks"), std::string::npos);
  EXPECT_NE(text({.ranks = 6, .nodes = 4}, 8).find("--nodes"), std::string::npos);
  EXPECT_NE(text({.ranks = 2, .groups = 3}, 8).find("--groups"), std::string::npos);
  EXPECT_NE(text({.ranks = 2, .replicas = 9}, 8).find("at most 8"), std::string::npos);
  EXPECT_NE(text({.ranks = 3, .experts_per_rank = 2}, 8).find("at least 3"), std::string::npos);
  EXPECT_TRUE(why_undefined(PlacementMethod::eplb, {.ranks = 3}, 8).has_value());
  EXPECT_FALSE(why_undefined(PlacementMethod::greedy, {.ranks = 3}, 8).has_value());
  EXPECT_TRUE(why_undefined(PlacementMethod::eplb_hierarchical, {.ranks = 4, .nodes = 4, .groups = 2}, 8).has_value());
}

TEST(Placement, TextOfAFile) {
  EXPECT_EQ(to_placement_json(as_placement(std::vector<LayerPlan>{{{0}, {1, 3}, {2}}, {{1, 2}, {0}, {3}}}, 4)),
            "{\"n_ranks\":4,\"rank_of_expert\":[[0,[1,3],2],[[1,2],0,3]]}\n");
}

}  // namespace
}  // namespace switchyard
