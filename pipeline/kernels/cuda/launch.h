#pragma once

#ifdef __CUDACC__

#include <cstdint>

#include "parallel/device/cuda/cuda_check.h"
#include "parallel/device/stream.h"

namespace switchyard::gpu {

inline constexpr int kThreads = 256;
inline constexpr int kWarpsOfBlock = 4;
inline constexpr int kWarpThreads = 32 * kWarpsOfBlock;

/// Blocks for that much work.
inline unsigned blocks_for(std::int64_t work, int per_block) {
  return static_cast<unsigned>((work + per_block - 1) / per_block);
}

/// After a launch: throws Error when it was refused.
inline void check_launch(const char* kernel, std::source_location where = std::source_location::current()) {
  cuda_check(cudaGetLastError(), kernel, where);
}

}  // namespace switchyard::gpu

#endif
