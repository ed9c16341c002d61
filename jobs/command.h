#pragma once

#include <string>
#include <vector>

namespace switchyard {

/// Words of the command line behind the subcommand's name.
using Arguments = std::vector<std::string>;

// The subcommands: parse options, wire objects, run. Each returns the process' exit code; errors are thrown. All are
// collective over the processes of an mpirun.
int run_route(const Arguments& arguments);
int run_ablate(const Arguments& arguments);
int run_import(const Arguments& arguments);
int run_reduce(const Arguments& arguments);
int run_compare(const Arguments& arguments);
int run_probe(const Arguments& arguments);
int run_report(const Arguments& arguments);
int run_place(const Arguments& arguments);
int run_weights(const Arguments& arguments);
int run_inspect(const Arguments& arguments);
int run_tokens(const Arguments& arguments);
int run_synth(const Arguments& arguments);
int run_bench(const Arguments& arguments);

/// Exit code of a run that a signal stopped after committing what was whole: "requeue me".
inline constexpr int kExitRequeue = 85;

}  // namespace switchyard
