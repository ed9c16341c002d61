/// The stand-in for CUDA and NCCL must see the mistakes for whose sake it exists.

#include "tests/support/fake_gpu/fake_gpu.h"

#include <cuda_runtime_api.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <nccl.h>

#include <atomic>
#include <chrono>
#include <thread>
#include <utility>
#include <vector>

#include "parallel/communicator.h"
#include "parallel/device/stream.h"

namespace switchyard {
namespace {

using testing::HasSubstr;

/// A communicator, a stream and 100 bytes to send and to receive for each rank; errors are expected, so nothing checks
/// on the way.
class FakeGpuTest : public testing::Test {
 protected:
  void SetUp() override {
    fake_gpu::set_patience(std::chrono::milliseconds(300));
    ncclUniqueId id;
    ncclGetUniqueId(&id);
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;
    EXPECT_EQ(ncclCommInitRankConfig(&nccl_, comm_.size(), id, comm_.rank(), &config), ncclInProgress);
    EXPECT_EQ(settle(), ncclSuccess);
    cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking);
    const auto bytes = static_cast<std::size_t>(kBytes * comm_.size());
    cudaMalloc(&sent_, bytes);
    cudaMalloc(&received_, bytes);
  }

  void TearDown() override {
    ncclCommAbort(nccl_);  // all that ever waits is free to go
    cudaStreamDestroy(stream_);
    fake_gpu::reset();
    comm_.barrier();
  }

  ncclResult_t settle() {
    ncclResult_t state = ncclInProgress;
    while (state == ncclInProgress) ncclCommGetAsyncError(nccl_, &state);
    return state;
  }

  /// Sends kBytes to each rank and receives what `expected` says from each.
  void exchange(const std::vector<std::size_t>& expected, bool grouped = true) {
    if (grouped) ncclGroupStart();
    for (int rank = 0; rank < comm_.size(); ++rank) {
      ncclSend(static_cast<char*>(sent_) + rank * kBytes, kBytes, ncclUint8, rank, nccl_, stream_);
      settle();
      ncclRecv(static_cast<char*>(received_) + rank * kBytes, expected[static_cast<std::size_t>(rank)], ncclUint8, rank,
               nccl_, stream_);
      settle();
    }
    if (grouped) ncclGroupEnd();
    settle();
  }

  /// What the exchange ends with, once it has ended or failed.
  ncclResult_t outcome() {
    cudaEvent_t done = nullptr;
    cudaEventCreateWithFlags(&done, cudaEventDisableTiming);
    cudaEventRecord(done, stream_);
    ncclResult_t state = ncclSuccess;
    while (cudaEventQuery(done) == cudaErrorNotReady && state == ncclSuccess) ncclCommGetAsyncError(nccl_, &state);
    return state;
  }

  static constexpr std::size_t kBytes = 100;
  Communicator comm_ = Communicator::world();
  ncclComm_t nccl_ = nullptr;
  cudaStream_t stream_ = nullptr;
  void* sent_ = nullptr;
  void* received_ = nullptr;
};

TEST_F(FakeGpuTest, AgreesWithARightExchange) {
  const auto n_ranks = static_cast<std::size_t>(comm_.size());
  std::vector<char> bytes(kBytes * n_ranks);
  for (std::size_t i = 0; i < bytes.size(); ++i)
    bytes[i] = static_cast<char>(i / kBytes * 4 + static_cast<std::size_t>(comm_.rank()));
  cudaMemcpyAsync(sent_, bytes.data(), bytes.size(), cudaMemcpyHostToDevice, stream_);
  exchange(std::vector<std::size_t>(n_ranks, kBytes));
  EXPECT_EQ(outcome(), ncclSuccess);
  cudaMemcpyAsync(bytes.data(), received_, bytes.size(), cudaMemcpyDeviceToHost, stream_);
  EXPECT_EQ(cudaStreamSynchronize(stream_), cudaSuccess);
  for (std::size_t i = 0; i < bytes.size(); ++i)
    EXPECT_EQ(bytes[i], static_cast<char>(static_cast<std::size_t>(comm_.rank()) * 4 + i / kBytes)) << i;
  EXPECT_EQ(fake_gpu::take_complaints(), "");
}

TEST_F(FakeGpuTest, SeesSizesThatDiffer) {
  std::vector<std::size_t> expected(static_cast<std::size_t>(comm_.size()), kBytes);
  expected[0] -= 1;  // nobody wants all that rank 0 sends
  exchange(expected);
  EXPECT_EQ(outcome(), ncclInvalidUsage);
  EXPECT_THAT(fake_gpu::take_complaints(), HasSubstr("receives 99 elements from rank 0, which sends 100"));
}

TEST_F(FakeGpuTest, SeesAForgottenGroup) {
  // Each send waits for a receive that is behind it in the same stream.
  exchange(std::vector<std::size_t>(static_cast<std::size_t>(comm_.size()), kBytes), /*grouped=*/false);
  EXPECT_EQ(outcome(), ncclRemoteError);
  EXPECT_THAT(fake_gpu::take_complaints(), HasSubstr("no partner (a group is missing"));
}

TEST_F(FakeGpuTest, SeesARankThatDoesNotCome) {
  if (comm_.size() == 1) GTEST_SKIP() << "nobody to wait for";
  if (comm_.rank() == comm_.size() - 1) return;
  exchange(std::vector<std::size_t>(static_cast<std::size_t>(comm_.size()), kBytes));
  EXPECT_EQ(outcome(), ncclRemoteError);
  const std::string last = std::to_string(comm_.size() - 1);
  EXPECT_THAT(fake_gpu::take_complaints(), HasSubstr("receives 100 elements from rank " + last));
}

TEST_F(FakeGpuTest, SeesHostPointersAndBuffersThatAreTooShort) {
  std::vector<char> host(kBytes);
  EXPECT_EQ(ncclSend(host.data(), kBytes, ncclUint8, 0, nccl_, stream_), ncclInvalidArgument);
  EXPECT_EQ(ncclRecv(host.data(), kBytes, ncclUint8, 0, nccl_, stream_), ncclInvalidArgument);
  const std::size_t too_many = kBytes * static_cast<std::size_t>(comm_.size()) + 1;
  EXPECT_EQ(ncclSend(sent_, too_many, ncclUint8, 0, nccl_, stream_), ncclInvalidArgument);
  EXPECT_EQ(cudaMemcpyAsync(host.data(), host.data(), kBytes, cudaMemcpyHostToDevice, stream_), cudaErrorInvalidValue);
  EXPECT_THAT(fake_gpu::take_complaints(), HasSubstr("not device memory"));
}

TEST_F(FakeGpuTest, SeesCallsThatDoNotWaitForTheLastOne) {
  ncclGroupStart();
  ncclSend(sent_, kBytes, ncclUint8, comm_.rank(), nccl_, stream_);
  ncclRecv(received_, kBytes, ncclUint8, comm_.rank(), nccl_, stream_);
  EXPECT_EQ(ncclGroupEnd(), ncclInProgress);
  EXPECT_EQ(ncclSend(sent_, kBytes, ncclUint8, comm_.rank(), nccl_, stream_), ncclInvalidUsage);
  EXPECT_EQ(settle(), ncclSuccess);
  EXPECT_EQ(outcome(), ncclSuccess);
}

TEST_F(FakeGpuTest, SeesMemoryFreedWhileWorkIsPending) {
  std::atomic<bool> go = false;
  fake_gpu::enqueue(stream_, {}, [&] {
    while (!go) std::this_thread::yield();
  });
  cudaMemcpyAsync(received_, sent_, kBytes, cudaMemcpyDeviceToDevice, stream_);
  EXPECT_EQ(cudaFree(received_), cudaErrorIllegalAddress);
  EXPECT_THAT(fake_gpu::take_complaints(), HasSubstr("freed while work that touches it is pending"));
  go = true;
  EXPECT_EQ(cudaStreamSynchronize(stream_), cudaErrorIllegalAddress);  // the device stays lost, as a real one does
  fake_gpu::reset();
  EXPECT_EQ(cudaStreamSynchronize(stream_), cudaSuccess);
  EXPECT_EQ(cudaFree(received_), cudaSuccess);
  EXPECT_EQ(cudaFree(received_), cudaErrorInvalidValue);
}

TEST_F(FakeGpuTest, SeesStreamsThatDoNotWaitForEachOther) {
  cudaStream_t other = nullptr;
  cudaStreamCreateWithFlags(&other, cudaStreamNonBlocking);
  const auto copy_in_both = [&](auto order) {
    cudaMemcpyAsync(received_, sent_, kBytes, cudaMemcpyDeviceToDevice, stream_);
    order();
    cudaMemcpyAsync(sent_, received_, kBytes, cudaMemcpyDeviceToDevice, other);
    cudaStreamSynchronize(other);
    cudaStreamSynchronize(stream_);
    return fake_gpu::take_complaints();
  };
  EXPECT_THAT(copy_in_both([] {}), HasSubstr("two streams touch the same memory"));
  cudaEvent_t event = nullptr;
  cudaEventCreateWithFlags(&event, cudaEventDisableTiming);
  EXPECT_EQ(copy_in_both([&] {
              cudaEventRecord(event, stream_);
              cudaStreamWaitEvent(other, event, 0);
            }),
            "");
  EXPECT_EQ(copy_in_both([&] { cudaStreamSynchronize(stream_); }), "");
  cudaStreamDestroy(other);
}

TEST_F(FakeGpuTest, SeesWhatMustNotBeRegistered) {
  std::vector<char> host(kBytes);
  void* handle = nullptr;
  EXPECT_EQ(ncclCommRegister(nccl_, host.data(), kBytes, &handle), ncclInvalidArgument);
  EXPECT_THAT(fake_gpu::take_complaints(), HasSubstr("not device memory"));
  EXPECT_EQ(ncclCommRegister(nccl_, sent_, kBytes, &handle), ncclInvalidUsage);
  EXPECT_THAT(fake_gpu::take_complaints(), HasSubstr("not ncclMemAlloc's"));
  EXPECT_EQ(ncclMemFree(sent_), ncclInvalidArgument);
  EXPECT_THAT(fake_gpu::take_complaints(), HasSubstr("did not give"));
}

TEST_F(FakeGpuTest, SeesRegistrationsThatDoNotEndOnceBeforeTheMemory) {
  void* data = nullptr;
  void* handle = nullptr;
  EXPECT_EQ(ncclMemAlloc(&data, kBytes), ncclSuccess);
  EXPECT_EQ(ncclCommRegister(nccl_, data, kBytes, &handle), ncclSuccess);
  EXPECT_EQ(cudaFree(data), cudaErrorInvalidValue);
  EXPECT_THAT(fake_gpu::take_complaints(), HasSubstr("freed while NCCL has it registered"));
  std::atomic<bool> go = false;
  fake_gpu::enqueue(stream_, {{data, kBytes}}, [&] {
    while (!go) std::this_thread::yield();
  });
  EXPECT_EQ(ncclCommDeregister(nccl_, handle), ncclInvalidUsage);
  EXPECT_THAT(fake_gpu::take_complaints(), HasSubstr("deregistered while work that touches it is pending"));
  go = true;
  cudaStreamSynchronize(stream_);
  EXPECT_EQ(ncclCommDeregister(nccl_, handle), ncclSuccess);
  EXPECT_EQ(ncclCommDeregister(nccl_, handle), ncclInvalidUsage);
  EXPECT_THAT(fake_gpu::take_complaints(), HasSubstr("is not registered"));
  EXPECT_EQ(ncclMemFree(data), ncclSuccess);
  EXPECT_EQ(ncclSend(data, kBytes, ncclUint8, 0, nccl_, stream_), ncclInvalidArgument);
}

TEST_F(FakeGpuTest, SeesRegistrationsThatNeverEnd) {
  ncclUniqueId id;
  ncclGetUniqueId(&id);
  ncclComm_t other = nullptr;
  ncclCommInitRankConfig(&other, comm_.size(), id, comm_.rank(), nullptr);
  void* data = nullptr;
  void* handle = nullptr;
  ncclMemAlloc(&data, kBytes);
  EXPECT_EQ(ncclCommRegister(other, data, kBytes, &handle), ncclSuccess);
  ncclCommDestroy(other);
  EXPECT_THAT(fake_gpu::take_complaints(), HasSubstr("ends with memory registered"));
}

TEST_F(FakeGpuTest, SeesMessagesOfWhichOneSideIsRegistered) {
  if (comm_.size() == 1) GTEST_SKIP() << "nobody who could differ";
  const bool odd = comm_.rank() == 1;
  const auto bytes = static_cast<std::size_t>(kBytes * comm_.size());
  void* handle = nullptr;
  void* plain = std::exchange(sent_, nullptr);
  ncclMemAlloc(&sent_, bytes);
  if (odd) ncclCommRegister(nccl_, sent_, bytes, &handle);
  exchange(std::vector<std::size_t>(static_cast<std::size_t>(comm_.size()), kBytes));
  EXPECT_EQ(outcome(), ncclInvalidUsage);
  EXPECT_THAT(fake_gpu::take_complaints(), HasSubstr("from rank 1: only one side's memory is registered"));
  cudaFree(plain);
}

TEST_F(FakeGpuTest, SeesKernelsOnHostMemory) {
  int on_host = 0;
  fake_gpu::launch({&on_host}, [] {});
  EXPECT_THAT(fake_gpu::take_complaints(), HasSubstr("not the device's"));
  cudaStreamSynchronize(compute_stream().handle());
}

}  // namespace
}  // namespace switchyard
