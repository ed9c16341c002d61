#include <cutlass/cutlass.h>
#include <cutlass/gemm/device/gemm_universal_adapter.h>

#include <cute/tensor.hpp>
#include <cutlass/epilogue/collective/collective_builder.hpp>
#include <cutlass/epilogue/fusion/sm90_callbacks_tma_warpspecialized.hpp>
#include <cutlass/gemm/collective/collective_builder.hpp>
#include <cutlass/gemm/group_array_problem_shape.hpp>
#include <cutlass/gemm/kernel/gemm_universal.hpp>

#include "parallel/device/cuda/cuda_check.h"
#include "parallel/device/device_array.h"
#include "parallel/device/stream.h"
#include "parallel/failed_call.h"
#include "pipeline/kernels/cuda/activation_core.h"
#include "pipeline/kernels/cuda/cutlass_product.h"

namespace switchyard::gpu {
namespace {

using cutlass::bfloat16_t;
using RowMajor = cutlass::layout::RowMajor;
using ColumnMajor = cutlass::layout::ColumnMajor;  // weights [n, k] by rows are k x n by columns
using Shape = cute::Shape<int, int, int>;

// A tile of 128 x 256 sums keeps the tensor cores busy on 48 KiB of shared memory a step, of which four steps fit. Its
// columns divide 28672 and 4096 (Mixtral-8x7B), 2816 and 2048 (DeepSeekMoE) evenly; its rows are few beside those of an
// expert at thousands of tokens. Two blocks share a tile of weights, the larger part of what they read: alone they
// would ask more of the L2 cache than it gives.
using Tile = cute::Shape<cute::_128, cute::_256, cute::_64>;
using Cluster = cute::Shape<cute::_2, cute::_1, cute::_1>;

namespace fusion = cutlass::epilogue::fusion;

template <typename T>
struct Silu;
template <int kElements>
struct Silu<cutlass::Array<float, kElements>> {
  __device__ cutlass::Array<float, kElements> operator()(cutlass::Array<float, kElements> x) const {
    SWITCHYARD_UNROLL
    for (int i = 0; i < kElements; ++i) x[i] = cores::silu(x[i]);
    return x;
  }
};

template <template <typename> typename Function, typename Out, typename... Operands>
using Applied =
    fusion::Sm90EVT<fusion::Sm90Compute<Function, Out, float, cutlass::FloatRoundStyle::round_to_nearest>, Operands...>;

// What becomes of a sum, with the matrix that it needs for that, if any.
template <typename Out>
struct Plain {
  using Gate = void;
  using Product = Out;
  using Fusion = fusion::LinearCombination<Out, float, void>;
};
struct SiluGated {
  using Gate = float;
  using Product = bfloat16_t;
  using Fusion =
      Applied<cutlass::multiplies, Product, Applied<Silu, float, fusion::Sm90SrcFetch<Gate>>, fusion::Sm90AccFetch>;
};

template <typename Use>
struct Kernel {
  static constexpr int kAlignment = kCutlassMultiple;
  static constexpr int kGateAlignment = 16 / static_cast<int>(sizeof(float));
  using Gate = typename Use::Gate;
  using Out = typename Use::Product;
  using Epilogue = typename cutlass::epilogue::collective::CollectiveBuilder<
      cutlass::arch::Sm90, cutlass::arch::OpClassTensorOp, Tile, Cluster,
      cutlass::epilogue::collective::EpilogueTileAuto, float, float, Gate, RowMajor*, kGateAlignment, Out, RowMajor*,
      16 / static_cast<int>(sizeof(Out)), cutlass::epilogue::PtrArrayTmaWarpSpecializedCooperative,
      typename Use::Fusion>::CollectiveOp;
  using Mainloop = typename cutlass::gemm::collective::CollectiveBuilder<
      cutlass::arch::Sm90, cutlass::arch::OpClassTensorOp, bfloat16_t, RowMajor*, kAlignment, bfloat16_t, ColumnMajor*,
      kAlignment, float, Tile, Cluster,
      cutlass::gemm::collective::StageCountAutoCarveout<static_cast<int>(sizeof(typename Epilogue::SharedStorage))>,
      cutlass::gemm::KernelPtrArrayTmaWarpSpecializedCooperative>::CollectiveOp;
  using Gemm = cutlass::gemm::device::GemmUniversalAdapter<
      cutlass::gemm::kernel::GemmUniversal<cutlass::gemm::GroupProblemShape<Shape>, Mainloop, Epilogue>>;
  using InStride = typename Gemm::GemmKernel::InternalStrideA;
  using OutStride = typename Gemm::GemmKernel::InternalStrideD;
  static_assert(std::is_same_v<InStride, typename Gemm::GemmKernel::InternalStrideB>);
  static_assert(sizeof(InStride) == sizeof(std::int64_t) && sizeof(OutStride) == sizeof(std::int64_t));
  static_assert(Mainloop::DispatchPolicy::Stages >= 3);
};
static_assert(sizeof(Shape) == sizeof(GroupShape));

void check(cutlass::Status status, const char* call, std::source_location where = std::source_location::current()) {
  if (status != cutlass::Status::kSuccess) throw failed_call(call, cutlassGetStatusString(status), where);
}

int current_device() {
  int device = 0;
  cuda_check(cudaGetDevice(&device), "cudaGetDevice");
  return device;
}

/// An array as CUTLASS wants it: it takes arrays to be read as ones to be written.
template <typename T>
T* as(const void* array) {
  return static_cast<T*>(const_cast<void*>(array));
}

template <typename Use>
void run(const GroupedProduct& product, const void* const* gates) {
  using K = Kernel<Use>;
  using Out = typename K::Out;
  static const int multiprocessors = cutlass::KernelHardwareInfo::query_device_multiprocessor_count(current_device());
  typename K::Gemm::Arguments arguments{
      cutlass::gemm::GemmUniversalMode::kGrouped,
      {product.n_groups, as<Shape>(product.shapes), nullptr},
      {as<const bfloat16_t*>(product.rows), as<typename K::InStride>(product.in_strides),
       as<const bfloat16_t*>(product.weights), as<typename K::InStride>(product.in_strides)},
      {{}, nullptr, nullptr, as<Out*>(product.products), as<typename K::OutStride>(product.out_strides)},
      {current_device(), multiprocessors}};
  if constexpr (std::is_void_v<typename K::Gate>) {
    arguments.epilogue.thread.alpha = 1;
    arguments.epilogue.thread.beta = 0;
  } else {
    arguments.epilogue.ptr_C = as<const typename K::Gate*>(gates);
    arguments.epilogue.dC = as<typename K::OutStride>(product.out_strides);
  }
  typename K::Gemm gemm;
  check(K::Gemm::can_implement(arguments), "can_implement of CUTLASS");
  DeviceArray<std::byte> workspace(K::Gemm::get_workspace_size(arguments));
  check(gemm.run(arguments, workspace.data(), compute_stream().handle()), "a grouped product of CUTLASS");
}

}  // namespace

std::optional<std::string> why_no_cutlass() {
  int major = 0;
  int minor = 0;
  const int device = current_device();
  cuda_check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device), "cudaDeviceGetAttribute");
  cuda_check(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device), "cudaDeviceGetAttribute");
  if (major == 9 && minor == 0) return std::nullopt;
  return "the kernel of CUTLASS is for GPUs of compute capability 9.0, and this one has " + std::to_string(major) +
         "." + std::to_string(minor);
}

void run_cutlass(const GroupedProduct& product, DType out) {
  out == DType::f32 ? run<Plain<float>>(product, nullptr) : run<Plain<bfloat16_t>>(product, nullptr);
}

void run_cutlass_silu_gated(const GroupedProduct& product, const void* const* gates) { run<SiluGated>(product, gates); }

}  // namespace switchyard::gpu
