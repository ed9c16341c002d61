#include <omp.h>

#include <algorithm>
#include <filesystem>
#include <iostream>
#include <string>
#include <vector>

#include "io/report/report_page.h"
#include "jobs/command.h"
#include "jobs/compare_options.h"
#include "jobs/format.h"
#include "jobs/machine.h"
#include "jobs/options.h"
#include "jobs/version.h"
#include "parallel/communicator.h"
#include "parallel/error.h"
#include "pipeline/analysis/compare_pairs.h"
#include "pipeline/analysis/experiment.h"
#include "pipeline/analysis/report_data.h"
#include "pipeline/reduce.h"

namespace switchyard {
namespace {

OptionParser make_parser() {
  OptionParser parser(
      "report", "report STATS|RUN|EXPERIMENT... -o report.html [options]",
      "Draws statistics as one HTML page that needs no network: load, uncertainty, comparison of datasets, tokens, "
      "paths, co-activation, repetition, ranks;\n"
      "beside them what experiments on the same model found, a file of each kind: ablation.h5, place.h5 and a "
      "simulation of it, probe.h5, weights.h5.\n"
      "Hover or arrow keys tell a figure's numbers; every figure can be had as CSV and SVG. Of a run's folder, its "
      "stats.h5 is taken.",
      "Examples:\n  switchyard report run -o report.html\n  switchyard report monday/stats.h5 tuesday/stats.h5 -o "
      "week.html --target-layer 15\n  mpirun -n 4 switchyard report all.h5 -o all.html --bootstrap 10000\n"
      "  switchyard report run ablation/ablation.h5 weights.h5 -o model.html\n");
  auto add = parser.options().add_options();
  add("stats", po::value<std::vector<std::string>>()->required()->value_name("STATS|RUN|EXPERIMENT"),
      "stats.h5 of route or reduce, the folder of a run, or the result of an experiment; also without --stats");
  add("output,o", po::value<std::string>()->required()->value_name("FILE"), "the page");
  add("target-layer", po::value<int>()->value_name("LAYER"),
      "decoder layer that figures of one layer show first (default: the middle one of the MoE layers)");
  add_compare_options(parser);
  add("threads", po::value<int>()->value_name("N"), "threads of each rank (default: the CPUs it may use)");
  add("quiet", po::bool_switch(), "no progress, no last line");
  parser.positional("stats", -1);
  return parser;
}

/// The place among MoE layers of --target-layer.
int target_layer(const OptionParser& parser, const std::vector<int>& moe_layers) {
  if (!parser.has("target-layer")) return static_cast<int>(moe_layers.size()) / 2;
  const int wanted = parser.get<int>("target-layer");
  const auto found = std::find(moe_layers.begin(), moe_layers.end(), wanted);
  if (found != moe_layers.end()) return static_cast<int>(found - moe_layers.begin());
  std::string there;
  for (const int layer : moe_layers) (there += ' ') += std::to_string(layer);
  throw UsageError("layer " + std::to_string(wanted) + " is no MoE layer of the model", "--target-layer",
                   moe_layers.empty() ? "leave it out: the model is dense" : "name one of:" + there);
}

/// Of every dataset, or of none where they cannot be compared: one dataset, no MoE layer, counts without documents.
std::vector<GroupedSlots> comparable(const Statistics& statistics) {
  std::vector<GroupedSlots> groups;
  if (statistics.datasets.size() < 2 || statistics.model.n_moe_layers() == 0) return groups;
  for (const Dataset& dataset : statistics.datasets) {
    groups.push_back(grouped_slots(dataset));
    if (groups.back().slots.empty()) return {};
  }
  return groups;
}

/// What the words name, told apart by what the files say of themselves.
struct Sources {
  std::vector<std::filesystem::path> statistics;
  std::vector<Experiment> experiments;
};

Sources read_sources(const std::vector<std::string>& words) {
  Sources sources;
  for (const std::filesystem::path word : words) {
    const std::string kind = experiment_kind(word);
    if (kind.empty()) {
      sources.statistics.push_back(std::filesystem::is_directory(word) ? word / "stats.h5" : word);
      continue;
    }
    const auto before = std::ranges::find(sources.experiments, kind, &Experiment::kind);
    if (before != sources.experiments.end())
      throw UsageError("is a second file of the kind " + kind + ", beside " + before->source, word.string(),
                       "a page shows one of each kind: make two pages");
    sources.experiments.push_back(read_experiment(word));
  }
  return sources;
}

/// The model that everything is about. Throws Error when an experiment was made on another one.
void require_one_model(const ModelFacts& model, const std::vector<Experiment>& experiments) {
  for (const Experiment& experiment : experiments) {
    ModelFacts facts = experiment.model;
    facts.name = model.name;  // of its folder, which may have been moved
    if (facts != model)
      throw Error("was made on another model (" + experiment.model.name + ", " + experiment.model.family + ") than " +
                      model.name + " (" + model.family + ")",
                  experiment.source, "report files of one model together");
  }
}

}  // namespace

int run_report(const Arguments& arguments) {
  OptionParser parser = make_parser();
  if (!parser.parse(arguments)) return 0;
  ReportOptions options{
      {}, std::string("switchyard ") + version() + " (" + git_commit() + ")", 0, compare_options(parser)};
  const Communicator comm = Communicator::world();
  omp_set_num_threads(parser.has("threads") ? std::max(1, parser.get<int>("threads")) : default_threads(comm));
  const Sources sources = read_sources(parser.get<std::vector<std::string>>("stats"));
  for (const auto& file : sources.statistics) options.sources.push_back(file.string());
  for (const Experiment& experiment : sources.experiments) options.sources.push_back(experiment.source);

  Statistics statistics;
  if (sources.statistics.empty())
    statistics.model = sources.experiments.front().model;
  else
    statistics = reduce_runs(sources.statistics, {}, {}, comm);
  require_one_model(statistics.model, sources.experiments);
  options.target_layer = target_layer(parser, statistics.model.moe_layers);
  const bool show = comm.rank() == 0 && !parser.flag("quiet");
  const std::vector<GroupedSlots> groups = comparable(statistics);
  std::vector<PairDistances> pairs;
  if (!groups.empty()) pairs = compare_pairs(groups, options.compare, pair_progress(show), comm);
  if (comm.rank() != 0) return 0;

  const std::filesystem::path output = parser.get<std::string>("output");
  const std::string& name = statistics.model.name;
  write_report_page(output,
                    statistics.datasets.empty() ? "Experiments on " + name : "Where " + name + " sends its tokens",
                    report_data(statistics, groups, pairs, sources.experiments, options));
  if (show)
    std::cout << "report: " << output.string() << " ("
              << as_bytes_text(static_cast<double>(std::filesystem::file_size(output))) << ")\n";
  return 0;
}

}  // namespace switchyard
