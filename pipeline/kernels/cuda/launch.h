#pragma once

#ifdef __CUDACC__

#include <cstdint>
#include <type_traits>

#include "parallel/device/cuda/cuda_check.h"
#include "parallel/device/stream.h"
#include "pipeline/kernels/cuda/warp.h"

namespace switchyard::gpu {

inline constexpr int kThreads = 256;
inline constexpr int kWarpsOfBlock = 4;
inline constexpr int kWarpThreads = 32 * kWarpsOfBlock;

/// Blocks for that much work.
inline unsigned blocks_for(std::int64_t work, int per_block) {
  return static_cast<unsigned>((work + per_block - 1) / per_block);
}

/// Threads of a block that share a row's packs, each a pack in turns: no more turns than kThreads need, and few threads
/// without one in the last.
inline unsigned threads_for(std::int64_t packs) {
  const std::int64_t turns = (packs + kThreads - 1) / kThreads;
  const std::int64_t threads = (packs + turns - 1) / turns;
  return static_cast<unsigned>((threads + 31) / 32 * 32);
}

/// Columns of a pack, as an argument's type.
template <int kWidth>
using Width = std::integral_constant<int, kWidth>;

/// Calls work with the width of packs that rows of so many columns are made of.
template <typename Work>
void with_packs(std::int64_t columns, Work work) {
  if (columns % cores::kPackWidth == 0) {
    work(Width<cores::kPackWidth>());
  } else {
    work(Width<1>());
  }
}

/// After a launch: throws Error when it was refused.
inline void check_launch(const char* kernel, std::source_location where = std::source_location::current()) {
  cuda_check(cudaGetLastError(), kernel, where);
}

}  // namespace switchyard::gpu

#endif
