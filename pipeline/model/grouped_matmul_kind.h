#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "pipeline/kernels/gated_ffn.h"

namespace switchyard {

/// What multiplies rows with their experts' weights on a GPU: cublasLt once an expert, or one kernel for all of them by
/// cuDNN or CUTLASS, in bf16 alone. With CUTLASS gate and up meet where they are summed. The bits of libraries differ.
enum class GroupedMatmulKind : std::uint8_t { cublaslt, cudnn, cutlass };

inline constexpr std::array kGroupedMatmulKinds = {GroupedMatmulKind::cublaslt, GroupedMatmulKind::cudnn,
                                                   GroupedMatmulKind::cutlass};

constexpr const char* name_of(GroupedMatmulKind kind) {
  switch (kind) {
    case GroupedMatmulKind::cudnn:
      return "cudnn";
    case GroupedMatmulKind::cutlass:
      return "cutlass";
    default:
      return "cublaslt";
  }
}

/// Experts of a rank, in one layer.
struct ExpertShape {
  std::int64_t n_experts;
  std::int64_t d_model, d_ff;
  Activation activation;
};

/// Why such experts in bf16 cannot be multiplied so on the GPU of this process; nothing where they can.
std::optional<std::string> why_not(GroupedMatmulKind kind, const ExpertShape& experts);

struct GroupedMatmulSpeed {
  GroupedMatmulKind kind;
  double seconds;  // of a layer's experts, their two products and what is between them: the median
};

/// How fast experts by each kind that is there are in bf16 with `rows` rows, spread evenly over them, on this process's
/// GPU. Takes memory for the weights of one layer.
std::vector<GroupedMatmulSpeed> measure_grouped_matmuls(const ExpertShape& experts, std::int64_t rows, int repetitions);

}  // namespace switchyard
