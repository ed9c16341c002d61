#pragma once

#include <vector>

#include "io/hdf5/table.h"
#include "io/routing_schema.h"
#include "pipeline/analysis/table_index.h"

namespace switchyard {

/// /model/*: what a file of statistics or of an experiment says of its model.
std::vector<Table> model_fact_tables(const ModelFacts& model);
/// Throws Error naming what is missing or wrong.
ModelFacts model_facts_from(const TableIndex& index);

}  // namespace switchyard
