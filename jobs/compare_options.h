#pragma once

#include <cstddef>
#include <functional>

#include "jobs/options.h"
#include "pipeline/analysis/compare.h"

namespace switchyard {

/// --bootstrap, --permutations, --confidence, --seed: for the subcommands that compare datasets.
void add_compare_options(OptionParser& parser);
/// Their values. Throws UsageError naming one that makes no sense.
CompareOptions compare_options(const OptionParser& parser);

/// For compare_pairs: a line on stderr every few seconds, when `show`.
std::function<void(std::size_t, std::size_t)> pair_progress(bool show);

}  // namespace switchyard
