#include <malloc.h>

#include <array>
#include <iostream>
#include <string>
#include <string_view>

#include "jobs/command.h"
#include "jobs/version.h"
#include "parallel/error.h"
#include "parallel/mpi_environment.h"

namespace {

struct Subcommand {
  std::string_view name;
  int (*run)(const switchyard::Arguments&);
  std::string_view about;
};

constexpr std::array<Subcommand, 13> kSubcommands = {{
    {"route", switchyard::run_route, "run a model over corpora and record where every token is sent"},
    {"ablate", switchyard::run_ablate, "take experts away one at a time and measure what the model loses"},
    {"import", switchyard::run_import, "make a run of the routing that a serving engine returned"},
    {"reduce", switchyard::run_reduce, "turn the records of runs into statistics, stats.h5"},
    {"compare", switchyard::run_compare, "say how datasets differ, with intervals and p-values"},
    {"probe", switchyard::run_probe, "run every expert on a sample and say how alike experts are"},
    {"place", switchyard::run_place, "say which experts should lie on which rank, and what that gives"},
    {"report", switchyard::run_report, "draw statistics as one HTML page"},
    {"tokens", switchyard::run_tokens, "look up which tokens an expert gets, or where a token goes"},
    {"weights", switchyard::run_weights, "say how alike a model's experts are by their weights alone"},
    {"inspect", switchyard::run_inspect, "print what a run or a file holds, and check that it is whole"},
    {"synth", switchyard::run_synth, "write a checkpoint of random weights"},
    {"bench", switchyard::run_bench, "measure the forward pass, phase by phase"},
}};

void print_help() {
  std::cout << "switchyard " << switchyard::version()
            << ": where a mixture-of-experts language model sends its tokens\n\n"
            << "usage: [mpirun -n RANKS] switchyard SUBCOMMAND [options]\n\n";
  for (const Subcommand& subcommand : kSubcommands)
    std::cout << "  " << subcommand.name << std::string(10 - subcommand.name.size(), ' ') << subcommand.about << "\n";
  std::cout << "\n`switchyard SUBCOMMAND --help` explains its options; `switchyard --version` names this build.\n";
}

/// A layer's lists are freed and asked for again a thousand times a second: they stay with the process, because the
/// system would clear every page of them anew, which took longer than to fill them.
void keep_freed_memory() {
  constexpr int kMiB = 1 << 20;
  mallopt(M_MMAP_THRESHOLD, 32 * kMiB);  // the most that it takes
  mallopt(M_TRIM_THRESHOLD, 256 * kMiB);
}

}  // namespace

int main(int argc, char** argv) {
  keep_freed_memory();
  const std::string_view name = argc > 1 ? argv[1] : "--help";
  if (name == "--help" || name == "-h" || name == "help") {
    print_help();
    return 0;
  }
  if (name == "--version") {
    std::cout << "switchyard " << switchyard::version() << " (" << switchyard::git_commit() << ")\n";
    return 0;
  }
  const switchyard::MpiEnvironment environment(&argc, &argv);
  const switchyard::Arguments arguments(argv + 2, argv + argc);
  for (const Subcommand& subcommand : kSubcommands)
    if (subcommand.name == name) return subcommand.run(arguments);
  throw switchyard::UsageError("unknown subcommand '" + std::string(name) + "'", "switchyard",
                               "see `switchyard --help`");
}
