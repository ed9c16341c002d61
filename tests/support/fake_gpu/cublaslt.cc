#include <cublasLt.h>

#include <cstdint>
#include <cstring>
#include <new>
#include <vector>

#include "parallel/bf16.h"
#include "tests/support/fake_gpu/fake_gpu.h"

/// cublasLt's products as plain loops in the stream. Opaque structs of the real header hold what is below. Of two
/// algorithms the first serves only many rows, as some real ones do.
namespace {

using switchyard::Bf16;

struct Layout {
  cudaDataType_t type;
  std::int64_t rows, columns, stride;  // column-major

  std::size_t bytes() const {
    const std::int64_t elements = columns == 0 ? 0 : (columns - 1) * stride + rows;
    return static_cast<std::size_t>(elements) * (type == CUDA_R_16BF ? 2 : 4);
  }
};

struct Product {
  cublasOperation_t left = CUBLAS_OP_N, right = CUBLAS_OP_N;
};

struct Preference {
  std::uint32_t reductions = 0xffffffffU;
  std::uint64_t workspace = 0;
  std::uint32_t alignment[4] = {256, 256, 256, 256};  // of the left side, the right side, what is added, the result
};

/// What is in cublasLtMatmulAlgo_t.
struct Algorithm {
  std::uint64_t fewest_rows;
  std::uint32_t alignment[4];
};
static_assert(sizeof(Algorithm) <= sizeof(cublasLtMatmulAlgo_t));
static_assert(sizeof(Layout) <= sizeof(cublasLtMatrixLayoutOpaque_t));
static_assert(sizeof(Product) <= sizeof(cublasLtMatmulDescOpaque_t));
static_assert(sizeof(Preference) <= sizeof(cublasLtMatmulPreferenceOpaque_t));

template <typename Ours, typename Theirs>
Ours& as(Theirs* opaque) {
  return *reinterpret_cast<Ours*>(opaque);
}

template <typename Ours, typename Theirs>
Theirs* make(const Ours& value) {
  auto* opaque = new Theirs;
  new (opaque) Ours(value);
  return opaque;
}

Algorithm algorithm_in(const cublasLtMatmulAlgo_t& algorithm) {
  Algorithm ours = {};
  std::memcpy(&ours, &algorithm, sizeof ours);
  return ours;
}

float element(const void* data, cudaDataType_t type, std::int64_t at) {
  return type == CUDA_R_16BF ? static_cast<float>(static_cast<const Bf16*>(data)[at])
                             : static_cast<const float*>(data)[at];
}

bool is_aligned(const void* data, std::uint32_t alignment) {
  return reinterpret_cast<std::uintptr_t>(data) % alignment == 0;
}

}  // namespace

extern "C" {

const char* cublasLtGetStatusString(cublasStatus_t status) {
  return status == CUBLAS_STATUS_SUCCESS ? "success" : "an error of the fake cublasLt";
}
cublasStatus_t cublasLtCreate(cublasLtHandle_t* handle) {
  *handle = reinterpret_cast<cublasLtHandle_t>(new char);
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t* layout, cudaDataType type, std::uint64_t rows,
                                          std::uint64_t columns, std::int64_t stride) {
  *layout = make<Layout, cublasLtMatrixLayoutOpaque_t>(
      {type, static_cast<std::int64_t>(rows), static_cast<std::int64_t>(columns), stride});
  return stride >= static_cast<std::int64_t>(rows) ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_INVALID_VALUE;
}
cublasStatus_t cublasLtMatrixLayoutDestroy(const cublasLtMatrixLayout_t layout) {
  delete layout;
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t* product, cublasComputeType_t compute,
                                        cudaDataType_t scale) {
  *product = make<Product, cublasLtMatmulDescOpaque_t>({});
  return compute == CUBLAS_COMPUTE_32F && scale == CUDA_R_32F ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_NOT_SUPPORTED;
}
cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t product, cublasLtMatmulDescAttributes_t attribute,
                                              const void* value, std::size_t bytes) {
  if (bytes != sizeof(cublasOperation_t)) return CUBLAS_STATUS_INVALID_VALUE;
  if (attribute == CUBLASLT_MATMUL_DESC_TRANSA) {
    std::memcpy(&as<Product>(product).left, value, bytes);
  } else if (attribute == CUBLASLT_MATMUL_DESC_TRANSB) {
    std::memcpy(&as<Product>(product).right, value, bytes);
  } else {
    return CUBLAS_STATUS_NOT_SUPPORTED;
  }
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulDescDestroy(const cublasLtMatmulDesc_t product) {
  delete product;
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t* preference) {
  *preference = make<Preference, cublasLtMatmulPreferenceOpaque_t>({});
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t preference,
                                                    cublasLtMatmulPreferenceAttributes_t attribute, const void* value,
                                                    std::size_t bytes) {
  auto& ours = as<Preference>(preference);
  void* to = nullptr;
  std::size_t expected = sizeof(std::uint32_t);
  switch (attribute) {
    case CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK:
      to = &ours.reductions;
      break;
    case CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES:
      to = &ours.workspace;
      expected = sizeof ours.workspace;
      break;
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES:
      to = &ours.alignment[0];
      break;
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES:
      to = &ours.alignment[1];
      break;
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES:
      to = &ours.alignment[2];
      break;
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES:
      to = &ours.alignment[3];
      break;
    default:
      return CUBLAS_STATUS_NOT_SUPPORTED;
  }
  if (bytes != expected) return CUBLAS_STATUS_INVALID_VALUE;
  std::memcpy(to, value, bytes);
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceDestroy(const cublasLtMatmulPreference_t preference) {
  delete preference;
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t /*handle*/, cublasLtMatmulDesc_t /*product*/,
                                              cublasLtMatrixLayout_t /*a*/, cublasLtMatrixLayout_t /*b*/,
                                              cublasLtMatrixLayout_t /*c*/, cublasLtMatrixLayout_t /*d*/,
                                              cublasLtMatmulPreference_t preference, int wanted,
                                              cublasLtMatmulHeuristicResult_t results[], int* found) {
  const auto& ours = as<Preference>(preference);
  if (ours.reductions != CUBLASLT_REDUCTION_SCHEME_NONE) fake_gpu::complain("sums that may be split");
  if (wanted < 2) return CUBLAS_STATUS_INVALID_VALUE;
  *found = 2;
  for (int i = 0; i < 2; ++i) {
    Algorithm algorithm = {.fewest_rows = i == 0 ? 64U : 1U, .alignment = {}};
    std::memcpy(algorithm.alignment, ours.alignment, sizeof algorithm.alignment);
    results[i] = {};
    std::memcpy(&results[i].algo, &algorithm, sizeof algorithm);
    results[i].state = CUBLAS_STATUS_SUCCESS;
  }
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulAlgoCheck(cublasLtHandle_t /*handle*/, cublasLtMatmulDesc_t /*product*/,
                                       cublasLtMatrixLayout_t /*a*/, cublasLtMatrixLayout_t b,
                                       cublasLtMatrixLayout_t /*c*/, cublasLtMatrixLayout_t /*d*/,
                                       const cublasLtMatmulAlgo_t* algorithm, cublasLtMatmulHeuristicResult_t* result) {
  *result = {};
  const bool serves = as<Layout>(b).columns >= static_cast<std::int64_t>(algorithm_in(*algorithm).fewest_rows);
  return serves ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_NOT_SUPPORTED;
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t /*handle*/, cublasLtMatmulDesc_t product, const void* alpha,
                              const void* a, cublasLtMatrixLayout_t a_layout, const void* b,
                              cublasLtMatrixLayout_t b_layout, const void* beta, const void* c,
                              cublasLtMatrixLayout_t c_layout, void* d, cublasLtMatrixLayout_t d_layout,
                              const cublasLtMatmulAlgo_t* algorithm, void* workspace, std::size_t workspace_bytes,
                              cudaStream_t stream) {
  const Layout left = as<Layout>(a_layout);
  const Layout right = as<Layout>(b_layout);
  const Layout added = as<Layout>(c_layout);
  const Layout out = as<Layout>(d_layout);
  const Product how = as<Product>(product);
  const Algorithm chosen = algorithm_in(*algorithm);
  const bool left_turned = how.left == CUBLAS_OP_T;
  const bool right_turned = how.right == CUBLAS_OP_T;
  const std::int64_t inner = left_turned ? left.rows : left.columns;
  if ((left_turned ? left.columns : left.rows) != out.rows || (right_turned ? right.columns : right.rows) != inner ||
      (right_turned ? right.rows : right.columns) != out.columns || added.rows != out.rows ||
      added.columns != out.columns)
    return CUBLAS_STATUS_INVALID_VALUE;
  if (out.columns < static_cast<std::int64_t>(chosen.fewest_rows)) return CUBLAS_STATUS_NOT_SUPPORTED;
  if (!is_aligned(a, chosen.alignment[0]) || !is_aligned(b, chosen.alignment[1]) ||
      !is_aligned(c, chosen.alignment[2]) || !is_aligned(d, chosen.alignment[3]))
    return CUBLAS_STATUS_INVALID_VALUE;
  if (!fake_gpu::is_device_memory({a, left.bytes()}) || !fake_gpu::is_device_memory({b, right.bytes()}) ||
      !fake_gpu::is_device_memory({d, out.bytes()}) || !fake_gpu::is_device_memory({workspace, workspace_bytes}))
    return CUBLAS_STATUS_INVALID_VALUE;
  const float factor = *static_cast<const float*>(alpha);
  const float keep = *static_cast<const float*>(beta);
  fake_gpu::enqueue(stream, {{a, left.bytes()}, {b, right.bytes()}, {d, out.bytes()}}, [=] {
    for (std::int64_t column = 0; column < out.columns; ++column) {
      for (std::int64_t row = 0; row < out.rows; ++row) {
        float sum = 0;
        for (std::int64_t k = 0; k < inner; ++k) {
          sum += element(a, left.type, left_turned ? row * left.stride + k : k * left.stride + row) *
                 element(b, right.type, right_turned ? k * right.stride + column : column * right.stride + k);
        }
        const std::int64_t at = column * out.stride + row;
        // As BLAS has it: what is multiplied by 0 is not read.
        const float value =
            factor * sum + (keep == 0 ? 0.0F : keep * element(c, added.type, column * added.stride + row));
        if (out.type == CUDA_R_16BF) {
          static_cast<Bf16*>(d)[at] = Bf16(value);
        } else {
          static_cast<float*>(d)[at] = value;
        }
      }
    }
  });
  return CUBLAS_STATUS_SUCCESS;
}

}  // extern "C"
