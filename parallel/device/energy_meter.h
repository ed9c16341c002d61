#pragma once

#include <memory>
#include <string>

#include "parallel/communicator.h"
#include "parallel/device/gpu.h"

namespace switchyard {

class NvmlCounter;

/// The energy that a rank's GPU takes, by the counter of its driver's library NVML, which is loaded where it is there.
/// The counter is of a whole GPU and of all that runs on it. Of ranks that share a GPU the first reads it and the
/// others read 0, so that a sum over ranks is a sum over GPUs.
class EnergyMeter {
 public:
  /// Collective. gpu: of this rank.
  EnergyMeter(const GpuReport& gpu, const Communicator& comm);
  EnergyMeter(const EnergyMeter&) = delete;
  EnergyMeter& operator=(const EnergyMeter&) = delete;
  ~EnergyMeter();

  /// J since the driver was loaded, NaN where they are not known. The GPU brings the counter up to date every 20 to 100
  /// ms.
  double joules() const;
  /// Why they are not known on this rank; empty where they are.
  const std::string& reason_unknown() const { return reason_unknown_; }

 private:
  std::unique_ptr<NvmlCounter> counter_;  // nullptr: another rank's, or unknown
  std::string reason_unknown_;
};

}  // namespace switchyard
