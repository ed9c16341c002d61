#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <bit>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#include "pipeline/kernels/leaf_loops.h"

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
// After the headers: what they define must stay callable everywhere.
#pragma GCC target("arch=x86-64-v4,avx512bf16")
#define SWITCHYARD_HAS_AVX512
#define SWITCHYARD_HAS_AVX512BF16
#endif

#define SWITCHYARD_ISA v4bf16
#include "pipeline/kernels/leaf_loops.inc"

namespace switchyard {
extern const LeafLoops kLeafLoops_v4bf16;
const LeafLoops kLeafLoops_v4bf16 = v4bf16::kTable;
}  // namespace switchyard
