#include <gtest/gtest.h>

#include "parallel/communicator.h"
#include "parallel/device/device_memory.h"
#include "parallel/device/gpu.h"
#include "parallel/device/stream.h"
#include "parallel/expert_transport.h"
#include "parallel/tensor.h"
#include "tests/support/error_text.h"

namespace switchyard {
namespace {

constexpr const char* kMessage =
    "this build of switchyard cannot use GPUs; build it where the CUDA compiler nvcc is on the PATH, with "
    "-DSWITCHYARD_CUDA=ON";

TEST(GpuStubTest, ABuildWithoutCudaSeesNoGpu) { EXPECT_EQ(count_gpus(), 0); }

TEST(GpuStubTest, WhoeverAsksForOneIsToldWhatToDo) {
  EXPECT_EQ(testing::error_text([] { static_cast<void>(use_gpu(0)); }), kMessage);
  EXPECT_EQ(testing::error_text([] { const Stream stream; }), kMessage);
  EXPECT_EQ(testing::error_text([] { static_cast<void>(compute_stream()); }), kMessage);
  EXPECT_EQ(testing::error_text([] { const Tensor tensor(DType::f32, 1, 1, Device::gpu); }), kMessage);
  EXPECT_EQ(testing::error_text([] { const Tensor tensor(DType::f32, 1, 1, Device::pinned); }), kMessage);
  EXPECT_EQ(testing::error_text([] { static_cast<void>(copy_to(Device::gpu, Tensor(DType::f32, 1, 1))); }), kMessage);
}

TEST(GpuStubTest, NcclIsMissingToo) {
  EXPECT_EQ(
      testing::error_text([] { static_cast<void>(make_nccl_transport(Communicator::self())); }),
      "this build of switchyard has no NCCL; choose the mpi transport, or build where nvcc, nccl.h and libnccl are "
      "found, with -DSWITCHYARD_CUDA=ON");
}

TEST(GpuStubTest, EmptyTensorsNeedNoGpu) {
  const Tensor tensor(DType::bf16, 0, 5, Device::gpu);
  EXPECT_EQ(tensor.device(), Device::gpu);
  EXPECT_EQ(tensor.rows(0, 0).device(), Device::gpu);
}

}  // namespace
}  // namespace switchyard
