#include "pipeline/model/step_times.h"

namespace switchyard {
namespace {

double seconds_between(StepTimes::Clock::time_point from, StepTimes::Clock::time_point to) {
  return std::chrono::duration<double>(to - from).count();
}

}  // namespace

Phase phase_of(Part part) {
  switch (part) {
    case Part::attention:
      return Phase::attention;
    case Part::router:
      return Phase::router;
    case Part::dispatch:
    case Part::group:
      return Phase::dispatch;
    case Part::record:
    case Part::observe:
      return Phase::record;
    case Part::dispatch_wait:
    case Part::combine_wait:
      return Phase::wait;
    case Part::shared:
    case Part::experts:
    case Part::dense:
      return Phase::experts;
    case Part::scatter:
    case Part::combine:
      return Phase::combine;
    case Part::head:
      break;
  }
  return Phase::head;
}

PhaseSeconds StepTimes::phase_seconds() const {
  PhaseSeconds seconds = {};
  Clock::time_point from = begin;
  for (const Lap& lap : laps) {
    seconds[static_cast<std::size_t>(phase_of(lap.part))] += seconds_between(from, lap.end);
    from = lap.end;
  }
  return seconds;
}

std::vector<float> StepTimes::layer_ends(int n_moe_layers) const {
  const auto n = static_cast<std::size_t>(n_moe_layers) * kLayerParts;
  std::vector<Clock::duration> took(n, Clock::duration::zero());
  std::vector<Clock::time_point> begins(static_cast<std::size_t>(n_moe_layers), begin);  // of layers
  Clock::time_point last = begin;
  int latest = -1;  // MoE layer
  for (const Lap& lap : laps) {
    if (lap.moe_layer >= 0) {
      while (latest < lap.moe_layer) begins[static_cast<std::size_t>(++latest)] = last;
      took[static_cast<std::size_t>(lap.moe_layer) * kLayerParts + static_cast<std::size_t>(lap.part)] +=
          lap.end - last;
    }
    last = lap.end;
  }
  while (latest + 1 < n_moe_layers) begins[static_cast<std::size_t>(++latest)] = last;

  std::vector<float> ends(n);
  for (std::size_t i = 0; i < n; ++i) {
    if (i % kLayerParts == 0) last = begins[i / kLayerParts];
    last += took[i];
    ends[i] = static_cast<float>(seconds_between(begin, last));
  }
  return ends;
}

void StepWatch::start() {
  clock_->take();
  laps_.clear();
  clock_->note();
}

void StepWatch::lap(Part part, int moe_layer) {
  laps_.push_back({part, moe_layer});
  clock_->note();
}

StepTimes StepWatch::take() {
  const std::vector<StepTimes::Clock::time_point> points = clock_->take();
  StepTimes times;
  if (!points.empty()) times.begin = points.front();
  for (std::size_t i = 0; i < laps_.size(); ++i)
    times.laps.push_back({laps_[i].part, laps_[i].moe_layer, points[i + 1]});
  laps_.clear();
  return times;
}

}  // namespace switchyard
