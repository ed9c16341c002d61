/// Streams, events and memory of a GPU, on the stand-in.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <cstring>
#include <span>
#include <thread>
#include <utility>
#include <vector>

#include "parallel/device/device_array.h"
#include "parallel/device/device_memory.h"
#include "parallel/device/gpu.h"
#include "parallel/device/stream.h"
#include "parallel/tensor.h"
#include "tests/support/error_text.h"
#include "tests/support/fake_gpu/fake_gpu.h"

namespace switchyard {
namespace {

/// Keeps a stream busy until it is destroyed or told to go.
class Hold {
 public:
  explicit Hold(const Stream& stream) {
    fake_gpu::enqueue(stream.handle(), {}, [this] {
      while (!go_) std::this_thread::yield();
      gone_ = true;
    });
  }
  ~Hold() {
    go_ = true;
    while (!gone_) std::this_thread::yield();
  }
  void let_go() { go_ = true; }

 private:
  std::atomic<bool> go_ = false, gone_ = false;
};

TEST(GpuTest, IsReported) {
  EXPECT_EQ(count_gpus(), 1);
  const GpuReport gpu = use_gpu(0);
  EXPECT_EQ(gpu.name, "fake GPU");
  EXPECT_EQ(gpu.total_bytes, std::uint64_t{1} << 30U);
  EXPECT_EQ(describe({.name = "X",
                      .id = "",
                      .pci_bus_id = "",
                      .capability = 90,
                      .multiprocessors = 132,
                      .total_bytes = 3U << 29U,
                      .free_bytes = 1U << 29U}),
            "X, 132 multiprocessors (9.0), 0.5 of 1.5 GiB free");
  EXPECT_EQ(testing::error_text([] { static_cast<void>(use_gpu(1)); }),
            "there is no GPU 1: CUDA shows this process 1; look at CUDA_VISIBLE_DEVICES");
}

TEST(StreamTest, AnEventComesWhenTheWorkBeforeItIsDone) {
  const Stream stream;
  Hold hold(stream);
  const Event event = stream.record();
  EXPECT_FALSE(event.is_done());
  hold.let_go();
  event.wait();
  EXPECT_TRUE(event.is_done());
}

TEST(StreamTest, OneStreamWaitsForAnother) {
  const Stream first;
  const Stream second;
  Hold hold(first);
  second.wait_for(first.record());  // the event itself may go
  const Event behind = second.record();
  EXPECT_FALSE(behind.is_done());
  hold.let_go();
  second.wait();
  EXPECT_TRUE(behind.is_done());
}

TEST(StreamTest, ErrorsOfTheDeviceAreThrownWithTheirPlace) {
  const Stream stream;
  const Event event = stream.record();
  fake_gpu::lose_device(cudaErrorIllegalAddress);
  EXPECT_THAT(testing::error_text([&] { stream.wait(); }),
              ::testing::MatchesRegex(
                  "stream\\.cc:[0-9]+: cudaStreamSynchronize failed: an illegal memory access was encountered"));
  EXPECT_THAT(testing::error_text([&] { static_cast<void>(event.is_done()); }), ::testing::HasSubstr("cudaEventQuery"));
  fake_gpu::reset();
}

TEST(DeviceMemoryTest, CopiesKeepEveryBit) {
  Tensor rows(DType::f32, 5, 7);
  for (int i = 0; i < 35; ++i) rows.data<float>()[i] = static_cast<float>(i) / 3;
  const Tensor on_gpu = copy_to(Device::gpu, rows);
  EXPECT_EQ(on_gpu.device(), Device::gpu);
  EXPECT_EQ(on_gpu.rows(), 5);
  EXPECT_EQ(on_gpu.cols(), 7);
  EXPECT_TRUE(fake_gpu::is_device_memory({on_gpu.bytes(), 140}));
  const Tensor pinned = copy_to(Device::pinned, on_gpu.rows(1, 4));
  EXPECT_TRUE(fake_gpu::is_pinned_memory({pinned.bytes(), 84}));
  const Tensor back = copy_to(Device::cpu, pinned);
  EXPECT_EQ(std::memcmp(back.bytes(), rows.row<float>(1).data(), 84), 0);
}

TEST(DeviceMemoryTest, ArraysGoAndComeBack) {
  const std::vector<std::int32_t> values = {3, -1, 2147483647};
  DeviceArray<std::int32_t> first{std::span<const std::int32_t>(values)};
  EXPECT_TRUE(fake_gpu::is_device_memory({first.data(), 12}));
  DeviceArray<std::int32_t> second(std::move(first));
  EXPECT_EQ(second.to_host(), values);
  first = DeviceArray<std::int32_t>(5);  // NOLINT(bugprone-use-after-move): what a move leaves is what is tested
  EXPECT_EQ(first.size(), 5U);
  EXPECT_TRUE(DeviceArray<std::int64_t>(0).to_host().empty());
}

TEST(DeviceMemoryTest, WhatIsFreedServesTheNextOfItsSizeAndKind) {
  const std::byte* gpu = nullptr;
  const std::byte* pinned = nullptr;
  {
    const Tensor first(DType::f32, 100, 100, Device::gpu);
    const Tensor second(DType::f32, 100, 100, Device::pinned);
    gpu = first.bytes();
    pinned = second.bytes();
  }
  const Tensor first(DType::bf16, 100, 199, Device::pinned);
  const Tensor second(DType::bf16, 100, 199, Device::gpu);
  EXPECT_EQ(first.bytes(), pinned);
  EXPECT_EQ(second.bytes(), gpu);
}

TEST(DeviceMemoryTest, IdleMemoryIsFreedBeforeTheGpuIsCalledFull) {
  { const Tensor idle(DType::f32, 700, 1 << 18, Device::gpu); }
  { const Tensor other(DType::f32, 320, 1 << 18, Device::gpu); }  // does not fit beside the first
  const Tensor nearly_all(DType::f32, 1000, 1 << 18, Device::gpu);
  EXPECT_THAT(
      testing::error_text([] { const Tensor more(DType::f32, 100, 1 << 18, Device::gpu); }),
      ::testing::MatchesRegex("no GPU memory for a tensor of 104857600 bytes: [0-9]+ of the GPU's 1073741824 are "
                              "free; use smaller batches or more ranks, each with its own GPU"));
}

TEST(DeviceMemoryTest, FreeingWaitsForTheComputeStream) {
  Tensor rows(DType::f32, 300, 1 << 18, Device::gpu);
  Hold hold(compute_stream());
  fake_gpu::enqueue(compute_stream().handle(), {{rows.bytes(), 100}}, [] {});
  rows = Tensor();
  std::thread later([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    hold.let_go();
  });
  const Tensor other(DType::f32, 1000, 1 << 18, Device::gpu);
  later.join();
  EXPECT_EQ(fake_gpu::take_complaints(), "");
}

}  // namespace
}  // namespace switchyard
