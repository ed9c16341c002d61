#include <bit>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#include "pipeline/kernels/leaf_loops.h"

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
// After the headers: what they define must stay callable everywhere.
#pragma GCC target("arch=x86-64-v3")
#define SWITCHYARD_HAS_AVX2
#endif

#define SWITCHYARD_ISA v3
#include "pipeline/kernels/leaf_loops.inc"

namespace switchyard {
extern const LeafLoops kLeafLoops_v3;
const LeafLoops kLeafLoops_v3 = v3::kTable;
}  // namespace switchyard
