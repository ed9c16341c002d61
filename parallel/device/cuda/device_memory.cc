#include "parallel/device/device_memory.h"

#include <cstring>
#include <deque>
#include <string>
#include <utility>

#include "parallel/device/cuda/cuda_check.h"
#include "parallel/device/stream.h"
#include "parallel/error.h"

namespace switchyard {
namespace {

constexpr std::size_t kMostPooledOnGpu = std::size_t{4} << 30U;
constexpr std::size_t kMostPooledPinned = std::size_t{1} << 30U;
constexpr std::size_t kSmallStep = 512;
constexpr std::size_t kLargeStep = std::size_t{2} << 20U;  // sizes that differ little then share buffers

// What used the buffer last may still wait in the compute stream.
void free_on_gpu(std::byte* data) {
  cudaStreamSynchronize(compute_stream().handle());
  cudaFree(data);
}

void free_pinned(std::byte* data) { cudaFreeHost(data); }

BufferPool& pool_of(Device device) {
  // Never destroyed: tensors with static lifetime may be freed after them.
  static BufferPool& gpu = *new BufferPool(kMostPooledOnGpu, free_on_gpu);
  static BufferPool& pinned = *new BufferPool(kMostPooledPinned, free_pinned);
  return device == Device::gpu ? gpu : pinned;
}

std::function<void()>& idle_elsewhere() {
  static std::function<void()>& free_idle = *new std::function<void()>;
  return free_idle;
}

cudaError_t allocate(Device device, std::size_t bytes, void** data) {
  return device == Device::gpu ? cudaMalloc(data, bytes) : cudaHostAlloc(data, bytes, cudaHostAllocDefault);
}

[[noreturn]] void throw_no_memory(Device device, std::size_t bytes) {
  if (device == Device::pinned) {
    throw Error("no pinned host memory for " + std::to_string(bytes) + " bytes", {},
                "raise the limit of locked memory (ulimit -l), or use smaller batches");
  }
  std::size_t free_bytes = 0;
  std::size_t total_bytes = 0;
  cudaMemGetInfo(&free_bytes, &total_bytes);
  throw Error("no GPU memory for a tensor of " + std::to_string(bytes) + " bytes: " + std::to_string(free_bytes) +
                  " of the GPU's " + std::to_string(total_bytes) + " are free",
              {}, "use smaller batches or more ranks, each with its own GPU");
}

/// Pinned copies of what is on its way to the GPU. From one thread, as is all work in the compute stream.
class Uploads {
 public:
  void start(void* to, const void* from, std::size_t bytes) {
    for (; !flying_.empty() && flying_.front().done.is_done(); flying_.pop_front())
      give_device_buffer(Device::pinned, flying_.front().copy);
    const Buffer copy = take_device_buffer(Device::pinned, bytes);
    std::memcpy(copy.data, from, bytes);
    copy_in(compute_stream(), to, copy.data, bytes);
    flying_.push_back({compute_stream().record(), copy});
  }

 private:
  struct Flying {
    Event done;
    Buffer copy;
  };
  std::deque<Flying> flying_;
};

Uploads& uploads() {
  static Uploads& instance = *new Uploads;  // what is left in it at the end goes with the process
  return instance;
}

}  // namespace

Buffer take_device_buffer(Device device, std::size_t bytes) {
  BufferPool& pool = pool_of(device);
  if (const Buffer buffer = pool.take(bytes); buffer.data != nullptr) return buffer;
  const std::size_t step = bytes < kLargeStep / 2 ? kSmallStep : kLargeStep;
  const std::size_t capacity = (bytes + step - 1) / step * step;
  void* data = nullptr;
  cudaError_t result = allocate(device, capacity, &data);
  if (result == cudaErrorMemoryAllocation) {
    cudaGetLastError();  // not an error of whatever is called next
    pool.clear();
    if (device == Device::gpu && idle_elsewhere()) idle_elsewhere()();
    result = allocate(device, capacity, &data);
    if (result == cudaErrorMemoryAllocation) throw_no_memory(device, bytes);
  }
  cuda_check(result, device == Device::gpu ? "cudaMalloc" : "cudaHostAlloc");
  return {static_cast<std::byte*>(data), capacity};
}

void give_device_buffer(Device device, Buffer buffer) { pool_of(device).give(buffer); }

void free_idle_buffers(Device device) { pool_of(device).clear(); }

void on_gpu_memory_shortage(std::function<void()> free_idle) { idle_elsewhere() = std::move(free_idle); }

void copy_bytes(void* to, const void* from, std::size_t bytes) {
  if (bytes == 0) return;
  SWITCHYARD_CUDA(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, compute_stream().handle()));
  compute_stream().wait();
}

void upload(void* to, const void* from, std::size_t bytes) {
  if (bytes > 0) uploads().start(to, from, bytes);
}

void copy_in(const Stream& stream, void* to, const void* from, std::size_t bytes) {
  if (bytes > 0) SWITCHYARD_CUDA(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, stream.handle()));
}

void copy_in(const Stream& stream, void* to, const void* from, const BlocksApart& blocks) {
  if (blocks.count == 1) {  // of any size; distances end at 2 GiB
    copy_in(stream, to, from, blocks.bytes);
  } else if (blocks.count > 0) {
    SWITCHYARD_CUDA(cudaMemcpy2DAsync(to, blocks.apart_there, from, blocks.apart_here, blocks.bytes, blocks.count,
                                      cudaMemcpyDefault, stream.handle()));
  }
}

void clear(Tensor& tensor, std::int64_t first) {
  std::byte* begin = tensor.bytes() + first * tensor.row_bytes();
  const auto bytes = static_cast<std::size_t>((tensor.rows() - first) * tensor.row_bytes());
  if (bytes > 0) SWITCHYARD_CUDA(cudaMemsetAsync(begin, 0, bytes, compute_stream().handle()));
}

Tensor copy_to(Device device, TensorView from) {
  Tensor to(from.dtype(), from.rows(), from.cols(), device);
  copy_bytes(to.bytes(), from.bytes(), static_cast<std::size_t>(from.rows() * from.row_bytes()));
  return to;
}

}  // namespace switchyard
