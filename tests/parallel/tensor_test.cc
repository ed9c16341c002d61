#include "parallel/tensor.h"

#include <gtest/gtest.h>

#include <atomic>
#include <cstdint>
#include <cstring>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "parallel/error.h"

namespace switchyard {
namespace {

bool is_aligned(const Tensor& tensor) { return reinterpret_cast<std::uintptr_t>(tensor.bytes()) % 64 == 0; }

void count_up(Tensor& tensor) {
  for (std::int64_t i = 0; i < tensor.rows() * tensor.cols(); ++i) tensor.data<float>()[i] = static_cast<float>(i);
}

TEST(TensorTest, HasShapeAndAlignmentAtAnySize) {
  for (const std::int64_t cols : {1, 3, 64, 4097}) {
    for (const std::int64_t rows : {1, 7, 129}) {
      const Tensor f32(DType::f32, rows, cols);
      const Tensor bf16(DType::bf16, rows, cols);
      EXPECT_TRUE(is_aligned(f32) && is_aligned(bf16)) << rows << " x " << cols;
      EXPECT_EQ(f32.row_bytes(), 4 * cols);
      EXPECT_EQ(bf16.row_bytes(), 2 * cols);
      EXPECT_EQ(bf16.rows(), rows);
      EXPECT_EQ(bf16.dtype(), DType::bf16);
    }
  }
}

TEST(TensorTest, EmptyKeepsItsWidth) {
  const Tensor tensor(DType::bf16, 0, 33);
  EXPECT_EQ(tensor.rows(), 0);
  EXPECT_EQ(tensor.cols(), 33);
  EXPECT_EQ(tensor.row_bytes(), 66);
  EXPECT_EQ(tensor.rows(0, 0).rows(), 0);
}

TEST(TensorTest, ViewsAndRowsShowTheSameElements) {
  Tensor tensor(DType::f32, 5, 3);
  count_up(tensor);
  const TensorView middle = tensor.rows(1, 4);
  EXPECT_EQ(middle.rows(), 3);
  EXPECT_EQ(middle.row<float>(0)[0], 3.0F);
  EXPECT_EQ(middle.rows(2, 3).row<float>(0)[2], 11.0F);
  EXPECT_EQ(tensor.row<float>(4).back(), 14.0F);
  EXPECT_EQ(tensor.row<float>(4).size(), 3U);
}

TEST(TensorTest, MovingHandsOverTheMemory) {
  Tensor first(DType::f32, 2, 2);
  count_up(first);
  const std::byte* memory = first.bytes();
  Tensor second(std::move(first));
  EXPECT_EQ(second.bytes(), memory);
  EXPECT_EQ(first.bytes(), nullptr);  // NOLINT(bugprone-use-after-move): what a move leaves is what is tested
  EXPECT_EQ(first.rows(), 0);
  Tensor third(DType::bf16, 9, 9);
  third = std::move(second);
  EXPECT_EQ(third.bytes(), memory);
  EXPECT_EQ(third.dtype(), DType::f32);
  EXPECT_EQ(third.data<float>()[3], 3.0F);
  Tensor& same = third;
  third = std::move(same);
  EXPECT_EQ(third.bytes(), memory);
}

TEST(TensorTest, ImpossibleSizesAreErrors) {
  EXPECT_THROW(Tensor(DType::f32, -1, 4), Error);
  EXPECT_THROW(Tensor(DType::f32, std::int64_t{1} << 40, std::int64_t{1} << 40), Error);
}

#ifndef __SANITIZE_ADDRESS__  // which ends the process when memory is exhausted, and where nothing is pooled
TEST(TensorTest, MemoryThatIsNotThereIsAnErrorThatNamesItsSize) {
  try {
    const Tensor tensor(DType::f32, std::int64_t{1} << 30, std::int64_t{1} << 29);
    FAIL() << "2^61 bytes were given";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("2305843009213693952 bytes"), std::string::npos) << error.what();
  }
}

TEST(TensorTest, FreedMemoryServesTheNextOfItsSize) {
  const std::byte* memory = nullptr;
  {
    const Tensor tensor(DType::f32, 1000, 333);
    memory = tensor.bytes();
  }
  const Tensor same(DType::bf16, 333, 2000);
  EXPECT_EQ(same.bytes(), memory);
  const Tensor other(DType::f32, 1000, 333);
  EXPECT_NE(other.bytes(), memory);
}

TEST(TensorTest, AMuchSmallerTensorLeavesABigBufferAlone) {
  const std::byte* memory = nullptr;
  {
    const Tensor big(DType::f32, 5000, 1001);
    memory = big.bytes();
  }
  const Tensor small(DType::f32, 1000, 1001);
  EXPECT_NE(small.bytes(), memory);
}
#endif

TEST(TensorTest, ThreadsNeverShareMemory) {
  constexpr int kThreads = 8;
  constexpr int kRounds = 300;
  std::atomic<int> intact = 0;
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([t, &intact] {
      for (int round = 0; round < kRounds; ++round) {
        Tensor tensor(DType::bf16, 40 + (t + round) % 5, 1024);
        const auto bytes = static_cast<std::size_t>(tensor.rows() * tensor.row_bytes());
        std::memset(tensor.bytes(), t + 1, bytes);
        std::this_thread::yield();
        bool same = true;
        for (std::size_t i = 0; i < bytes; ++i) same = same && tensor.bytes()[i] == static_cast<std::byte>(t + 1);
        if (same) ++intact;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(intact, kThreads * kRounds);
}

}  // namespace
}  // namespace switchyard
