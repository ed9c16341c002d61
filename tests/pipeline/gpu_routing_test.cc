/// Where a router's decisions lie, and copies to the host, on the stand-in.

#include <gtest/gtest.h>

#include <utility>
#include <vector>

#include "parallel/device/device_memory.h"
#include "parallel/device/download.h"
#include "pipeline/kernels/cuda/router.h"
#include "pipeline/kernels/router.h"
#include "tests/support/f32_matrix.h"
#include "tests/support/fake_gpu/fake_gpu.h"

namespace switchyard {
namespace {

using testing_support::random_matrix;
using testing_support::values_of;

class GpuRoutingTest : public testing::Test {
 protected:
  void TearDown() override { EXPECT_EQ(fake_gpu::take_complaints(), ""); }
};

TEST_F(GpuRoutingTest, AllStaysOnTheGpu) {
  for (const std::int64_t n : {0, 77}) {
    const Tensor logits = random_matrix(n, 60, 4);
    const Routing found = gpu::choose_experts(copy_to(Device::gpu, logits), {4, true});
    const Routing expected = choose_experts(random_matrix(n, 60, 4), {4, true}, "test");
    EXPECT_EQ(found.n_tokens(), n);
    EXPECT_TRUE(found.ids.empty());
    EXPECT_EQ(found.gpu_ids.to_host(), expected.ids);
    EXPECT_EQ(found.logits.device(), Device::gpu);
    EXPECT_EQ(found.probabilities.device(), Device::gpu);
    EXPECT_EQ(values_of(found.logits), values_of(logits));
    const std::vector<float> probabilities = values_of(found.probabilities);
    const std::vector<float> of_cpu = values_of(expected.probabilities);
    ASSERT_EQ(probabilities.size(), of_cpu.size());
    for (std::size_t i = 0; i < of_cpu.size(); ++i) EXPECT_NEAR(probabilities[i], of_cpu[i], 1e-6F);
    EXPECT_EQ(found.figures.device(), Device::gpu);
    const std::vector<float> figures = values_of(found.figures);
    const std::vector<float> figures_of_cpu = values_of(expected.figures);
    ASSERT_EQ(figures.size(), 4 * static_cast<std::size_t>(n));
    for (std::size_t i = 0; i < figures.size(); ++i) EXPECT_NEAR(figures[i], figures_of_cpu[i], 1e-5F);
    const std::vector<float> weights = values_of(found.gpu_weights);
    ASSERT_EQ(weights.size(), expected.weights.size());
    for (std::size_t i = 0; i < weights.size(); ++i) EXPECT_NEAR(weights[i], expected.weights[i], 1e-6F);
    EXPECT_EQ(found.gpu_fault.to_host(), std::vector<std::int32_t>(1, static_cast<std::int32_t>(n)));
  }
}

TEST_F(GpuRoutingTest, DownloadsComeBesideWhatIsComputedNext) {
  Tensor sums = copy_to(Device::gpu, random_matrix(50, 8, 1));
  std::vector<Download> downloads;
  for (const unsigned seed : {2U, 3U, 4U}) {
    const Tensor from = random_matrix(50, 8, seed);
    Tensor on_gpu(DType::f32, 50, 8, Device::gpu);
    upload(on_gpu.bytes(), from.bytes(), static_cast<std::size_t>(50 * on_gpu.row_bytes()));  // not there yet
    downloads.emplace_back(std::move(on_gpu));
    clear(sums);  // goes on meanwhile
  }
  unsigned seed = 2;
  for (Download& download : downloads) {
    const Tensor came = std::move(download).finish();
    EXPECT_EQ(came.device(), Device::pinned);
    EXPECT_EQ(values_of(came), values_of(random_matrix(50, 8, seed++)));
  }
}

}  // namespace
}  // namespace switchyard
