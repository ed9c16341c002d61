#include "parallel/clock_offset.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

namespace switchyard {
namespace {

TEST(ClockOffset, ClocksThatDifferAreBroughtTogether) {
  const Communicator comm = Communicator::world();
  const double shift = 1000.5 * comm.rank();  // what this rank's clock is ahead of the node's
  const ClockOffset offset = measure_clock_offset(comm, 20, [&] { return monotonic_seconds() + shift; });
  EXPECT_LE(std::abs(offset.seconds + shift), offset.uncertainty + 1e-9);
  EXPECT_EQ(offset.uncertainty > 0, comm.rank() > 0);
  EXPECT_LT(offset.uncertainty, 0.5);
  EXPECT_NEAR(offset.at, monotonic_seconds() + shift, 60);
}

/// An answer that takes long says little, and must not be believed over a quick one.
TEST(ClockOffset, TheQuickestRoundCounts) {
  const Communicator comm = Communicator::world();
  int calls = 0;
  double delay = 0;
  // On ranks other than 0 every round but one seems to take 10 s more between question and answer.
  const ClockOffset offset = measure_clock_offset(comm, 8, [&] {
    const bool answered = calls++ % 2 == 1;
    if (comm.rank() > 0 && answered && calls != 6) delay += 10;
    return monotonic_seconds() + delay;
  });
  EXPECT_LT(offset.uncertainty, 5);
  if (comm.rank() > 0) {
    EXPECT_LE(std::abs(offset.seconds + 20), offset.uncertainty + 1e-9);  // two slow rounds came before the quick one
  }
}

TEST(ClockOffset, DriftsEvenlyBetweenMeasurements) {
  const ClockOffset before{100, 5, 0};
  const ClockOffset after{200, 6, 0};
  EXPECT_DOUBLE_EQ(common_time(100, before, after), 105);
  EXPECT_DOUBLE_EQ(common_time(150, before, after), 155.5);
  EXPECT_DOUBLE_EQ(common_time(200, before, after), 206);
  EXPECT_DOUBLE_EQ(common_time(42, before, before), 47);
}

}  // namespace
}  // namespace switchyard
