#include "pipeline/kernels/leaf_loops.h"

namespace switchyard {

extern const LeafLoops kLeafLoops_v4bf16, kLeafLoops_v4, kLeafLoops_v3, kLeafLoops_baseline;

const LeafLoops& choose_leaf_loops() {
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
  if (__builtin_cpu_supports("x86-64-v4"))
    return __builtin_cpu_supports("avx512bf16") ? kLeafLoops_v4bf16 : kLeafLoops_v4;
  return __builtin_cpu_supports("x86-64-v3") ? kLeafLoops_v3 : kLeafLoops_baseline;
#else
  return kLeafLoops_baseline;
#endif
}

}  // namespace switchyard
