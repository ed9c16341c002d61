#include <omp.h>

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <iostream>
#include <iterator>
#include <numeric>
#include <optional>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "io/durable.h"
#include "io/placement_file.h"
#include "io/routing_reader.h"
#include "io/stats_file.h"
#include "jobs/command.h"
#include "jobs/machine.h"
#include "jobs/options.h"
#include "jobs/place_summary.h"
#include "jobs/version.h"
#include "parallel/communicator.h"
#include "parallel/error.h"
#include "pipeline/analysis/experiment.h"
#include "pipeline/analysis/placement_check.h"
#include "pipeline/analysis/placement_study.h"
#include "pipeline/analysis/placement_study_tables.h"
#include "pipeline/analysis/placement_tables.h"
#include "pipeline/analysis/statistics.h"

namespace switchyard {
namespace {

OptionParser make_parser() {
  OptionParser parser(
      "place", "place STATS|RUN --ranks R [options]",
      "Says which experts should lie on which rank: places each MoE layer's experts by every method, and tells how "
      "balanced the ranks would be, how many\n"
      "ranks and nodes a token would reach, and, where the statistics hold a cost model that explains half of the "
      "seconds' variance, how long a step would take. "
      "Methods:\n"
      "  contiguous         runs of experts in order, as engines begin with\n"
      "  round_robin        dealt to ranks in turn\n"
      "  greedy             the most loaded expert first, each to the least loaded rank\n"
      "  eplb               DeepSeek's load balancer, its global policy\n"
      "  eplb_hierarchical  the same with groups of experts kept on a node (--groups)\n"
      "  search             small max/mean and few pairs of a token's experts apart; proven best where a layer is "
      "small\n"
      "Of a run's folder, stats.h5 is taken, and the steps and token rows of its record: they tell the balance within "
      "steps, and ranks and nodes exactly.\n"
      "--check tells how what is predicted for a plan came true in a run with it.",
      "Examples:\n  switchyard place run/stats.h5 --ranks 8 --placement placement.json\n  mpirun -n 8 switchyard route "
      "--placement placement.json ...\n  switchyard place run --ranks 64 --nodes 8 --replicas 64 --method eplb "
      "--drift 16 --holdout -o place.h5\n  switchyard place run --ranks 8 --check run-with-placement -o place.h5\n  "
      "switchyard place run --simulate --ranks 1024 --nodes 128 --method greedy -o "
      "simulation.h5\n");
  auto add = parser.options().add_options();
  add("stats", po::value<std::string>()->required()->value_name("STATS|RUN"),
      "stats.h5 of route or reduce, also of published counts, or the folder of a run; also without --stats");
  add("ranks", po::value<int>()->required()->value_name("R"), "ranks that hold experts");
  add("nodes", po::value<int>()->default_value(1)->value_name("N"), "nodes, equally many ranks in order on each");
  add("replicas", po::value<int>()->default_value(0)->value_name("P"),
      "copies of experts beyond the first, in each layer; an expert's tokens are shared equally by its copies");
  add("copies", po::value<std::string>()->default_value("token")->value_name("token|local"),
      "which copy of an expert a token of a replayed record goes to, as in route");
  add("groups", po::value<int>()->default_value(1)->value_name("G"),
      "equal groups of experts in order, which eplb_hierarchical keeps on a node each");
  add("experts-per-rank", po::value<int>()->default_value(0)->value_name("N"),
      "most copies of a layer on a rank, for greedy and search: memory (0: (experts + replicas) / ranks, rounded up)");
  add("method", po::value<std::string>()->default_value("search")->value_name("NAME"), "whose plan --placement writes");
  add("dataset", po::value<std::string>()->value_name("NAME"), "fit on this dataset alone (default: on all together)");
  add("placement", po::value<std::string>()->value_name("FILE"),
      "write the plan as JSON, which route --placement reads");
  add("output,o", po::value<std::string>()->value_name("FILE"), "write every figure as HDF5, which report draws");
  add("rank-weight", po::value<double>()->default_value(0.1)->value_name("W"),
      "search makes max/mean + W x (share of a token's pairs of experts on two ranks) + ...");
  add("node-weight", po::value<double>()->default_value(0.3)->value_name("W"),
      "... W x (share of them on two nodes) small; 0 and 0: balance alone");
  add("fit-steps", po::value<std::size_t>()->default_value(0)->value_name("N"),
      "search balances N recorded steps of a run, evenly spaced, instead of the sums over all text: sum over steps of "
      "the largest rank load over the sum of the mean (0: the sums)");
  add("seed", po::value<std::uint64_t>()->default_value(0)->value_name("N"), "of search's random changes");
  add("step-tokens", po::value<std::string>()->value_name("N[,N...]"),
      "tokens of all ranks in a step: of the one whose time is predicted and whose rows are replayed (default: the "
      "recorded mean), of each size that --simulate replays (default: 512,4096,32768)");
  add("simulate", po::bool_switch(),
      "instead of one placement: replay the record, or draw steps by the counts, on 1, 2, 4, ... up to --ranks virtual "
      "ranks, of as many a node as --ranks and --nodes say; with fewer copies than ranks, replicas make one for each");
  add("drift", po::value<std::size_t>()->value_name("N"),
      "also how a placement ages over a run: block by block, of one fitted on the first N blocks, one fitted anew "
      "every N blocks on the N before, and one fitted on the block itself");
  add("holdout", po::bool_switch(),
      "also what placements promise and give on other text: fitted on one half of the documents and on the other, and "
      "on one dataset and on every other");
  add("check", po::value<std::string>()->value_name("RUN"),
      "also how predictions came true: of the placement of RUN, a run of the same model on R ranks, on any text, what "
      "is predicted from STATS, what RUN measured, and the error, by dataset and layer; nodes are those of --nodes");
  add("max-tokens", po::value<std::uint64_t>()->default_value(1'000'000)->value_name("N"),
      "most token rows of a run to read");
  add("threads", po::value<int>()->value_name("N"), "threads (default: the CPUs it may use)");
  add("quiet", po::bool_switch(), "no summary");
  parser.positional("stats", 1);
  return parser;
}

/// A statistics file, and the run that it is of where a run's folder was named.
struct Source {
  std::filesystem::path stats;
  std::optional<std::filesystem::path> run;
  Statistics statistics;
  std::vector<std::size_t> datasets;  // that are asked for
  std::optional<std::string> corpus;  // likewise; none: all
  std::optional<CostModel> cost;
};

std::vector<std::size_t> chosen_datasets(const OptionParser& parser, const Statistics& statistics) {
  std::vector<std::size_t> chosen;
  std::string known;
  for (std::size_t d = 0; d < statistics.datasets.size(); ++d) {
    const Dataset& dataset = statistics.datasets[d];
    known.append(known.empty() ? "" : ", ").append(dataset.name);
    if (!parser.has("dataset") || parser.get<std::string>("dataset") == dataset.name) chosen.push_back(d);
  }
  if (chosen.empty())
    throw UsageError("no dataset is named '" + parser.get<std::string>("dataset") + "'", "--dataset",
                     "give one of " + known);
  return chosen;
}

Source read_source(const OptionParser& parser) {
  Source source;
  const std::filesystem::path word = parser.get<std::string>("stats");
  if (std::filesystem::is_directory(word)) source.run = word;
  source.stats = source.run ? word / "stats.h5" : word;
  const std::vector<Table> tables = read_tables(source.stats, std::string(kStatsFormat));
  source.statistics = from_statistics_tables(tables, source.stats.string());
  if (source.statistics.model.n_moe_layers() == 0)
    throw Error("is of a dense model, which has no experts to place", source.stats.string(),
                "give statistics of a mixture-of-experts model");
  source.datasets = chosen_datasets(parser, source.statistics);
  if (parser.has("dataset")) source.corpus = parser.get<std::string>("dataset");
  source.cost = cost_model_of(TableIndex(tables, "", source.stats.string()), source.datasets);
  return source;
}

PlacementTask task_of(const OptionParser& parser) {
  return {.ranks = parser.get<int>("ranks"),
          .nodes = parser.get<int>("nodes"),
          .replicas = parser.get<int>("replicas"),
          .groups = parser.get<int>("groups"),
          .experts_per_rank = parser.get<int>("experts-per-rank")};
}

ObjectiveWeights weights_of(const OptionParser& parser) {
  const ObjectiveWeights weights{parser.get<double>("rank-weight"), parser.get<double>("node-weight")};
  if (!(weights.ranks >= 0) || !(weights.nodes >= 0))
    throw UsageError("is below 0", weights.ranks >= 0 ? "--node-weight" : "--rank-weight", "give 0 or more");
  return weights;
}

/// --step-tokens; empty when it was not given.
std::vector<std::size_t> step_sizes(const OptionParser& parser) {
  std::vector<std::size_t> sizes;
  if (!parser.has("step-tokens")) return sizes;
  std::istringstream words(parser.get<std::string>("step-tokens"));
  for (std::string word; std::getline(words, word, ',');) {
    std::size_t size = 0;
    const char* end = word.data() + word.size();
    if (std::from_chars(word.data(), end, size).ptr != end || size == 0)
      throw UsageError("'" + word + "' is no number of tokens", "--step-tokens", "give N or N,N,..., each above 0");
    sizes.push_back(size);
  }
  return sizes;
}

/// Of the one step that is predicted: what was asked for, else the recorded mean.
std::optional<double> step_tokens(const OptionParser& parser, const Source& source) {
  const std::vector<std::size_t> sizes = step_sizes(parser);
  if (sizes.size() > 1) throw UsageError("names several sizes", "--step-tokens", "give one, or --simulate");
  if (!sizes.empty()) return static_cast<double>(sizes.front());
  double tokens = 0;
  double steps = 0;
  for (const std::size_t d : source.datasets) {
    tokens += static_cast<double>(source.statistics.datasets[d].accumulators.n_tokens());
    steps += static_cast<double>(source.statistics.datasets[d].ranks.steps);
  }
  return steps > 0 ? std::optional(tokens / steps) : std::nullopt;
}

/// Of one dispatched row: what was recorded, else bf16 values of the model's width, where that is known.
std::optional<double> row_bytes(const Source& source) {
  for (const std::size_t d : source.datasets)
    if (source.statistics.datasets[d].ranks.row_bytes > 0)
      return static_cast<double>(source.statistics.datasets[d].ranks.row_bytes);
  return source.statistics.model.d_model > 0 ? std::optional(2.0 * source.statistics.model.d_model) : std::nullopt;
}

/// Of a run.
bool has_steps(const Source& source) {
  return RoutingReader(*source.run / "routing.h5").contains("/dispatch/expert_slots");
}
bool has_rows(const Source& source) { return RoutingReader(*source.run / "routing.h5").level() != RecordLevel::counts; }

void require_folder(const OptionParser& parser, const char* option) {
  if (!parser.has(option)) return;
  const std::filesystem::path path = std::filesystem::absolute(parser.get<std::string>(option));
  if (!std::filesystem::is_directory(path.parent_path()))
    throw Error("its folder is not there", path.string(),
                std::string("make the folder, or name another file after --") + option);
}

/// What is asked for, computed, printed and written.
class PlaceJob {
 public:
  PlaceJob(const OptionParser& parser, const Source& source)
      : parser_(parser),
        source_(source),
        task_(task_of(parser)),
        choice_{parse_placement_method(parser.get<std::string>("method")),
                weights_of(parser),
                {.seed = parser.get<std::uint64_t>("seed")},
                parse_copy_rule(parser.get<std::string>("copies"))},
        layers_(layer_demands(source.statistics, source.datasets)) {
    for (const LayerDemand& layer : layers_)
      if (std::accumulate(layer.load.begin(), layer.load.end(), 0.0) == 0)
        throw Error("holds no slots to place experts by", source.stats.string(), "route or reduce some tokens first");
    for (const std::size_t d : source.datasets) names_.push_back(source.statistics.datasets[d].name);
  }

  void run() {
    if (parser_.flag("simulate")) {
      simulate_ranks();
      return;
    }
    require_defined();
    if (parser_.get<std::size_t>("fit-steps") > 0)
      add_steps(steps("--fit-steps"), parser_.get<std::size_t>("fit-steps"), layers_);
    place_all();
    predict_time();
    replay();
    // Many placements: a short look at whether each is the best.
    PlacementChoice quick = choice_;
    quick.effort.exact_nodes = 5000;
    if (parser_.has("check")) check_rerun();
    if (parser_.has("drift")) drift_ = placement_drift(steps("--drift"), task_, quick, drift_blocks());
    if (parser_.flag("holdout")) {
      std::vector<PlacementMethod> methods;
      for (const MethodResult& method : methods_) methods.push_back(method.placement.method);
      holdout_ = placement_holdout(source_.statistics, source_.datasets, task_, quick, methods);
    }
  }

  void print() const {
    if (simulation_) {
      print_simulation(*simulation_, names_, source_.run && has_rows(source_));
      return;
    }
    PlaceSummary summary;
    summary.model = source_.statistics.model;
    summary.task = task_;
    summary.datasets = names_;
    for (const std::size_t d : source_.datasets)
      summary.tokens += static_cast<double>(source_.statistics.datasets[d].accumulators.n_tokens());
    summary.undefined = undefined_;
    summary.least_load = least_load_;
    summary.row_bytes = row_bytes(source_);
    summary.cost = source_.cost;
    summary.step_tokens = step_tokens(parser_, source_);
    summary.recorded_steps = recorded_steps_;
    summary.replayed_tokens = replayed_tokens_;
    print_methods(summary, methods_, chosen_place_);
    if (check_) print_check(*check_, parser_.get<std::string>("check"));
    if (drift_) print_drift(*drift_, drift_blocks());
    if (holdout_) print_holdout(*holdout_, names_, choice_.method);
  }

  void write() const {
    if (parser_.has("placement"))
      write_whole(parser_.get<std::string>("placement"),
                  to_placement_json(as_placement(methods_[chosen_place_].placement.layers, task_.ranks)));
    if (!parser_.has("output")) return;
    Experiment experiment;
    experiment.kind = simulation_ ? "simulation" : "placement";
    experiment.model = source_.statistics.model;
    for (const std::string& name : names_)
      experiment.settings["datasets"].append(experiment.settings["datasets"].empty() ? "" : ", ").append(name);
    for (const char* option : {"ranks", "nodes", "replicas", "groups", "experts-per-rank", "method", "copies",
                               "rank-weight", "node-weight", "fit-steps", "seed"})
      experiment.settings[option] = parser_.effective().at(option);
    std::vector<std::pair<std::string, std::string>> groups;
    const auto add = [&](const char* group, const char* about, std::vector<Table> tables) {
      groups.emplace_back(group, about);
      std::move(tables.begin(), tables.end(), std::back_inserter(experiment.tables));
    };
    if (!methods_.empty())
      add("/placement", "placements of the experts by several methods, and what they give",
          method_tables(methods_, chosen_place_, task_.ranks, layers_, least_load_));
    if (simulation_)
      add("/simulation", "balance and traffic of recorded or drawn routing on virtual ranks",
          simulation_tables(*simulation_));
    if (check_) {
      experiment.settings["check"] = parser_.get<std::string>("check");
      experiment.settings["check-plan"] = check_->plan;
      add("/check", "what was predicted for the placement of a run, and what it measured", check_tables(*check_));
    }
    if (drift_) add("/drift", "balance of a run's blocks by when experts were placed", drift_tables(*drift_));
    if (holdout_)
      add("/holdout", "balance on text that a placement was not fitted on", holdout_tables(*holdout_, names_));
    write_experiment(parser_.get<std::string>("output"), experiment, groups,
                     std::string("switchyard ") + version() + " (" + git_commit() + ")");
  }

 private:
  void require_defined() const {
    require_possible(task_, source_.statistics.model.n_experts);
    if (const auto reason = why_undefined(choice_.method, task_, source_.statistics.model.n_experts))
      throw UsageError(std::string(to_string(choice_.method)) + " is not defined: " + *reason, "--method",
                       "change --ranks, --nodes, --replicas or --groups, or take another method");
  }

  void place_all() {
    for (const LayerDemand& layer : layers_)
      least_load_.push_back(least_largest_load(layer.load, task_) * task_.ranks /
                            std::accumulate(layer.load.begin(), layer.load.end(), 0.0));
    for (std::size_t m = 0; m < kPlacementMethods.size(); ++m) {
      const auto method = static_cast<PlacementMethod>(m);
      if (const auto reason = why_undefined(method, task_, source_.statistics.model.n_experts)) {
        undefined_.push_back(std::string(to_string(method)) + ", as " + *reason);
        continue;
      }
      if (method == choice_.method) chosen_place_ = methods_.size();
      Placement placement = place_layers(method, layers_, task_, choice_.weights, choice_.effort);
      PlacementFigures figures =
          placement_figures(placement.layers, layers_, task_, choice_.weights, source_.statistics.model.top_k);
      methods_.push_back({std::move(placement), std::move(figures), {}, {}, {}});
    }
  }

  void predict_time() {
    const std::optional<double> tokens = step_tokens(parser_, source_);
    if (!source_.cost || !tokens) return;
    for (MethodResult& method : methods_)
      method.step = predicted_step(method.placement.layers, layers_, task_, source_.statistics.model.top_k, *tokens,
                                   *source_.cost);
  }

  /// for_option: what needs them.
  StepSlots steps(const char* for_option) const {
    if (!source_.run)
      throw UsageError("needs the steps of a run", for_option, "name a run's folder instead of a statistics file");
    return switchyard::recorded_steps(*source_.run, source_.corpus);
  }
  std::size_t drift_blocks() const {
    if (parser_.get<std::size_t>("drift") == 0) throw UsageError("is 0", "--drift", "give at least 1 block");
    return parser_.get<std::size_t>("drift");
  }
  RoutedTokens rows() const {
    return read_routed_tokens(*source_.run, source_.corpus, parser_.get<std::uint64_t>("max-tokens"));
  }

  void replay() {
    if (source_.run && has_steps(source_)) {
      const StepSlots recorded = steps("");
      recorded_steps_ = recorded.steps();
      for (MethodResult& method : methods_)
        method.balance = balance_over_steps(recorded, method.placement.layers, task_.ranks, source_.cost);
    }
    if (!source_.run || !has_rows(source_)) return;
    const RoutedTokens routed = rows();
    replayed_tokens_ = routed.tokens();
    const auto of_step = static_cast<std::size_t>(step_tokens(parser_, source_).value_or(kStepTokens));
    for (MethodResult& method : methods_)
      method.traffic = replay_traffic(routed, method.placement.layers, task_, choice_.copies, of_step);
  }

  /// Throws unless the re-run is of the same model, on the ranks that are asked about.
  void require_comparable(const Rerun& rerun) const {
    ModelFacts model = rerun.model;
    model.name = source_.statistics.model.name;  // of its folder, which may have been moved
    if (model != source_.statistics.model)
      throw Error("was made with another model (" + rerun.model.name + ", " + rerun.model.family + ") than " +
                      source_.stats.string(),
                  rerun.folder.string(), "check a run of the same model");
    if (rerun.ranks != task_.ranks)
      throw UsageError(rerun.folder.string() + " had " + std::to_string(rerun.ranks) + " ranks", "--check",
                       "give --ranks " + std::to_string(rerun.ranks));
    const auto ranks = static_cast<std::size_t>(rerun.ranks);
    const bool on_nodes = std::ranges::max(rerun.rank_node) > 0;  // on one alone any nodes may be tried
    for (std::size_t r = 1; on_nodes && r < ranks; ++r)
      if ((rerun.rank_node[r] == rerun.rank_node[r - 1]) !=
          (task_.node_of(static_cast<int>(r)) == task_.node_of(static_cast<int>(r) - 1)))
        throw UsageError(rerun.folder.string() + " had rank " + std::to_string(r) + " and the one before it on " +
                             (rerun.rank_node[r] == rerun.rank_node[r - 1] ? "one node" : "two nodes"),
                         "--check", "give the nodes that it ran on with --nodes, ranks in order on each");
  }

  void check_rerun() {
    const Rerun rerun = read_rerun(parser_.get<std::string>("check"));
    require_comparable(rerun);
    PlacementTask task = task_;
    task.replicas = rerun.copies_of_layer() - rerun.model.n_experts;
    std::optional<StepSlots> recorded;
    if (source_.run && has_steps(source_)) recorded = steps("");
    std::optional<RoutedTokens> routed;
    if (source_.run && has_rows(source_)) routed = rows();
    check_ = check_placement(rerun,
                             {layers_, slots_of_corpora(source_.statistics, source_.datasets),
                              recorded ? &*recorded : nullptr, routed ? &*routed : nullptr, source_.cost},
                             task);
    for (const MethodResult& method : methods_)
      if (method.placement.layers == rerun.plans) check_->plan = std::string(to_string(method.placement.method));
  }

  void simulate_ranks() {
    for (const char* option : {"check", "drift", "holdout", "placement"})
      if (parser_.given(option))
        throw UsageError("is of one placement, --simulate of many", std::string("--") + option, "give one of the two");
    PlacementTask least = task_;
    least.replicas = std::max(task_.replicas, task_.ranks - source_.statistics.model.n_experts);
    require_possible(least, source_.statistics.model.n_experts);
    std::vector<std::size_t> sizes = step_sizes(parser_);
    if (sizes.empty()) sizes = {512, kStepTokens, 32768};
    std::optional<RoutedTokens> routed;
    if (source_.run && has_rows(source_)) routed = rows();
    simulation_ = simulate(layers_, source_.statistics.model.top_k, routed ? &*routed : nullptr, task_, choice_, sizes,
                           kDrawnSteps, source_.cost);
  }

  static constexpr std::size_t kStepTokens = 4096;
  static constexpr std::size_t kDrawnSteps = 100;

  const OptionParser& parser_;
  const Source& source_;
  PlacementTask task_;
  PlacementChoice choice_;
  std::vector<LayerDemand> layers_;
  std::vector<std::string> names_;  // of datasets
  std::vector<double> least_load_;  // [L] over the mean
  std::vector<MethodResult> methods_;
  std::vector<std::string> undefined_;
  std::size_t chosen_place_ = 0;  // among methods_
  std::size_t recorded_steps_ = 0, replayed_tokens_ = 0;
  std::optional<Simulation> simulation_;
  std::optional<PlacementCheck> check_;
  std::optional<Drift> drift_;
  std::optional<Holdout> holdout_;
};

}  // namespace

int run_place(const Arguments& arguments) {
  OptionParser parser = make_parser();
  if (!parser.parse(arguments)) return 0;
  const Communicator comm = Communicator::world();
  omp_set_num_threads(parser.has("threads") ? std::max(1, parser.get<int>("threads")) : default_threads(comm));
  if (comm.rank() != 0) return 0;
  for (const char* option : {"output", "placement"}) require_folder(parser, option);
  const Source source = read_source(parser);
  PlaceJob job(parser, source);
  job.run();
  job.write();
  if (parser.flag("quiet")) return 0;
  job.print();
  for (const char* option : {"placement", "output"})
    if (parser.has(option)) std::cout << option << ": " << parser.get<std::string>(option) << "\n";
  return 0;
}

}  // namespace switchyard
