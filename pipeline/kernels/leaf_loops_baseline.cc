#include <bit>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#include "pipeline/kernels/leaf_loops.h"

#define SWITCHYARD_ISA baseline
#include "pipeline/kernels/leaf_loops.inc"

namespace switchyard {
extern const LeafLoops kLeafLoops_baseline;
const LeafLoops kLeafLoops_baseline = baseline::kTable;
}  // namespace switchyard
