#include "parallel/device/nccl/registered_buffers.h"

#include <algorithm>
#include <bit>
#include <cassert>
#include <exception>
#include <string>

#include "parallel/device/device_memory.h"
#include "parallel/device/nccl/nccl_check.h"
#include "parallel/device/stream.h"
#include "parallel/error.h"

namespace switchyard {
namespace {

constexpr std::size_t kMostIdle = std::size_t{4} << 30U;
constexpr std::size_t kSmallestStep = std::size_t{2} << 20U;  // NCCL allocates whole pages of a GPU

/// Rows of a step are about as many as of the step before: of eight sizes between a power of two and the next, few are
/// ever needed.
std::size_t capacity_for(std::size_t bytes) {
  const std::size_t step = std::max(kSmallestStep, std::bit_floor(bytes) / 8);
  return (bytes + step - 1) / step * step;
}

#if NCCL_VERSION_CODE >= NCCL_VERSION(2, 19, 0)
ncclResult_t allocate_by_nccl(void** data, std::size_t bytes) { return ncclMemAlloc(data, bytes); }
void free_by_nccl(void* data) { SWITCHYARD_NCCL(ncclMemFree(data)); }
void* register_with(const NcclCommunicator& nccl, void* data, std::size_t bytes) {
  void* handle = nullptr;
  SWITCHYARD_NCCL(ncclCommRegister(nccl.handle(), data, bytes, &handle));
  nccl.settle();
  return handle;
}
void deregister_from(const NcclCommunicator& nccl, void* handle) {
  SWITCHYARD_NCCL(ncclCommDeregister(nccl.handle(), handle));
  nccl.settle();
}
#else
ncclResult_t allocate_by_nccl(void** data, std::size_t bytes) {
  if (cudaMalloc(data, bytes) == cudaSuccess) return ncclSuccess;
  cudaGetLastError();  // not an error of whatever is called next
  return ncclUnhandledCudaError;
}
void free_by_nccl(void* data) { cudaFree(data); }
void* register_with(const NcclCommunicator& /*nccl*/, void* /*data*/, std::size_t /*bytes*/) { return nullptr; }
void deregister_from(const NcclCommunicator& /*nccl*/, void* /*handle*/) {}
#endif

}  // namespace

RegisteredBuffers::RegisteredBuffers(NcclCommunicator& nccl)
    : nccl_(nccl), idle_(kMostIdle, [this](std::byte* data) { free(data); }) {
  on_gpu_memory_shortage([this] { idle_.clear(); });
}

RegisteredBuffers::~RegisteredBuffers() {
  on_gpu_memory_shortage({});
  if (nccl_.handle() == nullptr || std::uncaught_exceptions() > 0) return;
  idle_.clear();
  assert(handles_.empty() && "rows outlive their transport");
}

Buffer RegisteredBuffers::take(std::size_t bytes) {
  const std::size_t capacity = capacity_for(bytes);
  if (const Buffer buffer = idle_.take(capacity); buffer.data != nullptr) return buffer;
  return {allocate(capacity), capacity};
}

std::byte* RegisteredBuffers::allocate(std::size_t capacity) {
  void* data = nullptr;
  if (allocate_by_nccl(&data, capacity) != ncclSuccess) {
    idle_.clear();
    free_idle_buffers(Device::gpu);
    if (allocate_by_nccl(&data, capacity) != ncclSuccess) {
      throw Error("no GPU memory for " + std::to_string(capacity) + " bytes of rows to exchange", {},
                  "use smaller batches or more ranks");
    }
  }
  auto* const buffer = static_cast<std::byte*>(data);
  handles_[buffer] = register_with(nccl_, data, capacity);
  return buffer;
}

void RegisteredBuffers::free(std::byte* data) {
  compute_stream().wait();  // what used the buffer last may still be there
  deregister_from(nccl_, handles_.at(data));
  handles_.erase(data);
  free_by_nccl(data);
}

}  // namespace switchyard
