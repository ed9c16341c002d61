#include "parallel/error.h"
#include "pipeline/kernels/cuda/cudnn_graph.h"

namespace switchyard::gpu {
namespace {

[[noreturn]] void throw_no_cudnn() {
  throw Error("this build of switchyard is without cuDNN", {},
              "build it with cuDNN's headers, and with SWITCHYARD_PYPI a folder of `pip install --target` that holds "
              "nvidia-cudnn-frontend");
}

}  // namespace

struct CudnnDevice::State {};
struct CudnnGraph::State {};

std::string cudnn_version() { throw_no_cudnn(); }
const CudnnDevice& CudnnDevice::current() { throw_no_cudnn(); }
CudnnDevice::CudnnDevice(int /*capability*/, const std::string& /*description*/) { throw_no_cudnn(); }
CudnnDevice::~CudnnDevice() = default;
CudnnDevice::CudnnDevice(CudnnDevice&&) noexcept = default;
CudnnGraph::~CudnnGraph() = default;
CudnnGraph::CudnnGraph(CudnnGraph&&) noexcept = default;
const std::string& CudnnGraph::plan() const { throw_no_cudnn(); }
void CudnnGraph::run(std::span<const void* const> /*operands*/) const { throw_no_cudnn(); }
CudnnGraph plan_attention(const CudnnDevice& /*device*/, const AttentionGraphShape& /*shape*/,
                          const std::string& /*plan*/) {
  throw_no_cudnn();
}
CudnnGraph plan_grouped_matmul(const CudnnDevice& /*device*/, const GroupedGraphShape& /*shape*/,
                               const std::string& /*plan*/) {
  throw_no_cudnn();
}

}  // namespace switchyard::gpu
