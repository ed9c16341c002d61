#include "pipeline/reduce.h"

#include <filesystem>
#include <iostream>

#include "jobs/command.h"
#include "jobs/options.h"
#include "jobs/stats_output.h"
#include "jobs/summary.h"
#include "parallel/communicator.h"
#include "parallel/error.h"

namespace switchyard {

int run_reduce(const Arguments& arguments) {
  OptionParser parser(
      "reduce", "reduce RUN|STATS... -o stats.h5 [options]",
      "Sums the records of any number of runs of one model into statistics by dataset: a corpus of a "
      "run. Ranks of an mpirun share the\n"
      "segments; a run may still be going on: what it has committed so far is taken. Statistics files give the same as "
      "the runs they were made of.",
      "Examples:\n  switchyard reduce run -o stats.h5\n  mpirun -n 4 switchyard reduce runs/* -o "
      "all.h5 --csv tables\n  "
      "switchyard reduce monday/stats.h5 tuesday/stats.h5 -o week.h5\n");
  auto add = parser.options().add_options();
  add("run", po::value<std::vector<std::string>>()->required()->value_name("RUN|STATS"),
      "OUT folder of a route, or a stats.h5; also without --run");
  add("output,o", po::value<std::string>()->required()->value_name("FILE"), "the statistics file");
  add("csv", po::value<std::string>()->value_name("DIR"), "write every table as CSV too");
  add("recompute", po::bool_switch(), "from the token rows instead of the sums that were kept while routing");
  add("peak-flops", po::value<double>()->value_name("FLOP/s"),
      "peak of one rank of the runs, for the share of it that they reached");
  add("quiet", po::bool_switch(), "no progress, no summary");
  parser.positional("run", -1);
  if (!parser.parse(arguments)) return 0;

  const Communicator comm = Communicator::world();
  const auto& words = parser.get<std::vector<std::string>>("run");
  const bool show = comm.rank() == 0 && !parser.flag("quiet");
  const Statistics reduced = reduce_runs(
      {words.begin(), words.end()},
      {.recompute = parser.flag("recompute"), .peak_flops = parser.positive_number("peak-flops")},
      [&](std::size_t done, std::size_t all) {
        if (show && (done % 64 == 0 || done == all)) std::cerr << "segment " << done << " of " << all << "\n";
      },
      comm);
  if (comm.rank() != 0) return 0;
  write_stats(parser.get<std::string>("output"), reduced);
  if (parser.has("csv")) write_csv(parser.get<std::string>("csv"), reduced);
  if (show) {
    print_summary(std::cout, reduced);
    std::cout << "\nstatistics: " << parser.get<std::string>("output") << "\n";
  }
  return 0;
}

}  // namespace switchyard
