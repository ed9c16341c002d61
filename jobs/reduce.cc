#include "pipeline/reduce.h"

#include <filesystem>
#include <fstream>
#include <iostream>
#include <sstream>

#include "jobs/command.h"
#include "jobs/options.h"
#include "jobs/stats_output.h"
#include "jobs/summary.h"
#include "parallel/communicator.h"
#include "parallel/error.h"
#include "pipeline/analysis/expert_counts.h"
#include "pipeline/first_documents.h"

namespace switchyard {
namespace {

Statistics read_counts(const OptionParser& parser) {
  if (!parser.has("top-k") || parser.get<int>("top-k") < 1)
    throw UsageError("how many experts does a token choose?", "--from-counts", "give --top-k K");
  const auto& path = parser.get<std::string>("from-counts");
  std::ifstream file(path);
  if (!file) throw Error("cannot open the file", path, "check --from-counts");
  std::ostringstream text;
  text << file.rdbuf();
  return statistics_of_counts(text.str(), parser.get<std::string>("model-key"), parser.get<int>("top-k"), path);
}

Statistics read_runs(const OptionParser& parser, bool show, const Communicator& comm) {
  const auto& words = parser.get<std::vector<std::string>>("run");
  return reduce_runs(
      {words.begin(), words.end()},
      {.recompute = parser.flag("recompute"),
       .per_document = parser.get<std::uint64_t>("per-document"),
       .peak_flops = parser.positive_number("peak-flops")},
      [&](std::size_t done, std::size_t all) {
        if (show && (done % 64 == 0 || done == all)) std::cerr << "segment " << done << " of " << all << "\n";
      },
      comm);
}

}  // namespace

int run_reduce(const Arguments& arguments) {
  OptionParser parser(
      "reduce", "reduce RUN|STATS... -o stats.h5 [options]",
      "Sums the records of any number of runs of one model into statistics by dataset: a corpus of a "
      "run. Ranks of an mpirun share the\n"
      "segments; a run may still be going on: what it has committed so far is taken. Statistics files give the same as "
      "the runs they were made of.",
      "Examples:\n  switchyard reduce run -o stats.h5\n  mpirun -n 4 switchyard reduce runs/* -o "
      "all.h5 --csv tables\n  "
      "switchyard reduce monday/stats.h5 tuesday/stats.h5 -o week.h5\n  switchyard reduce --from-counts published.json "
      "--top-k 2 -o "
      "published.h5\n");
  auto add = parser.options().add_options();
  add("run", po::value<std::vector<std::string>>()->value_name("RUN|STATS"),
      "OUT folder of a route, or a stats.h5; also without --run");
  add("output,o", po::value<std::string>()->required()->value_name("FILE"), "the statistics file");
  add("csv", po::value<std::string>()->value_name("DIR"), "write every table as CSV too");
  add("from-counts", po::value<std::string>()->value_name("FILE.json"),
      "instead of runs: published counts, {\"DATASET\": {\"LAYER\": [slots of expert 0, 1, ...]}}, perhaps below a "
      "model's name");
  add("model-key", po::value<std::string>()->default_value("")->value_name("NAME"), "which model of --from-counts");
  add("top-k", po::value<int>()->value_name("K"), "experts of a token, which --from-counts needs");
  add("recompute", po::bool_switch(), "from the token rows instead of the sums that were kept while routing");
  add("per-document", po::value<std::uint64_t>()->default_value(0)->value_name("N"),
      "also the experts of each of the first N documents of a corpus (at most 4096), from token rows");
  add("peak-flops", po::value<double>()->value_name("FLOP/s"),
      "peak of one rank of the runs, for the share of it that they reached");
  add("quiet", po::bool_switch(), "no progress, no summary");
  parser.positional("run", -1);
  if (!parser.parse(arguments)) return 0;

  if (parser.get<std::uint64_t>("per-document") > kMostDocuments)
    throw UsageError("is " + std::to_string(parser.get<std::uint64_t>("per-document")), "--per-document",
                     "give at most " + std::to_string(kMostDocuments));
  const Communicator comm = Communicator::world();
  if (parser.has("run") == parser.has("from-counts"))
    throw UsageError("of what?", "switchyard reduce", "name runs or statistics files, or give --from-counts");
  const bool show = comm.rank() == 0 && !parser.flag("quiet");
  const Statistics reduced = parser.has("from-counts") ? read_counts(parser) : read_runs(parser, show, comm);
  if (comm.rank() != 0) return 0;
  write_stats(parser.get<std::string>("output"), reduced);
  if (parser.has("csv")) write_csv(parser.get<std::string>("csv"), reduced);
  if (show) {
    print_summary(std::cout, reduced);
    print_documents(std::cout, reduced);
    std::cout << "\nstatistics: " << parser.get<std::string>("output") << "\n";
  }
  return 0;
}

}  // namespace switchyard
