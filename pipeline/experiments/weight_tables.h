#pragma once

#include <vector>

#include "io/hdf5/table.h"
#include "pipeline/experiments/weight_similarity.h"

namespace switchyard {

/// What weights.h5 holds (io/README.md), with the regressions of the routers' cosines on the matrices'.
std::vector<Table> weight_tables(const WeightSimilarity& similarity);

}  // namespace switchyard
