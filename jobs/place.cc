#include <omp.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <numeric>
#include <optional>
#include <string>
#include <vector>

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
#include "pipeline/analysis/placement_tables.h"
#include "pipeline/analysis/statistics.h"

namespace switchyard {
namespace {

OptionParser make_parser() {
  OptionParser parser(
      "place", "place STATS|RUN --ranks R [options]",
      "Says which experts should lie on which rank: places each MoE layer's experts by every method, and tells how "
      "balanced the ranks would be, how many\n"
      "ranks and nodes a token would reach, and, where the statistics hold a cost model, how long a step would take. "
      "Methods:\n"
      "  contiguous         runs of experts in order, as engines begin with\n"
      "  round_robin        dealt to ranks in turn\n"
      "  greedy             the most loaded expert first, each to the least loaded rank\n"
      "  eplb               DeepSeek's load balancer, its global policy\n"
      "  eplb_hierarchical  the same with groups of experts kept on a node (--groups)\n"
      "  search             small max/mean and few pairs of a token's experts apart; proven best where a layer is "
      "small\n"
      "Of a run's folder, stats.h5 is taken, and the steps and token rows of its record: they tell the balance within "
      "steps, and ranks and nodes exactly.",
      "Examples:\n  switchyard place run/stats.h5 --ranks 8 --placement placement.json\n  mpirun -n 8 switchyard route "
      "--placement placement.json ...\n  switchyard place run --ranks 64 --nodes 8 --replicas 64 --method eplb -o "
      "place.h5\n");
  auto add = parser.options().add_options();
  add("stats", po::value<std::string>()->required()->value_name("STATS|RUN"),
      "stats.h5 of route or reduce, also of published counts, or the folder of a run; also without --stats");
  add("ranks", po::value<int>()->required()->value_name("R"), "ranks that hold experts");
  add("nodes", po::value<int>()->default_value(1)->value_name("N"), "nodes, equally many ranks in order on each");
  add("replicas", po::value<int>()->default_value(0)->value_name("P"),
      "copies of experts beyond the first, in each layer; an expert's tokens are shared equally by its copies");
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
  add("seed", po::value<std::uint64_t>()->default_value(0)->value_name("N"), "of search's random changes");
  add("step-tokens", po::value<double>()->value_name("N"),
      "tokens of all ranks in a step whose time is predicted (default: the recorded mean)");
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

std::optional<double> step_tokens(const OptionParser& parser, const Source& source) {
  if (parser.has("step-tokens")) return parser.positive_number("step-tokens");
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

bool has_steps(const Source& source) {
  return source.run && RoutingReader(*source.run / "routing.h5").contains("/dispatch/expert_slots");
}
bool has_rows(const Source& source) {
  return source.run && RoutingReader(*source.run / "routing.h5").level() != RecordLevel::counts;
}

void write_text(const std::filesystem::path& path, const std::string& text) {
  std::ofstream out(path);
  out << text;
  out.close();
  if (!out) throw Error("cannot write", path.string(), "check that the folder is writable and the disk has room");
}

void require_folder(const OptionParser& parser, const char* option) {
  if (!parser.has(option)) return;
  const std::filesystem::path path = std::filesystem::absolute(parser.get<std::string>(option));
  if (!std::filesystem::is_directory(path.parent_path()))
    throw Error("its folder is not there", path.string(),
                std::string("make the folder, or name another file after --") + option);
}

/// Every method's placement and figures, in one go.
class PlaceJob {
 public:
  PlaceJob(const OptionParser& parser, const Source& source)
      : parser_(parser),
        source_(source),
        task_(task_of(parser)),
        weights_(weights_of(parser)),
        chosen_(parse_placement_method(parser.get<std::string>("method"))) {
    const ModelFacts& model = source.statistics.model;
    require_possible(task_, model.n_experts);
    if (const auto reason = why_undefined(chosen_, task_, model.n_experts))
      throw UsageError(std::string(to_string(chosen_)) + " is not defined: " + *reason, "--method",
                       "change --ranks, --nodes, --replicas or --groups, or take another method");
    layers_ = layer_demands(source.statistics, source.datasets);
    for (const LayerDemand& layer : layers_) {
      const double slots = std::accumulate(layer.load.begin(), layer.load.end(), 0.0);
      if (slots == 0)
        throw Error("holds no slots to place experts by", source.stats.string(), "route or reduce some tokens first");
      least_load_.push_back(least_largest_load(layer.load, task_) * task_.ranks / slots);
    }
  }

  void place_all() {
    for (std::size_t m = 0; m < kPlacementMethods.size(); ++m) {
      const auto method = static_cast<PlacementMethod>(m);
      if (const auto reason = why_undefined(method, task_, source_.statistics.model.n_experts)) {
        undefined_.push_back(std::string(to_string(method)) + ", as " + *reason);
        continue;
      }
      if (method == chosen_) chosen_place_ = methods_.size();
      Placement placement =
          place_layers(method, layers_, task_, weights_, {.seed = parser_.get<std::uint64_t>("seed")});
      PlacementFigures figures =
          placement_figures(placement.layers, layers_, task_, weights_, source_.statistics.model.top_k);
      methods_.push_back({std::move(placement), std::move(figures), {}, {}, {}});
    }
    predict_time();
    replay();
  }

  void print() const {
    PlaceSummary summary;
    summary.model = source_.statistics.model;
    summary.task = task_;
    for (const std::size_t d : source_.datasets) {
      summary.datasets.push_back(source_.statistics.datasets[d].name);
      summary.tokens += static_cast<double>(source_.statistics.datasets[d].accumulators.n_tokens());
    }
    summary.undefined = undefined_;
    summary.least_load = least_load_;
    summary.row_bytes = row_bytes(source_);
    summary.cost = source_.cost;
    summary.step_tokens = step_tokens(parser_, source_);
    summary.recorded_steps = recorded_steps_;
    summary.replayed_tokens = replayed_tokens_;
    print_methods(summary, methods_, chosen_place_);
  }

  void write() const {
    if (parser_.has("placement"))
      write_text(parser_.get<std::string>("placement"),
                 placement_text(methods_[chosen_place_].placement.layers, task_.ranks));
    if (!parser_.has("output")) return;
    Experiment experiment;
    experiment.kind = "placement";
    experiment.model = source_.statistics.model;
    std::string names;
    for (const std::size_t d : source_.datasets)
      names.append(names.empty() ? "" : ", ").append(source_.statistics.datasets[d].name);
    for (const char* option :
         {"ranks", "nodes", "replicas", "groups", "experts-per-rank", "rank-weight", "node-weight", "seed"})
      experiment.settings[option] = parser_.effective().at(option);
    experiment.settings["datasets"] = names;
    experiment.tables = method_tables(methods_, chosen_place_, task_.ranks, layers_, least_load_);
    write_experiment(parser_.get<std::string>("output"), experiment,
                     {{"/placement", "placements of the experts by several methods, and what they give"}},
                     std::string("switchyard ") + version() + " (" + git_commit() + ")");
  }

 private:
  void predict_time() {
    const std::optional<double> tokens = step_tokens(parser_, source_);
    if (!source_.cost || !tokens) return;
    for (MethodResult& method : methods_)
      method.step = predicted_step(method.placement.layers, layers_, task_, source_.statistics.model.top_k, *tokens,
                                   *source_.cost);
  }

  void replay() {
    if (has_steps(source_)) {
      const StepSlots steps = switchyard::recorded_steps(*source_.run, source_.corpus);
      recorded_steps_ = steps.steps();
      for (MethodResult& method : methods_)
        method.balance = balance_over_steps(steps, method.placement.layers, task_.ranks, source_.cost);
    }
    if (!has_rows(source_)) return;
    const RoutedTokens routed =
        read_routed_tokens(*source_.run, source_.corpus, parser_.get<std::uint64_t>("max-tokens"));
    replayed_tokens_ = routed.tokens();
    const auto of_step = static_cast<std::size_t>(step_tokens(parser_, source_).value_or(4096));
    for (MethodResult& method : methods_)
      method.traffic = replay_traffic(routed, method.placement.layers, task_, std::max<std::size_t>(1, of_step));
  }

  const OptionParser& parser_;
  const Source& source_;
  PlacementTask task_;
  ObjectiveWeights weights_;
  PlacementMethod chosen_;
  std::vector<LayerDemand> layers_;
  std::vector<double> least_load_;  // [L] over the mean
  std::vector<MethodResult> methods_;
  std::vector<std::string> undefined_;
  std::size_t chosen_place_ = 0;  // among methods_
  std::size_t recorded_steps_ = 0, replayed_tokens_ = 0;
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
  job.place_all();
  job.write();
  if (parser.flag("quiet")) return 0;
  job.print();
  for (const char* option : {"placement", "output"})
    if (parser.has(option)) std::cout << option << ": " << parser.get<std::string>(option) << "\n";
  return 0;
}

}  // namespace switchyard
