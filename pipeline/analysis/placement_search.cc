#include "pipeline/analysis/placement_search.h"

#include <algorithm>
#include <array>
#include <limits>
#include <numeric>
#include <optional>
#include <random>
#include <span>

#include "pipeline/analysis/resampling.h"

namespace switchyard {
namespace {

constexpr double kLeastGain = 1e-12;
// Beyond, the tree is never seen whole.
constexpr int kMostExactExperts = 24;
constexpr int kMostExactRanks = 16;
constexpr int kMostExactReplicas = 8;

double sum_of_pairs(const LayerDemand& demand) {
  const std::size_t experts = demand.load.size();
  double sum = 0;
  for (std::size_t i = 0; i < experts && !demand.pairs.empty(); ++i)
    for (std::size_t j = 0; j < i; ++j) sum += demand.pairs[i * experts + j];
  return sum;
}

/// How many of two experts' pairs of copies lie on one rank, and on one node, over all of them.
PairsTogether copies_together(const std::vector<std::int32_t>& a, const std::vector<std::int32_t>& b,
                              const PlacementTask& task) {
  PairsTogether together;
  for (const std::int32_t r : a)
    for (const std::int32_t q : b) {
      if (r == q) ++together.on_rank;
      if (task.node_of(r) == task.node_of(q)) ++together.on_node;
    }
  const auto all = static_cast<double>(a.size() * b.size());
  return {together.on_rank / all, together.on_node / all};
}

std::size_t n_steps(const LayerDemand& demand) {
  return demand.steps.empty() ? 1 : demand.steps.size() / demand.load.size();
}
std::span<const double> step_load(const LayerDemand& demand, std::size_t step) {
  return demand.steps.empty() ? std::span(demand.load)
                              : std::span(demand.steps).subspan(step * demand.load.size(), demand.load.size());
}

/// The objective's scale: what turns loads and pairs into it.
struct Scale {
  Scale(const LayerDemand& demand, const PlacementTask& task, const ObjectiveWeights& weights) {
    const std::vector<double>& all = demand.steps.empty() ? demand.load : demand.steps;
    const double sum = std::accumulate(all.begin(), all.end(), 0.0);
    per_load = sum > 0 ? task.ranks / sum : 0;
    const double pairs = sum_of_pairs(demand);
    if (pairs > 0) {
      constant = weights.ranks + weights.nodes;
      per_rank_pair = weights.ranks / pairs;
      per_node_pair = weights.nodes / pairs;
    }
  }
  double per_load = 0, constant = 0, per_rank_pair = 0, per_node_pair = 0;
};

/// A plan that knows its objective and what changes would make of it.
class MovingPlan {
 public:
  MovingPlan(const LayerPlan& plan, const LayerDemand& demand, const PlacementTask& task, const Scale& scale)
      : demand_(demand),
        task_(task),
        scale_(scale),
        experts_(demand.load.size()),
        ranks_(static_cast<std::size_t>(task.ranks)),
        nodes_(static_cast<std::size_t>(task.nodes)),
        steps_(n_steps(demand)),
        room_(task.capacity(static_cast<int>(experts_))),
        load_(experts_ * steps_),
        n_copies_(experts_, 0),
        held_(experts_ * ranks_, 0),
        copies_of_rank_(ranks_, 0),
        rank_load_(ranks_ * steps_, 0),
        largest_(steps_) {
    for (std::size_t s = 0; s < steps_; ++s)
      for (std::size_t e = 0; e < experts_; ++e) load_[e * steps_ + s] = step_load(demand, s)[e];
    for (std::size_t e = 0; e < experts_; ++e)
      for (const std::int32_t rank : plan[e]) copies_.push_back({static_cast<std::int32_t>(e), rank});
    for (const PlacedCopy& copy : copies_) {
      ++n_copies_[expert_of(copy)];
      held_[place(copy)] = 1;
    }
    count();
  }

  double objective() const { return objective_; }
  LayerPlan plan() const {
    LayerPlan plan(experts_);
    for (const PlacedCopy& copy : copies_) plan[expert_of(copy)].push_back(copy.rank);
    for (auto& ranks : plan) std::sort(ranks.begin(), ranks.end());
    return plan;
  }

  /// Makes changes that lower the objective until none does.
  void descend() {
    for (bool better = true; better;) {
      better = false;
      for (std::size_t i = 0; i < copies_.size(); ++i) {
        for (std::int32_t rank = 0; rank < task_.ranks; ++rank) better |= try_move(i, rank);
        for (std::size_t j = 0; j < i; ++j) better |= try_swap(i, j);
      }
      if (task_.replicas > 0)
        for (std::size_t i = 0; i < copies_.size(); ++i) better |= try_conversions(i);
    }
  }

  /// Two random copies change places where they can.
  void disturb(std::mt19937_64& random) {
    const std::size_t i = random_below(copies_.size(), random);
    const std::size_t j = random_below(copies_.size(), random);
    if (can_swap(i, j)) swap(i, j);
  }

 private:
  static std::size_t expert_of(const PlacedCopy& copy) { return static_cast<std::size_t>(copy.expert); }
  static std::size_t rank_of(const PlacedCopy& copy) { return static_cast<std::size_t>(copy.rank); }
  std::size_t place(const PlacedCopy& copy) const { return expert_of(copy) * ranks_ + rank_of(copy); }
  std::size_t node_of(std::size_t rank) const {
    return static_cast<std::size_t>(task_.node_of(static_cast<int>(rank)));
  }
  /// Load of each copy of an expert in a step.
  double share(std::size_t expert, std::size_t step) const { return load_[expert * steps_ + step] / n_copies_[expert]; }
  void add_load(std::size_t rank, std::size_t expert, double sign) {
    for (std::size_t s = 0; s < steps_; ++s) rank_load_[rank * steps_ + s] += sign * share(expert, s);
  }
  double pair(std::size_t a, std::size_t b) const {
    return demand_.pairs.empty() ? 0 : demand_.pairs[a * experts_ + b];
  }
  bool knows_pairs() const { return scale_.per_rank_pair > 0 || scale_.per_node_pair > 0; }

  /// Everything from the copies anew.
  void count() {
    std::fill(copies_of_rank_.begin(), copies_of_rank_.end(), 0);
    std::fill(rank_load_.begin(), rank_load_.end(), 0.0);
    near_rank_.assign(knows_pairs() ? experts_ * ranks_ : 0, 0.0);
    near_node_.assign(knows_pairs() ? experts_ * nodes_ : 0, 0.0);
    for (const PlacedCopy& copy : copies_) {
      ++copies_of_rank_[rank_of(copy)];
      add_load(rank_of(copy), expert_of(copy), 1);
      add_near(copy, 1);
    }
    together_rank_ = together_node_ = 0;
    if (knows_pairs())
      for (const PlacedCopy& copy : copies_) {  // each pair is met from both its ends
        together_rank_ += near_rank_[place(copy)] / n_copies_[expert_of(copy)] / 2;
        together_node_ +=
            near_node_[expert_of(copy) * nodes_ + node_of(rank_of(copy))] / n_copies_[expert_of(copy)] / 2;
      }
    update_largest();
  }

  /// near_rank_[e, r]: tokens with e that another expert's copies at r would take, near_node_ likewise.
  void add_near(const PlacedCopy& copy, double sign) {
    if (!knows_pairs()) return;
    const std::size_t of = expert_of(copy);
    const double part = sign / n_copies_[of];
    for (std::size_t e = 0; e < experts_; ++e) {
      if (e == of) continue;
      near_rank_[e * ranks_ + rank_of(copy)] += part * pair(e, of);
      near_node_[e * nodes_ + node_of(rank_of(copy))] += part * pair(e, of);
    }
  }

  void update_largest() {
    largest_sum_ = 0;
    for (std::size_t s = 0; s < steps_; ++s) {
      largest_[s] = {};
      for (std::size_t r = 0; r < ranks_; ++r) {
        Largest next{rank_load_[r * steps_ + s], r};
        for (Largest& kept : largest_[s])
          if (next.load > kept.load) std::swap(next, kept);
      }
      largest_sum_ += largest_[s][0].load;
    }
    squares_ = std::inner_product(rank_load_.begin(), rank_load_.end(), rank_load_.begin(), 0.0);
    objective_ = scaled(largest_sum_, together_rank_, together_node_);
  }

  double scaled(double largest_sum, double together_rank, double together_node) const {
    return largest_sum * scale_.per_load + scale_.constant - together_rank * scale_.per_rank_pair -
           together_node * scale_.per_node_pair;
  }

  double largest_but(std::size_t step, std::size_t r, std::size_t q) const {
    for (const Largest& kept : largest_[step])
      if (kept.rank != r && kept.rank != q) return kept.load;
    return 0;
  }

  /// Whether a change that brings a copy of `a` from rank r to q and one of `b`, if any, back, is for the better.
  bool is_better(std::size_t a, std::optional<std::size_t> b, std::size_t r, std::size_t q,
                 const PairsTogether& more) const {
    double largest_sum = 0;
    double squares = 0;
    for (std::size_t s = 0; s < steps_; ++s) {
      const double shift = share(a, s) - (b ? share(*b, s) : 0);
      const double from = rank_load_[r * steps_ + s];
      const double to = rank_load_[q * steps_ + s];
      largest_sum += std::max({from - shift, to + shift, largest_but(s, r, q)});
      squares += 2 * shift * (shift - from + to);
    }
    const double after = scaled(largest_sum, together_rank_ + more.on_rank, together_node_ + more.on_node);
    return after < objective_ - kLeastGain || (after < objective_ + kLeastGain && squares < -1e-9 * squares_);
  }

  /// What changing a copy's place to rank q adds to the pairs together.
  PairsTogether gain(const PlacedCopy& copy, std::size_t q) const {
    if (!knows_pairs()) return {};
    const std::size_t e = expert_of(copy);
    const std::size_t r = rank_of(copy);
    return {(near_rank_[e * ranks_ + q] - near_rank_[e * ranks_ + r]) / n_copies_[e],
            (near_node_[e * nodes_ + node_of(q)] - near_node_[e * nodes_ + node_of(r)]) / n_copies_[e]};
  }

  void put(std::size_t i, std::size_t rank) {
    PlacedCopy& copy = copies_[i];
    const PairsTogether more = gain(copy, rank);
    together_rank_ += more.on_rank;
    together_node_ += more.on_node;
    add_near(copy, -1);
    held_[place(copy)] = 0;
    --copies_of_rank_[rank_of(copy)];
    add_load(rank_of(copy), expert_of(copy), -1);
    copy.rank = static_cast<std::int32_t>(rank);
    add_near(copy, 1);
    held_[place(copy)] = 1;
    ++copies_of_rank_[rank];
    add_load(rank, expert_of(copy), 1);
  }

  bool try_move(std::size_t i, std::int32_t rank) {
    const PlacedCopy copy = copies_[i];
    const auto to = static_cast<std::size_t>(rank);
    if (rank == copy.rank || copies_of_rank_[to] >= room_ || held_[expert_of(copy) * ranks_ + to] != 0) return false;
    if (!is_better(expert_of(copy), std::nullopt, rank_of(copy), to, gain(copy, to))) return false;
    put(i, to);
    update_largest();
    return true;
  }

  bool can_swap(std::size_t i, std::size_t j) const {
    const PlacedCopy& a = copies_[i];
    const PlacedCopy& b = copies_[j];
    return a.rank != b.rank && a.expert != b.expert && held_[expert_of(a) * ranks_ + rank_of(b)] == 0 &&
           held_[expert_of(b) * ranks_ + rank_of(a)] == 0;
  }
  void swap(std::size_t i, std::size_t j) {
    const std::size_t rank = rank_of(copies_[i]);
    put(i, rank_of(copies_[j]));
    put(j, rank);
    update_largest();
  }
  bool try_swap(std::size_t i, std::size_t j) {
    if (!can_swap(i, j)) return false;
    const PlacedCopy& a = copies_[i];
    const PlacedCopy& b = copies_[j];
    const PairsTogether of_a = gain(a, rank_of(b));
    const PairsTogether of_b = gain(b, rank_of(a));
    // Both gains count the two together where one arrives and the other leaves.
    const double both = 2 * pair(expert_of(a), expert_of(b)) / n_copies_[expert_of(a)] / n_copies_[expert_of(b)];
    const bool one_node = task_.node_of(a.rank) == task_.node_of(b.rank);
    if (!is_better(expert_of(a), expert_of(b), rank_of(a), rank_of(b),
                   {of_a.on_rank + of_b.on_rank - both, of_a.on_node + of_b.on_node - (one_node ? 0 : both)}))
      return false;
    swap(i, j);
    return true;
  }

  /// A copy that is not its expert's only one becomes one of an expert of a rank that is the most loaded in some step.
  bool try_conversions(std::size_t i) {
    const std::size_t from = expert_of(copies_[i]);
    const std::size_t rank = rank_of(copies_[i]);
    for (std::size_t to = 0; to < experts_; ++to) {
      if (n_copies_[from] < 2) return false;
      if (held_[to * ranks_ + rank] != 0 || !lies_on_a_largest(to)) continue;
      if (largest_sum_if_converted(i, to) > largest_sum_ * (1 + kLeastGain)) continue;
      const double objective = objective_;
      const double squares = squares_;
      convert(i, to);
      if (objective_ < objective - kLeastGain ||
          (objective_ < objective + kLeastGain && squares_ < squares * (1 - 1e-9)))
        return true;
      convert(i, from);
    }
    return false;
  }
  bool lies_on_a_largest(std::size_t expert) const {
    return std::any_of(largest_.begin(), largest_.end(),
                       [&](const auto& of_step) { return held_[expert * ranks_ + of_step[0].rank] != 0; });
  }
  double largest_sum_if_converted(std::size_t i, std::size_t to) const {
    const std::size_t from = expert_of(copies_[i]);
    double sum = 0;
    for (std::size_t s = 0; s < steps_; ++s) {
      const double of_from = load_[from * steps_ + s] / (n_copies_[from] - 1);
      const double of_to = load_[to * steps_ + s] / (n_copies_[to] + 1);
      double largest = 0;
      for (std::size_t r = 0; r < ranks_; ++r) {
        double load = rank_load_[r * steps_ + s];
        if (held_[from * ranks_ + r] != 0) load += of_from - share(from, s);
        if (held_[to * ranks_ + r] != 0) load += of_to - share(to, s);
        if (r == rank_of(copies_[i])) load += of_to - of_from;
        largest = std::max(largest, load);
      }
      sum += largest;
    }
    return sum;
  }
  void convert(std::size_t i, std::size_t to) {
    PlacedCopy& copy = copies_[i];
    --n_copies_[expert_of(copy)];
    held_[place(copy)] = 0;
    copy.expert = static_cast<std::int32_t>(to);
    ++n_copies_[to];
    held_[place(copy)] = 1;
    count();
  }

  struct Largest {
    double load = -1;
    std::size_t rank = std::numeric_limits<std::size_t>::max();
  };

  const LayerDemand& demand_;
  const PlacementTask& task_;
  const Scale& scale_;
  std::size_t experts_, ranks_, nodes_, steps_;
  int room_;
  std::vector<double> load_;  // [E, S]
  std::vector<PlacedCopy> copies_;
  std::vector<int> n_copies_;        // [E]
  std::vector<std::uint8_t> held_;   // [E, R] whether the rank has a copy
  std::vector<int> copies_of_rank_;  // [R]
  std::vector<double> rank_load_;    // [R, S]
  std::vector<double> near_rank_;    // [E, R]
  std::vector<double> near_node_;    // [E, nodes]
  double together_rank_ = 0, together_node_ = 0;
  std::vector<std::array<Largest, 3>> largest_;  // [S] ranks of largest load, descending: enough to leave two out
  double largest_sum_ = 0, squares_ = 0, objective_ = 0;
};

/// Branch and bound over all plans: experts in order of load, each given every set of ranks that it may have.
class ExactSearch {
 public:
  ExactSearch(const LayerDemand& demand, const PlacementTask& task, const Scale& scale, std::uint64_t most_nodes)
      : demand_(demand),
        task_(task),
        scale_(scale),
        nodes_left_(most_nodes),
        plan_(demand.load.size()),
        held_(static_cast<std::size_t>(task.ranks), 0),
        rank_load_(n_steps(demand), std::vector<double>(held_.size(), 0)),
        order_(demand.load.size()) {
    std::iota(order_.begin(), order_.end(), std::size_t{0});
    std::stable_sort(order_.begin(), order_.end(),
                     [&](std::size_t a, std::size_t b) { return demand.load[a] > demand.load[b]; });
    for (std::size_t s = 0; s < rank_load_.size(); ++s)
      least_load_.push_back(least_largest_load(step_load(demand, s), task));
  }

  /// A plan whose objective is below `best`, the best there is, or nothing when there is none. complete() says whether
  /// all were looked at.
  std::optional<LayerPlan> below(double best) {
    best_ = best - kLeastGain;
    place(0, task_.replicas, 0);
    return found_;
  }
  bool complete() const { return nodes_left_ > 0; }

 private:
  /// Gives the place-th expert its ranks. apart: weighted share of pairs apart so far.
  void place(std::size_t place_, int replicas_left, double apart) {
    if (place_ == order_.size()) {
      if (replicas_left > 0) return;
      double largest_sum = 0;
      for (const std::vector<double>& of_step : rank_load_)
        largest_sum += *std::max_element(of_step.begin(), of_step.end());
      const double objective = largest_sum * scale_.per_load + apart;
      if (objective >= best_) return;
      best_ = objective;
      found_ = plan_;
      return;
    }
    const auto behind = static_cast<int>(order_.size() - place_) - 1;
    for (int copies = 1; copies <= std::min(replicas_left + 1, task_.ranks); ++copies)
      if (replicas_left - (copies - 1) <= behind * (task_.ranks - 1))
        choose(place_, copies, 0, replicas_left - (copies - 1), apart);
  }

  /// Chooses `copies` more ranks, from `first` on.
  void choose(std::size_t place_, int copies, std::int32_t first, int replicas_left, double apart) {
    if (nodes_left_ == 0) return;
    const std::size_t expert = order_[place_];
    std::vector<std::int32_t>& ranks = plan_[expert];
    if (copies == 0) {
      --nodes_left_;
      visit(place_, replicas_left, apart);
      return;
    }
    for (std::int32_t rank = first; rank < task_.ranks; ++rank) {
      if (held_[static_cast<std::size_t>(rank)] >= task_.capacity(static_cast<int>(plan_.size())) ||
          is_like_earlier(rank, ranks))
        continue;
      ranks.push_back(rank);
      choose(place_, copies - 1, rank + 1, replicas_left, apart);
      ranks.pop_back();
    }
  }

  /// Empty ranks of a node are alike: they are taken in order.
  bool is_like_earlier(std::int32_t rank, const std::vector<std::int32_t>& chosen) const {
    if (held_[static_cast<std::size_t>(rank)] > 0 || rank == 0 || task_.node_of(rank) != task_.node_of(rank - 1))
      return false;
    return held_[static_cast<std::size_t>(rank) - 1] == 0 && (chosen.empty() || chosen.back() != rank - 1);
  }

  void visit(std::size_t place_, int replicas_left, double apart) {
    const std::size_t expert = order_[place_];
    const std::vector<std::int32_t>& ranks = plan_[expert];
    add_load(expert, 1);
    double largest_sum = 0;
    for (std::size_t s = 0; s < rank_load_.size(); ++s)
      largest_sum += std::max(least_load_[s], *std::max_element(rank_load_[s].begin(), rank_load_[s].end()));
    for (std::size_t before = 0; before < place_ && scale_.constant > 0; ++before) {
      const std::size_t other = order_[before];
      const PairsTogether together = copies_together(ranks, plan_[other], task_);
      const double pair = demand_.pairs[expert * plan_.size() + other];
      apart += pair * (scale_.per_rank_pair * (1 - together.on_rank) + scale_.per_node_pair * (1 - together.on_node));
    }
    if (largest_sum * scale_.per_load + apart < best_) {
      for (const std::int32_t rank : ranks) ++held_[static_cast<std::size_t>(rank)];
      place(place_ + 1, replicas_left, apart);
      for (const std::int32_t rank : ranks) --held_[static_cast<std::size_t>(rank)];
    }
    add_load(expert, -1);
  }

  void add_load(std::size_t expert, double sign) {
    const std::vector<std::int32_t>& ranks = plan_[expert];
    for (std::size_t s = 0; s < rank_load_.size(); ++s)
      for (const std::int32_t rank : ranks)
        rank_load_[s][static_cast<std::size_t>(rank)] +=
            sign * step_load(demand_, s)[expert] / static_cast<double>(ranks.size());
  }

  const LayerDemand& demand_;
  const PlacementTask& task_;
  const Scale& scale_;
  std::uint64_t nodes_left_;
  LayerPlan plan_;
  std::vector<int> held_;                       // [R]
  std::vector<std::vector<double>> rank_load_;  // [S] of [R]
  std::vector<std::size_t> order_;
  std::vector<double> least_load_;  // [S]
  double best_ = 0;
  std::optional<LayerPlan> found_;
};

/// The best plan of the other methods.
LayerPlan best_of_methods(const LayerDemand& demand, const PlacementTask& task, const ObjectiveWeights& weights) {
  LayerPlan best;
  double least = std::numeric_limits<double>::infinity();
  for (const PlacementMethod method :
       {PlacementMethod::greedy, PlacementMethod::eplb, PlacementMethod::eplb_hierarchical,
        PlacementMethod::round_robin, PlacementMethod::contiguous}) {
    if (why_undefined(method, task, static_cast<int>(demand.load.size()))) continue;
    LayerPlan plan = place_by(method, demand.load, task);
    const double objective = placement_objective(plan, demand, task, weights);
    if (objective >= least) continue;
    least = objective;
    best = std::move(plan);
  }
  return best;
}

}  // namespace

PairsTogether pairs_together(const LayerPlan& plan, const LayerDemand& demand, const PlacementTask& task) {
  PairsTogether sum;
  const double all = sum_of_pairs(demand);
  if (all == 0) return sum;
  for (std::size_t i = 0; i < plan.size(); ++i)
    for (std::size_t j = 0; j < i; ++j) {
      const PairsTogether together = copies_together(plan[i], plan[j], task);
      sum.on_rank += demand.pairs[i * plan.size() + j] * together.on_rank / all;
      sum.on_node += demand.pairs[i * plan.size() + j] * together.on_node / all;
    }
  return sum;
}

double placement_objective(const LayerPlan& plan, const LayerDemand& demand, const PlacementTask& task,
                           const ObjectiveWeights& weights) {
  const Scale scale(demand, task, weights);
  double largest_sum = 0;
  for (std::size_t s = 0; s < n_steps(demand); ++s) {
    const std::vector<double> loads = rank_loads(plan, step_load(demand, s), task.ranks);
    largest_sum += *std::max_element(loads.begin(), loads.end());
  }
  const double balance = largest_sum * scale.per_load;
  if (scale.constant == 0) return balance;
  const PairsTogether together = pairs_together(plan, demand, task);
  return balance + weights.ranks * (1 - together.on_rank) + weights.nodes * (1 - together.on_node);
}

double least_balance(const LayerDemand& demand, const PlacementTask& task) {
  double sum = 0;
  for (std::size_t s = 0; s < n_steps(demand); ++s) sum += least_largest_load(step_load(demand, s), task);
  return sum * Scale(demand, task, {}).per_load;
}

SearchResult search_placement(const LayerDemand& demand, const PlacementTask& task, const ObjectiveWeights& weights,
                              const SearchEffort& effort) {
  const Scale scale(demand, task, weights);
  const auto descended = [&](const LayerPlan& from, std::optional<std::uint64_t> round) {
    MovingPlan moving(from, demand, task, scale);
    if (round) {
      std::mt19937_64 random = random_stream(effort.seed, "placement", *round);
      for (int swaps = 0; swaps < 3; ++swaps) moving.disturb(random);
    }
    moving.descend();
    return SearchResult{moving.plan(), moving.objective(), false};
  };
  SearchResult result = descended(best_of_methods(demand, task, weights), std::nullopt);
  // As many disturbances as a layer of this size can have in about the same time.
  const auto experts = static_cast<int>(demand.load.size());
  const auto copies = static_cast<std::uint64_t>(task.physical(experts));
  const std::uint64_t rounds = std::clamp<std::uint64_t>(200'000 / (copies * copies), 2, 50);
  for (std::uint64_t round = 0; round < rounds; ++round) {
    SearchResult other = descended(result.plan, round);
    if (other.objective < result.objective - kLeastGain) result = std::move(other);
  }
  if (effort.exact_nodes > 0 && experts <= kMostExactExperts && task.ranks <= kMostExactRanks &&
      task.replicas <= kMostExactReplicas) {
    ExactSearch exact(demand, task, scale, effort.exact_nodes);
    if (std::optional<LayerPlan> better = exact.below(result.objective)) result.plan = *std::move(better);
    result.exact = exact.complete();
  }
  result.objective = placement_objective(result.plan, demand, task, weights);
  // No pair apart, and no load above what every plan has somewhere.
  if (result.objective <= least_balance(demand, task) + kLeastGain) result.exact = true;
  return result;
}

}  // namespace switchyard
