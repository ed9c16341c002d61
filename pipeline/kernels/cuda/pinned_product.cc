#include "pipeline/kernels/cuda/pinned_product.h"

#include <cublasLt.h>

#include <algorithm>
#include <array>
#include <map>
#include <mutex>
#include <optional>
#include <string>

#include "parallel/device/device_array.h"
#include "parallel/device/stream.h"
#include "parallel/failed_call.h"

namespace switchyard::gpu {
namespace {

constexpr std::size_t kWorkspaceBytes = std::size_t{32} << 20U;
constexpr std::int64_t kTypicalRows = 512;
/// Numbers of rows for which an algorithm must do: one, odd ones, below and above its tiles, many.
constexpr std::array<std::int64_t, 5> kTriedRows = {1, 7, 64, 513, 16384};

void cublas_check(cublasStatus_t status, const char* call,
                  std::source_location where = std::source_location::current()) {
  if (status != CUBLAS_STATUS_SUCCESS) throw failed_call(call, cublasLtGetStatusString(status), where);
}
#define SWITCHYARD_CUBLAS(call) cublas_check((call), #call)

/// cublasLt's handle, and the scratch memory of the compute stream: shared by streams, it would cost products their
/// order.
struct Lt {
  cublasLtHandle_t handle = nullptr;
  DeviceArray<std::byte> workspace{kWorkspaceBytes};

  Lt() { SWITCHYARD_CUBLAS(cublasLtCreate(&handle)); }
};

Lt& lt() {
  static Lt& instance = *new Lt;  // as long as the process
  return instance;
}

cudaDataType_t cuda_type(DType type) { return type == DType::bf16 ? CUDA_R_16BF : CUDA_R_32F; }

/// To what rows of that many bytes, of whatever number, are aligned behind one another.
std::uint32_t alignment_of(std::int64_t row_bytes) {
  return static_cast<std::uint32_t>(std::min<std::int64_t>(row_bytes & -row_bytes, 256));
}

/// cublasLt's matrices are column-major: what it is asked for is y^T [n_out, rows] = w'^T x', w' [n_in, n_out], x'
/// [n_in, rows].
class Call {
 public:
  Call(const ProductShape& shape, std::int64_t rows) {
    const cublasOperation_t transposed = CUBLAS_OP_T;
    const auto n_out = static_cast<std::uint64_t>(shape.n_out);
    const auto n_in = static_cast<std::uint64_t>(shape.n_in);
    const auto n_rows = static_cast<std::uint64_t>(rows);
    SWITCHYARD_CUBLAS(cublasLtMatmulDescCreate(&product, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    SWITCHYARD_CUBLAS(
        cublasLtMatmulDescSetAttribute(product, CUBLASLT_MATMUL_DESC_TRANSA, &transposed, sizeof transposed));
    SWITCHYARD_CUBLAS(cublasLtMatrixLayoutCreate(&w, cuda_type(shape.in), n_in, n_out, shape.n_in));
    SWITCHYARD_CUBLAS(cublasLtMatrixLayoutCreate(&x, cuda_type(shape.in), n_in, n_rows, shape.n_in));
    SWITCHYARD_CUBLAS(cublasLtMatrixLayoutCreate(&y, cuda_type(shape.out), n_out, n_rows, shape.n_out));
  }
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;
  ~Call() {
    for (cublasLtMatrixLayout_t layout : {w, x, y})
      if (layout != nullptr) cublasLtMatrixLayoutDestroy(layout);
    if (product != nullptr) cublasLtMatmulDescDestroy(product);
  }

  cublasLtMatmulDesc_t product = nullptr;
  cublasLtMatrixLayout_t w = nullptr, x = nullptr, y = nullptr;
};

class Preference {
 public:
  explicit Preference(const ProductShape& shape) {
    const std::uint32_t no_split = CUBLASLT_REDUCTION_SCHEME_NONE;
    const std::size_t workspace = kWorkspaceBytes;
    SWITCHYARD_CUBLAS(cublasLtMatmulPreferenceCreate(&handle_));
    set(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, no_split);
    set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, workspace);
    // Rows of an expert begin anywhere in a matrix.
    set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, alignment_of(shape.n_in * size_of(shape.in)));
    set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, alignment_of(shape.n_in * size_of(shape.in)));
    set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, alignment_of(shape.n_out * size_of(shape.out)));
    set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, alignment_of(shape.n_out * size_of(shape.out)));
  }
  Preference(const Preference&) = delete;
  Preference& operator=(const Preference&) = delete;
  ~Preference() { cublasLtMatmulPreferenceDestroy(handle_); }

  cublasLtMatmulPreference_t handle() const { return handle_; }

 private:
  template <typename T>
  void set(cublasLtMatmulPreferenceAttributes_t attribute, const T& value) {
    SWITCHYARD_CUBLAS(cublasLtMatmulPreferenceSetAttribute(handle_, attribute, &value, sizeof value));
  }

  cublasLtMatmulPreference_t handle_ = nullptr;
};

bool serves_any_rows(const ProductShape& shape, const cublasLtMatmulAlgo_t& algorithm) {
  return std::ranges::all_of(kTriedRows, [&](std::int64_t rows) {
    const Call call(shape, rows);
    cublasLtMatmulHeuristicResult_t result = {};
    return cublasLtMatmulAlgoCheck(lt().handle, call.product, call.w, call.x, call.y, call.y, &algorithm, &result) ==
               CUBLAS_STATUS_SUCCESS &&
           result.workspaceSize <= kWorkspaceBytes;
  });
}

std::optional<cublasLtMatmulAlgo_t> choose_algorithm(const ProductShape& shape) {
  constexpr int kCandidates = 16;
  const Call call(shape, kTypicalRows);
  const Preference preference(shape);
  std::array<cublasLtMatmulHeuristicResult_t, kCandidates> candidates = {};
  int found = 0;
  SWITCHYARD_CUBLAS(cublasLtMatmulAlgoGetHeuristic(lt().handle, call.product, call.w, call.x, call.y, call.y,
                                                   preference.handle(), kCandidates, candidates.data(), &found));
  for (int i = 0; i < found; ++i) {
    const cublasLtMatmulHeuristicResult_t& candidate = candidates[static_cast<std::size_t>(i)];
    if (candidate.state == CUBLAS_STATUS_SUCCESS && serves_any_rows(shape, candidate.algo)) return candidate.algo;
  }
  return std::nullopt;
}

}  // namespace

struct PinnedProduct::Algorithm {
  cublasLtMatmulAlgo_t handle;
};

const PinnedProduct& PinnedProduct::get(const ProductShape& shape) {
  static std::mutex& mutex = *new std::mutex;
  static auto& known = *new std::map<ProductShape, PinnedProduct>;
  const std::lock_guard lock(mutex);
  if (const auto found = known.find(shape); found != known.end()) return found->second;
  const std::optional<cublasLtMatmulAlgo_t> algorithm = choose_algorithm(shape);
  if (!algorithm) {
    throw Error("cublasLt has no algorithm that multiplies any number of rows of " + std::to_string(shape.n_in) +
                    " elements by weights of [" + std::to_string(shape.n_out) + ", " + std::to_string(shape.n_in) + "]",
                {}, "route this model on the CPU");
  }
  return known.emplace(shape, PinnedProduct(shape, *new Algorithm{*algorithm})).first->second;
}

void PinnedProduct::run(const void* x, const void* w, void* y, std::int64_t rows) const {
  if (rows == 0) return;
  const Call call(shape_, rows);
  const float one = 1;
  const float of_what_is_there = shape_.add ? 1 : 0;
  SWITCHYARD_CUBLAS(cublasLtMatmul(lt().handle, call.product, &one, w, call.w, x, call.x, &of_what_is_there, y, call.y,
                                   y, call.y, &algorithm_->handle, lt().workspace.data(), kWorkspaceBytes,
                                   compute_stream().handle()));
}

}  // namespace switchyard::gpu
