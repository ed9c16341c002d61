#include "pipeline/model/step_times.h"

#include <gmock/gmock.h>

#include <numeric>

namespace switchyard {
namespace {

using std::chrono::milliseconds;
using ::testing::FloatNear;
using ::testing::Pointwise;

/// A step of parts that took so many milliseconds one after another.
StepTimes step_of(const std::vector<std::tuple<Part, int, int>>& parts) {
  StepTimes times;
  times.begin = StepTimes::Clock::now();
  StepTimes::Clock::time_point now = times.begin;
  for (const auto& [part, layer, took] : parts) times.laps.push_back({part, layer, now += milliseconds(took)});
  return times;
}

TEST(StepTimesTest, PartsOfTwoHalvesAreAddedUp) {
  const StepTimes times = step_of({{Part::dense, -1, 5},
                                   {Part::attention, 0, 10},
                                   {Part::router, 0, 1},
                                   {Part::dispatch, 0, 2},
                                   {Part::dispatch_wait, 0, 3},
                                   {Part::experts, 0, 20},
                                   {Part::scatter, 0, 1},
                                   {Part::dispatch_wait, 0, 1},
                                   {Part::experts, 0, 30},
                                   {Part::scatter, 0, 2},
                                   {Part::combine_wait, 0, 4},
                                   {Part::combine, 0, 5},
                                   {Part::combine_wait, 0, 6},
                                   {Part::combine, 0, 7},
                                   {Part::observe, -1, 8},
                                   {Part::attention, 2, 9},
                                   {Part::head, -1, 40}});
  // attention, router, dispatch, record, shared, dispatch_wait, group, experts, scatter, combine_wait, combine
  const std::vector<float> expected = {15,  16,  18,  18,  18,  22,  22,  72,  75,  85,  97,    // layer 0
                                       105, 105, 105, 105, 105, 105, 105, 105, 105, 105, 105,   // 1: not there
                                       114, 114, 114, 114, 114, 114, 114, 114, 114, 114, 114};  // 2: attention alone
  std::vector<float> found = times.layer_ends(3);
  for (float& end : found) end *= 1000;
  EXPECT_THAT(found, Pointwise(FloatNear(1e-3F), expected));

  const PhaseSeconds phases = times.phase_seconds();
  EXPECT_NEAR(phases[static_cast<std::size_t>(Phase::experts)], 0.055, 1e-9);  // with the dense layer
  EXPECT_NEAR(phases[static_cast<std::size_t>(Phase::wait)], 0.014, 1e-9);
  EXPECT_NEAR(phases[static_cast<std::size_t>(Phase::combine)], 0.015, 1e-9);
  EXPECT_NEAR(std::accumulate(phases.begin(), phases.end(), 0.0), 0.154, 1e-9);
}

}  // namespace
}  // namespace switchyard
