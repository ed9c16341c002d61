#pragma once

#include <cstdint>
#include <span>
#include <vector>

/// Rows of experts as graphs of cuDNN take them, which are made for one number of rows.
namespace switchyard::gpu {

struct RowChunk {
  std::int64_t begin, rows;
  std::int64_t graph_rows;  // of the graph that serves it: at least as many
};

/// All n rows, so that few graphs serve any n, and few rows are multiplied in vain: first as many as the four highest
/// bits of n say, then the rest in a graph of the next power of two.
std::vector<RowChunk> chunks_of(std::int64_t n);

/// Where in the chunk each expert's rows begin. [experts]
std::vector<std::int32_t> first_rows_of(std::span<const std::int32_t> rows_per_expert, const RowChunk& chunk);

}  // namespace switchyard::gpu
