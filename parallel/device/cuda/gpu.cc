#include "parallel/device/gpu.h"

#include <cuda_runtime_api.h>

#include <array>
#include <string>

#include "parallel/device/cuda/cuda_check.h"
#include "parallel/error.h"

namespace switchyard {

int count_gpus() {
  int count = 0;
  // An error here means that none can be used, which use_gpu explains to whoever asks for one.
  return cudaGetDeviceCount(&count) == cudaSuccess ? count : 0;
}

GpuReport use_gpu(int ordinal) {
  int count = 0;
  SWITCHYARD_CUDA(cudaGetDeviceCount(&count));
  if (ordinal < 0 || ordinal >= count) {
    throw Error("there is no GPU " + std::to_string(ordinal) + ": CUDA shows this process " + std::to_string(count), {},
                "look at CUDA_VISIBLE_DEVICES");
  }
  SWITCHYARD_CUDA(cudaSetDevice(ordinal));
  cudaDeviceProp properties = {};
  SWITCHYARD_CUDA(cudaGetDeviceProperties(&properties, ordinal));
  std::size_t free_bytes = 0;
  std::size_t total_bytes = 0;
  SWITCHYARD_CUDA(cudaMemGetInfo(&free_bytes, &total_bytes));
  std::array<char, 32> bus_id = {};
  SWITCHYARD_CUDA(cudaDeviceGetPCIBusId(bus_id.data(), static_cast<int>(bus_id.size()), ordinal));
  return {.name = properties.name,
          .id = std::string(properties.uuid.bytes, sizeof properties.uuid.bytes),
          .pci_bus_id = bus_id.data(),
          .capability = properties.major * 10 + properties.minor,
          .multiprocessors = properties.multiProcessorCount,
          .total_bytes = total_bytes,
          .free_bytes = free_bytes};
}

}  // namespace switchyard
