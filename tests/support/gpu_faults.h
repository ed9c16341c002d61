#pragma once

#include <gtest/gtest.h>

#include <string>

/// What tests that run on a GPU, and on the stand-in for one, ask either.
namespace switchyard::testing_support {

/// What was done since the last call that a GPU must not be asked to do, as far as it is noticed.
std::string take_gpu_faults();

/// Fails each test in which there was any. Once for a program, before its tests.
inline bool watch_gpu_faults() {
  class NoFaults : public ::testing::EmptyTestEventListener {
    void OnTestEnd(const ::testing::TestInfo& /*test*/) override { EXPECT_EQ(take_gpu_faults(), ""); }
  };
  ::testing::UnitTest::GetInstance()->listeners().Append(new NoFaults);
  return true;
}

/// Collective. Whether NCCL can serve all ranks.
bool has_gpu_for_each_rank();

}  // namespace switchyard::testing_support
