#include "parallel/gpu_choice.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>

#include "tests/support/error_text.h"

namespace switchyard {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using Variables = std::map<std::string, std::string>;

std::optional<GpuChoice> choose(const Variables& variables, int rank_on_node) {
  return choose_gpu(
      [&](const char* name) {
        const auto found = variables.find(name);
        return found == variables.end() ? nullptr : found->second.c_str();
      },
      rank_on_node);
}

/// Names of the GPUs of the node's first ranks, "-" for none.
std::vector<std::string> names(const Variables& variables, int ranks) {
  std::vector<std::string> names;
  for (int rank = 0; rank < ranks; ++rank) {
    const std::optional<GpuChoice> choice = choose(variables, rank);
    names.push_back(choice ? choice->name : "-");
  }
  return names;
}

TEST(GpuChoice, RanksTakeTheNodesDevicesInTurn) {
  const Variables all = {{"CUDA_VISIBLE_DEVICES", "0,1,2,3"}, {"SLURM_STEP_GPUS", "0,1,2,3"}};
  EXPECT_EQ(names(all, 4), (std::vector<std::string>{"0", "1", "2", "3"}));
  EXPECT_EQ(names(all, 6), (std::vector<std::string>{"0", "1", "2", "3", "0", "1"}));
  EXPECT_EQ(choose(all, 5), (GpuChoice{1, "1"}));
}

TEST(GpuChoice, ATaskWithItsOwnDevicesUsesThose) {
  EXPECT_EQ(choose({{"CUDA_VISIBLE_DEVICES", "3"}, {"SLURM_STEP_GPUS", "0,1,2,3"}}, 3), (GpuChoice{0, "3"}));
  // Confined by a cgroup, a task counts its own devices from 0; which ones they are its environment does not say.
  EXPECT_EQ(choose({{"CUDA_VISIBLE_DEVICES", "0"}, {"SLURM_STEP_GPUS", "0,1,2,3"}}, 3), (GpuChoice{0, "0"}));
  EXPECT_EQ(choose({{"CUDA_VISIBLE_DEVICES", "4,5"}}, 3), (GpuChoice{1, "5"}));
}

TEST(GpuChoice, NumbersOnTheNodeComeFromTheStep) {
  // A job that was given the last two of four devices, and sees them as 0 and 1.
  const Variables confined = {{"CUDA_VISIBLE_DEVICES", "0,1"}, {"SLURM_STEP_GPUS", "2,3"}, {"SLURM_LOCALID", "0"}};
  EXPECT_EQ(choose(confined, 0), (GpuChoice{0, "2"}));
  EXPECT_EQ(choose(confined, 1), (GpuChoice{1, "3"}));
  // Devices that are named as the node does, in an order of one's own.
  EXPECT_EQ(names({{"CUDA_VISIBLE_DEVICES", "3,2"}, {"SLURM_STEP_GPUS", "2,3"}}, 2),
            (std::vector<std::string>{"3", "2"}));
}

TEST(GpuChoice, CountsThemWhereCudaIsToldNothing) {
  EXPECT_EQ(names({{"SLURM_GPUS_ON_NODE", "2"}}, 3), (std::vector<std::string>{"0", "1", "0"}));
  EXPECT_EQ(names({{"SLURM_GPUS_ON_NODE", "2"}, {"SLURM_STEP_GPUS", "6,7"}}, 2), (std::vector<std::string>{"6", "7"}));
  EXPECT_EQ(choose({{"SLURM_GPUS_ON_NODE", "0"}}, 0), std::nullopt);
  EXPECT_EQ(names({{"SLURM_GPUS_ON_NODE", "4"}, {"CUDA_VISIBLE_DEVICES", "1"}}, 2),
            (std::vector<std::string>{"1", "1"}));
}

TEST(GpuChoice, NoneIsNone) {
  for (const char* list : {"", "-1", "-1,0", "NoDevFiles"})
    EXPECT_EQ(choose({{"CUDA_VISIBLE_DEVICES", list}, {"SLURM_GPUS_ON_NODE", "2"}}, 0), std::nullopt) << list;
  EXPECT_EQ(choose({}, 0), std::nullopt);
  EXPECT_EQ(names({{"CUDA_VISIBLE_DEVICES", "1,0,-1,3"}}, 3), (std::vector<std::string>{"1", "0", "1"}));
}

TEST(GpuChoice, TakesUuids) {
  const std::string uuid = "GPU-8932f937-d72c-4106-c12f-20bd9faed9f6";
  const std::string mig = "MIG-GPU-8932f937-d72c-4106-c12f-20bd9faed9f6/1/2";
  EXPECT_EQ(names({{"CUDA_VISIBLE_DEVICES", uuid + "," + mig}}, 2), (std::vector<std::string>{uuid, mig}));
}

TEST(GpuChoice, RefusesWhatIsNoList) {
  for (const char* list : {"0,,1", "a", "0 1", "0,1,", "1.5", "-2", "99999999999", "GPU-", "0;1"})
    EXPECT_THAT(testing::error_text([&] {
                  choose({{"CUDA_VISIBLE_DEVICES", list}}, 0);
                }),
                AllOf(HasSubstr("CUDA_VISIBLE_DEVICES: "), HasSubstr(list), HasSubstr("unset it")))
        << list;
  EXPECT_THAT(testing::error_text([&] { choose({{"CUDA_VISIBLE_DEVICES", "1,0,1"}}, 0); }), HasSubstr("1 twice"));
  for (const char* count : {"", "two", "-1", "3x", "100000"})
    EXPECT_THAT(testing::error_text([&] {
                  choose({{"SLURM_GPUS_ON_NODE", count}}, 0);
                }),
                AllOf(HasSubstr("SLURM_GPUS_ON_NODE: "), HasSubstr("no number of GPUs")))
        << count;
}

}  // namespace
}  // namespace switchyard
