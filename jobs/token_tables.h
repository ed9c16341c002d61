#pragma once

#include <string>

#include "pipeline/analysis/live_accumulators.h"

namespace switchyard {

/// The value of --token-tables: "none", or names of kTokenTableNames, comma-separated. Throws UsageError.
TokenTableChoice parse_token_tables(const std::string& text);

/// Throws UsageError when they would take more memory than is sensible.
void require_affordable(const AccumulatorShape& shape, TokenTableChoice tables, const std::string& text);

}  // namespace switchyard
