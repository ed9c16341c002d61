#include <omp.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <iostream>
#include <string>
#include <vector>

#include "io/routing_reader.h"
#include "jobs/command.h"
#include "jobs/compare_options.h"
#include "jobs/format.h"
#include "jobs/machine.h"
#include "jobs/options.h"
#include "jobs/stats_output.h"
#include "parallel/communicator.h"
#include "parallel/error.h"
#include "pipeline/analysis/compare_pairs.h"
#include "pipeline/analysis/saturation.h"

namespace switchyard {
namespace {

constexpr double kNoticed = 0.05;  // adjusted p-values below count as differences in the summary

OptionParser make_parser() {
  OptionParser parser(
      "compare", "compare STATS|RUN... [-o compare.h5] [options]",
      "Says for every pair of datasets and every MoE layer how far apart their use of the experts is: Jensen-Shannon "
      "divergence (nats) and total\n"
      "variation, each with a bootstrap interval over documents and a permutation test, p-values adjusted over layers; "
      "and for all of them together how\n"
      "specialised experts are. Datasets are corpora: two domains, two runs, two checkpoints of one shape. Of a run's "
      "folder, its stats.h5 is taken; two\n"
      "runs with token rows of the same tokens are also compared token by token (router saturation).",
      "Examples:\n  switchyard compare run/stats.h5 -o compare.h5\n  mpirun -n 4 switchyard compare monday/stats.h5 "
      "tuesday/stats.h5 -o drift.h5 --csv tables --bootstrap 10000\n  switchyard compare early-checkpoint-run "
      "late-checkpoint-run\n");
  auto add = parser.options().add_options();
  add("stats", po::value<std::vector<std::string>>()->required()->value_name("STATS|RUN"),
      "stats.h5 of route or reduce, or the folder of a run; also without --stats");
  add("output,o", po::value<std::string>()->value_name("FILE"), "write every figure as HDF5");
  add("csv", po::value<std::string>()->value_name("DIR"), "write every table as CSV");
  add_compare_options(parser);
  add("threads", po::value<int>()->value_name("N"), "threads of each rank (default: the CPUs it may use)");
  add("quiet", po::bool_switch(), "no progress, no summary");
  parser.positional("stats", -1);
  return parser;
}

void print_pairs(const std::vector<GroupedSlots>& datasets, const std::vector<PairDistances>& pairs,
                 const CompareOptions& options) {
  std::printf(
      "Jensen-Shannon divergence of the experts' usage, nats, at the layer where it is largest, with its %g %% "
      "interval over documents;\nlayers that differ: adjusted p below %g\n",
      100 * options.confidence, kNoticed);
  std::size_t width = 0;
  for (const GroupedSlots& dataset : datasets) width = std::max(width, dataset.name.size());
  const auto column = static_cast<int>(width);
  std::printf("  %-*s  %-*s  %5s  %8s  %-18s  %8s  %s\n", column, "", column, "", "layer", "JSD", "interval", "p",
              "layers that differ");
  std::size_t pair = 0;
  for (std::size_t i = 0; i < datasets.size(); ++i)
    for (std::size_t j = i + 1; j < datasets.size(); ++j, ++pair) {
      const std::vector<Distance>& layers = pairs[pair].jensen_shannon;
      const auto most = std::max_element(layers.begin(), layers.end(),
                                         [](const Distance& a, const Distance& b) { return a.value < b.value; });
      const auto noticed =
          std::count_if(layers.begin(), layers.end(), [](const Distance& d) { return d.q < kNoticed; });
      std::printf("  %-*s  %-*s  %5td  %8.5f  [%7.5f, %7.5f]  %8.4f  %td of %zu\n", column, datasets[i].name.c_str(),
                  column, datasets[j].name.c_str(), most - layers.begin(), most->value, most->low, most->high, most->p,
                  noticed, layers.size());
    }
}

/// Whether the words are two runs whose records hold token rows.
bool are_two_records(const std::vector<std::string>& words) {
  return words.size() == 2 && std::all_of(words.begin(), words.end(), [](const std::filesystem::path& word) {
           return std::filesystem::is_directory(word) && std::filesystem::exists(word / "routing.h5") &&
                  RoutingReader(word / "routing.h5").contains("/tokens/id");
         });
}

std::vector<std::filesystem::path> stats_files(const std::vector<std::string>& words) {
  std::vector<std::filesystem::path> files;
  for (const std::filesystem::path word : words)
    files.push_back(std::filesystem::is_directory(word) ? word / "stats.h5" : word);
  return files;
}

void print_saturation(const std::vector<Saturation>& corpora, const CompareOptions& options) {
  for (const Saturation& corpus : corpora) {
    std::printf("\n%s: share of a token's experts that both runs chose, %s tokens\n", corpus.corpus.c_str(),
                with_commas(corpus.tokens).c_str());
    std::printf("  layer   share  %g %% interval    by chance\n", 100 * options.confidence);
    for (std::size_t l = 0; l < corpus.value.size(); ++l)
      std::printf("  %5zu  %6.4f  [%6.4f, %6.4f]  %6.4f\n", l, corpus.value[l], corpus.low[l], corpus.high[l],
                  corpus.expected[l]);
  }
}

}  // namespace

int run_compare(const Arguments& arguments) {
  OptionParser parser = make_parser();
  if (!parser.parse(arguments)) return 0;
  const CompareOptions options = compare_options(parser);
  const Communicator comm = Communicator::world();
  omp_set_num_threads(parser.has("threads") ? std::max(1, parser.get<int>("threads")) : default_threads(comm));
  const auto& words = parser.get<std::vector<std::string>>("stats");
  const std::vector<GroupedSlots> datasets = read_grouped_slots(stats_files(words));
  if (datasets.size() < 2)
    throw Error("hold one dataset", words.front(),
                "name files with at least two datasets: corpora of a run, or two runs");
  if (datasets.front().layers == 0)
    throw Error("is of a dense model, which routes nothing", words.front(),
                "compare runs of a mixture-of-experts model");
  const bool show = comm.rank() == 0 && !parser.flag("quiet");
  const std::vector<PairDistances> pairs = compare_pairs(datasets, options, pair_progress(show), comm);
  std::vector<Saturation> saturation;
  if (are_two_records(words))
    saturation = router_saturation(std::filesystem::path(words[0]) / "routing.h5",
                                   std::filesystem::path(words[1]) / "routing.h5", options, comm);
  if (comm.rank() != 0) return 0;

  std::vector<std::string> names;
  std::vector<std::uint64_t> groups;
  for (const GroupedSlots& dataset : datasets) {
    names.push_back(dataset.name);
    groups.push_back(dataset.groups());
  }
  std::vector<Table> tables = distance_tables(datasets, pairs);
  for (Table& table : pooled_tables(datasets)) tables.push_back(std::move(table));
  if (!saturation.empty())
    for (Table& table : saturation_tables(saturation)) tables.push_back(std::move(table));
  tables.push_back({"/datasets/name", {"dataset"}, {names.size()}, names, "1", "name of the dataset"});
  tables.push_back(
      {"/datasets/groups", {"dataset"}, {groups.size()}, std::move(groups), "1", "groups of documents with slots"});
  if (parser.has("output"))
    write_stats_tables(parser.get<std::string>("output"),
                       {{"bootstrap", std::to_string(options.bootstrap)},
                        {"permutations", std::to_string(options.permutations)},
                        {"confidence", std::to_string(options.confidence)},
                        {"seed", std::to_string(options.seed)}},
                       {{"/datasets", "what is compared"},
                        {"/compare", "distances between datasets by layer, with intervals and p-values"},
                        {"/specialisation", "usage of experts by dataset against all datasets pooled"},
                        {"/dataset_information", "what an expert says of the dataset"},
                        {"/saturation", "how far two runs choose the same experts for the same tokens"}},
                       tables);
  if (parser.has("csv"))
    write_csv_tables(parser.get<std::string>("csv"), tables, {{"dataset", names}, {"dataset2", names}});
  if (show) {
    print_pairs(datasets, pairs, options);
    print_saturation(saturation, options);
    if (parser.has("output")) std::cout << "\ncomparison: " << parser.get<std::string>("output") << "\n";
  }
  return 0;
}

}  // namespace switchyard
