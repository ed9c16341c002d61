/// cuDNN plans the graphs of all families, and compiles their kernels, for GPUs that are not there: on
/// planning_libcuda.c in the driver's place. Skipped, with exit code 77, where there is no cuDNN.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "parallel/error.h"
#include "pipeline/kernels/cuda/cudnn_graph.h"
#include "pipeline/kernels/cuda/fused_attention.h"
#include "pipeline/kernels/cuda/row_chunks.h"
#include "pipeline/model/family.h"
#include "tests/support/error_text.h"
#include "tests/support/published_models.h"

namespace switchyard {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing_support::published_models;

struct Gpu {
  const char* name;
  int capability;
  int multiprocessors;
  int shared_bytes;  // most of a block
  int l2_bytes;
};
constexpr std::array kGpus = {Gpu{"NVIDIA A100-SXM4-80GB", 80, 108, 166912, 41943040},
                              Gpu{"NVIDIA H100 80GB HBM3", 90, 132, 232448, 52428800},
                              Gpu{"NVIDIA B200", 100, 148, 232448, 132644864}};

gpu::CudnnDevice device_of(const Gpu& gpu) {
  const nlohmann::json description = {{"deviceName", gpu.name},
                                      {"deviceVer", gpu.capability * 10},
                                      {"multiProcessorCount", gpu.multiprocessors},
                                      {"maxSharedMemoryPerBlockOptin", gpu.shared_bytes},
                                      {"l2CacheSize", gpu.l2_bytes},
                                      {"maxGridSize", {2147483647, 65535, 65535}},
                                      {"maxBlockSize", {1024, 1024, 64}},
                                      {"regsPerBlock", 65536},
                                      {"warpSize", 32},
                                      {"maxSharedMemoryPerBlock", 49152},
                                      {"reservedSharedMemoryPerBlock", 1024},
                                      {"maxRegistersPerSM", 65536},
                                      {"maxCtasPerSM", 32},
                                      {"maxThreadsPerBlock", 1024},
                                      {"maxThreadsPerSM", 2048},
                                      {"pciDeviceId", 0},
                                      {"isTccDriver", 0},
                                      {"supportCoopLaunch", 1},
                                      {"smClockRateKHz", 1500000},
                                      {"memClockRateKHz", 2000000},
                                      {"driverVer", 13000},
                                      {"cudaDeviceId", 0},
                                      {"totalGlobalMem", 85000000000}};
  return gpu::CudnnDevice(gpu.capability, description.dump());
}

TEST(PublishedModelsTest, AreOfAllFamilies) {
  const std::vector<ModelConfig> models = published_models();
  for (const Family* family : families())
    EXPECT_EQ(std::ranges::count(models, family->model_type, &ModelConfig::family), 1) << family->model_type;
}

TEST(WindowLayoutTest, SpareWindowsAreRowsOfTheirOwnBehindTheBatch) {
  const AttentionShape heads = {.n_heads = 4, .n_kv_heads = 2, .head_dim = 8};
  const gpu::WindowLayout layout = gpu::lay_out(std::vector<std::int32_t>{0, 3, 4, 9, 11, 12}, heads);
  EXPECT_EQ(layout.n_windows, 8);
  EXPECT_EQ(layout.longest, 5);
  EXPECT_EQ(layout.spare_rows, 3);
  EXPECT_THAT(layout.lengths, ElementsAre(3, 1, 5, 2, 1, 1, 1, 1));
  EXPECT_THAT(layout.query_offsets, ElementsAre(0, 96, 128, 288, 352, 384, 416, 448, 480));
  EXPECT_THAT(layout.key_offsets, ElementsAre(0, 48, 64, 144, 176, 192, 208, 224, 240));
  EXPECT_EQ(gpu::lay_out(std::vector<std::int32_t>{0, 3, 4, 9, 11}, heads).spare_rows, 0);
  EXPECT_EQ(gpu::lay_out(std::vector<std::int32_t>{0, 7}, heads).n_windows, 1);
}

std::vector<std::int64_t> rows_of(const std::vector<gpu::RowChunk>& chunks) {
  std::vector<std::int64_t> rows;
  for (const gpu::RowChunk& chunk : chunks) rows.push_back(chunk.rows);
  return rows;
}

TEST(RowChunksTest, FewGraphsServeAnyNumberOfRows) {
  EXPECT_TRUE(gpu::chunks_of(0).empty());
  EXPECT_THAT(rows_of(gpu::chunks_of(63)), ElementsAre(63));
  EXPECT_THAT(rows_of(gpu::chunks_of(64)), ElementsAre(64));
  EXPECT_THAT(rows_of(gpu::chunks_of(1000)), ElementsAre(960, 40));
  std::set<std::int64_t> sizes;
  for (std::int64_t n = 1; n <= 20000; ++n) {
    std::int64_t end = 0;
    std::int64_t graph_rows = 0;
    for (const gpu::RowChunk& chunk : gpu::chunks_of(n)) {
      EXPECT_EQ(chunk.begin, end);
      EXPECT_LE(chunk.rows, chunk.graph_rows);
      end += chunk.rows;
      graph_rows += chunk.graph_rows;
      sizes.insert(chunk.graph_rows);
    }
    ASSERT_EQ(end, n);
    ASSERT_LE(graph_rows, n + n / 8 + 64);
  }
  EXPECT_LT(sizes.size(), 80U);
}

TEST(RowChunksTest, ExpertsBeginWhereTheirRowsDo) {
  const std::vector<std::int32_t> rows_per_expert = {3, 0, 70, 5, 0};
  const std::vector<gpu::RowChunk> chunks = gpu::chunks_of(78);
  ASSERT_THAT(rows_of(chunks), ElementsAre(72, 6));
  EXPECT_THAT(gpu::first_rows_of(rows_per_expert, chunks[0]), ElementsAre(0, 3, 3, 72, 72));
  EXPECT_THAT(gpu::first_rows_of(rows_per_expert, chunks[1]), ElementsAre(0, 0, 0, 1, 6));
}

class CudnnPlans : public ::testing::TestWithParam<Gpu> {
 protected:
  gpu::CudnnDevice device_ = device_of(GetParam());
};

// What computes a row must not be chosen by what shares the call: left to itself, cuDNN takes another kernel for short
// windows on sm_100.
TEST_P(CudnnPlans, AttentionOfAllFamiliesIsThatOfOneWindow) {
  std::vector<AttentionShape> shapes;
  for (const ModelConfig& model : published_models()) shapes.push_back(model.attention_shape());
  AttentionShape capped_in_a_window = shapes.back();
  ASSERT_GT(capped_in_a_window.softcap, 0);
  capped_in_a_window.sliding_window = 100;
  shapes.push_back(capped_in_a_window);
  shapes.push_back({.n_heads = 4, .n_kv_heads = 2, .head_dim = 64});
  for (const AttentionShape& heads : shapes) {
    const std::string plan = plan_attention(device_, {heads, 1, 2048}).plan();
    EXPECT_FALSE(plan.empty());
    for (const auto& [n_windows, longest] : {std::pair{1024, 1}, std::pair{1024, 64}, std::pair{2, 16384}})
      EXPECT_EQ(plan_attention(device_, {heads, n_windows, gpu::length_of_graph(longest)}, plan).plan(), plan)
          << n_windows << " windows of " << longest;
  }
}

TEST_P(CudnnPlans, ExpertsOfAllFamiliesHaveOnePlanForAnyRows) {
  std::vector<gpu::GroupedGraphShape> shapes;
  for (const ModelConfig& model : published_models()) {
    if (model.n_experts == 0) continue;
    shapes.push_back({model.n_experts, 0, 2 * model.d_ff, model.d_model, DType::f32});
    shapes.push_back({model.n_experts, 0, model.d_model, model.d_ff, DType::bf16});
  }
  shapes.push_back({512, 0, 1024, 2048, DType::f32});
  for (gpu::GroupedGraphShape shape : shapes) {
    shape.n_rows = 64;
    const std::string plan = plan_grouped_matmul(device_, shape).plan();
    EXPECT_FALSE(plan.empty());
    shape.n_rows = 65536;
    EXPECT_EQ(plan_grouped_matmul(device_, shape, plan).plan(), plan);
  }
}

TEST_P(CudnnPlans, WhatCannotBePlannedSaysWhy) {
  const auto error = [&](int head_dim, const std::string& plan) {
    const AttentionShape heads = {.n_heads = 4, .n_kv_heads = 2, .head_dim = head_dim};
    return testing::error_text([&] { static_cast<void>(plan_attention(device_, {heads, 2, 64}, plan)); });
  };
  EXPECT_THAT(error(12, ""), HasSubstr("cuDNN cannot attend with 4 heads of 12 columns: "));
  EXPECT_THAT(error(64, "eng999"), HasSubstr("cuDNN has no plan eng999 to attend with 4 heads of 64 columns"));
}

INSTANTIATE_TEST_SUITE_P(All, CudnnPlans, ::testing::ValuesIn(kGpus), [](const auto& test) {
  std::string name = "sm_";
  return name + std::to_string(test.param.capability);
});

}  // namespace
}  // namespace switchyard

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  try {
    std::printf("cuDNN %s\n", switchyard::gpu::cudnn_version().c_str());
  } catch (const switchyard::Error& error) {
    std::printf("skipped: %s\n", error.what());
    return 77;
  }
  return RUN_ALL_TESTS();
}
