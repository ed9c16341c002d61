#include "parallel/device/cuda/cuda_check.h"

#include <string>

#include "parallel/failed_call.h"

namespace switchyard {
namespace {

std::string remedy_for(cudaError_t code) {
  switch (code) {
    case cudaErrorNoDevice:
      return "run where nvidia-smi lists a GPU, and look at CUDA_VISIBLE_DEVICES";
    case cudaErrorInsufficientDriver:
      return "install a driver for CUDA " + std::to_string(CUDART_VERSION / 1000) + " or newer";
    case cudaErrorNoKernelImageForDevice:
      return "build with -DCMAKE_CUDA_ARCHITECTURES naming this GPU's architecture";
    case cudaErrorDevicesUnavailable:
      return "end the process that holds this GPU for itself, or choose another GPU by CUDA_VISIBLE_DEVICES";
    default:
      return {};
  }
}

}  // namespace

void cuda_check(cudaError_t code, const char* call, std::source_location where) {
  if (code == cudaSuccess) return;
  throw failed_call(call, cudaGetErrorString(code), where, remedy_for(code));
}

}  // namespace switchyard
