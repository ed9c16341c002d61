#pragma once

#include "jobs/options.h"
#include "pipeline/analysis/live_accumulators.h"

namespace switchyard {

/// --token-tables and --token-cells, for the subcommands that count tokens.
void add_token_table_options(OptionParser& parser, const char* usual_tables);
/// Their values. Throws UsageError for a table that is none.
TokenTableChoice chosen_token_tables(const OptionParser& parser, const AccumulatorShape& shape);

}  // namespace switchyard
