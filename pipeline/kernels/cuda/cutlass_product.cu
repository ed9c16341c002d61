#include <cutlass/cutlass.h>
#include <cutlass/gemm/device/gemm_universal_adapter.h>

#include <cute/tensor.hpp>
#include <cutlass/epilogue/collective/collective_builder.hpp>
#include <cutlass/gemm/collective/collective_builder.hpp>
#include <cutlass/gemm/group_array_problem_shape.hpp>
#include <cutlass/gemm/kernel/gemm_universal.hpp>

#include "parallel/device/cuda/cuda_check.h"
#include "parallel/device/device_array.h"
#include "parallel/device/stream.h"
#include "parallel/failed_call.h"
#include "pipeline/kernels/cuda/cutlass_product.h"
#include "pipeline/kernels/cuda/gated_epilogue.h"

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

template <typename CollectiveEpilogue>
struct Kernel {
  using Epilogue = CollectiveEpilogue;
  static constexpr int kAlignment = kCutlassMultiple;
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
  static_assert(Mainloop::DispatchPolicy::Stages == 4 && Gemm::GemmKernel::SharedStorageSize <= 227 * 1024);
};
static_assert(sizeof(Shape) == sizeof(GroupShape));

using Plain = Kernel<cutlass::epilogue::collective::CollectiveBuilder<
    cutlass::arch::Sm90, cutlass::arch::OpClassTensorOp, Tile, Cluster, cutlass::epilogue::collective::EpilogueTileAuto,
    float, float, void, RowMajor*, kCutlassMultiple, bfloat16_t, RowMajor*, kCutlassMultiple,
    cutlass::epilogue::PtrArrayTmaWarpSpecializedCooperative,
    cutlass::epilogue::fusion::LinearCombination<bfloat16_t, float, void>>::CollectiveOp>;

template <Activation kActivation>
using Gated = Kernel<cutlass::epilogue::collective::detail::Sm90TmaWarpSpecializedAdapter<GatedEpilogue<kActivation>>>;

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

/// scaling: the epilogue's first arguments.
template <typename K, typename Scaling>
void run(const GroupedProduct& product, const Scaling& scaling) {
  static const int multiprocessors = cutlass::KernelHardwareInfo::query_device_multiprocessor_count(current_device());
  typename K::Gemm::Arguments arguments{
      cutlass::gemm::GemmUniversalMode::kGrouped,
      {product.n_groups, as<Shape>(product.shapes), nullptr},
      {as<const bfloat16_t*>(product.rows), as<typename K::InStride>(product.in_strides),
       as<const bfloat16_t*>(product.weights), as<typename K::InStride>(product.in_strides)},
      {scaling, nullptr, nullptr, as<bfloat16_t*>(product.products), as<typename K::OutStride>(product.out_strides)},
      {current_device(), multiprocessors}};
  typename K::Gemm gemm;
  check(K::Gemm::can_implement(arguments), "can_implement of CUTLASS");
  DeviceArray<std::byte> workspace(K::Gemm::get_workspace_size(arguments));
  check(gemm.run(arguments, workspace.data(), compute_stream().handle()), "a grouped product of CUTLASS");
}

template <Activation kActivation>
void run_gated(const GroupedProduct& product) {
  run<Gated<kActivation>>(product, WritesBf16::Params(1, 0));
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

void run_cutlass(const GroupedProduct& product) {
  using Scaling = typename Plain::Epilogue::FusionCallbacks::Arguments;
  run<Plain>(product, Scaling{.alpha = 1, .beta = 0});
}

void run_cutlass_gated(const GroupedProduct& product, Activation activation) {
  activation == Activation::silu ? run_gated<Activation::silu>(product) : run_gated<Activation::gelu>(product);
}

}  // namespace switchyard::gpu
