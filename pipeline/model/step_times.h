#pragma once

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string_view>
#include <utility>
#include <vector>

namespace switchyard {

/// Where a step's time goes. `wait` is time inside Exchange::finish().
enum class Phase : std::uint8_t { attention, router, dispatch, experts, combine, head, record, wait };
inline constexpr std::size_t kPhases = 8;
inline constexpr std::array<std::string_view, kPhases> kPhaseNames = {"attention", "router", "dispatch", "experts",
                                                                      "combine",   "head",   "record",   "wait"};
using PhaseSeconds = std::array<double, kPhases>;

/// What a rank does one after another: the first kLayerParts in each MoE layer, in this order, those from dispatch_wait
/// on twice where a layer runs in two halves; of the others a dense layer, what an observer does with a layer's output,
/// the head.
enum class Part : std::uint8_t {
  attention,      // with its norm and, in layer 0, the embedding; without experts before it, dense layers too
  router,         // with its norm
  dispatch,       // rows packed, counts to all ranks, which waits for the last of them, their exchange begun
  record,         // while rows fly
  shared,         // shared experts, likewise; no time where there are none
  dispatch_wait,  // until the rows are there
  group,          // rows ordered by expert
  experts,
  scatter,  // rows ordered by source rank, their exchange begun
  combine_wait,
  combine,  // weighted sum
  dense,
  observe,
  head
};
inline constexpr std::size_t kLayerParts = 11;
inline constexpr std::array<std::string_view, kLayerParts> kLayerPartNames = {
    "attention", "router",  "dispatch", "record",       "shared", "dispatch_wait",
    "group",     "experts", "scatter",  "combine_wait", "combine"};
/// The phase that a part's seconds are charged to.
Phase phase_of(Part part);

/// When a rank's step began and when it ended each part, by its own monotonic clock.
struct StepTimes {
  using Clock = std::chrono::steady_clock;
  struct Lap {
    Part part;
    int moe_layer;  // -1 outside of MoE layers
    Clock::time_point end;
  };
  Clock::time_point begin;
  std::vector<Lap> laps;

  PhaseSeconds phase_seconds() const;
  /// [n_moe_layers, kLayerParts] seconds from the step's begin to the end of each part. A part that was left out ends
  /// when the one before it does; one that was done in several goes counts as if these had followed one another.
  std::vector<float> layer_ends(int n_moe_layers) const;
};

/// Notes points in time of what a device computes: where the caller is, or, of a device that works behind it, where
/// that has done what it was given up to then.
class LapClock {
 public:
  virtual ~LapClock() = default;
  virtual void note() = 0;
  /// The points since the last call. Blocks until the last of them has come.
  virtual std::vector<StepTimes::Clock::time_point> take() = 0;
};

/// Notes when each part of a step ended.
class StepWatch {
 public:
  explicit StepWatch(std::unique_ptr<LapClock> clock) : clock_(std::move(clock)) {}
  void start();
  void lap(Part part, int moe_layer = -1);
  StepTimes take();

 private:
  struct Lap {
    Part part;
    int moe_layer;
  };
  std::unique_ptr<LapClock> clock_;
  std::vector<Lap> laps_;
};

}  // namespace switchyard
