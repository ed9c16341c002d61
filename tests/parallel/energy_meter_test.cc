/// The counter of energy, on the stand-in for NVML that is found before another one.

#include "parallel/device/energy_meter.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>

namespace switchyard {
namespace {

/// A variable of the environment, until the end of the test.
class Variable {
 public:
  Variable(const char* name, const char* value) : name_(name) { setenv(name, value, 1); }
  ~Variable() { unsetenv(name_); }

 private:
  const char* name_;
};

/// The n-th GPU of this node.
GpuReport gpu(int n) {
  GpuReport report;
  report.id = std::to_string(n);
  report.pci_bus_id = std::string("0000:0").append(report.id).append(":00.0");
  return report;
}

TEST(EnergyMeter, ReadsTheCounterOfItsGpu) {
  const Communicator comm = Communicator::world();
  const EnergyMeter meter(gpu(comm.rank()), comm);
  EXPECT_EQ(meter.reason_unknown(), "");
  const double first = meter.joules();
  const double second = meter.joules();
  const double third = meter.joules();
  EXPECT_GT(first, 5000);  // mJ are J
  EXPECT_LT(first, 6000);
  EXPECT_NEAR(third - second, second - first + 1, 1e-9);
}

TEST(EnergyMeter, OneRankReadsAGpuForAllThatShareIt) {
  const Communicator comm = Communicator::world();
  const bool apart = comm.size() > 1 && comm.rank() == comm.size() - 1;  // the last has a GPU of its own
  const EnergyMeter meter(gpu(apart ? 5 : 4), comm);
  EXPECT_EQ(meter.reason_unknown(), "");
  const bool reads = comm.rank() == 0 || apart;
  const double joules = meter.joules();
  EXPECT_TRUE(reads ? joules > 0 : joules == 0) << joules;
}

TEST(EnergyMeter, WhatCannotBeReadIsUnknownWithTheReason) {
  const Communicator comm = Communicator::world();
  const auto expect_unknown = [&](const char* variable, const char* value, const char* reason) {
    const Variable set(variable, value);
    for (const bool shared : {false, true}) {
      const EnergyMeter meter(gpu(shared ? 0 : comm.rank()), comm);
      EXPECT_EQ(meter.reason_unknown(), reason);
      EXPECT_TRUE(std::isnan(meter.joules()));
    }
  };
  for (const char* function :
       {"nvmlInit_v2", "nvmlDeviceGetHandleByPciBusId_v2", "nvmlDeviceGetTotalEnergyConsumption"})
    expect_unknown("FAKE_NVML_FAILS", function, std::string(function).append(": Not Supported").c_str());
  expect_unknown("FAKE_NVML_MIG", "1", "the GPU is divided (MIG), and NVML counts the energy of whole GPUs");
}

TEST(EnergyMeter, GpusThatCannotBeDividedAreRead) {
  const Communicator comm = Communicator::world();
  const Variable set("FAKE_NVML_FAILS", "nvmlDeviceGetMigMode");
  const EnergyMeter meter(gpu(comm.rank()), comm);
  EXPECT_GT(meter.joules(), 0);
}

TEST(EnergyMeter, AReadingThatFailsIsUnknownAndTheNextOneIsNot) {
  const Communicator comm = Communicator::world();
  const EnergyMeter meter(gpu(comm.rank()), comm);
  {
    const Variable set("FAKE_NVML_FAILS", "nvmlDeviceGetTotalEnergyConsumption");
    EXPECT_TRUE(std::isnan(meter.joules()));
  }
  EXPECT_GT(meter.joules(), 0);
}

}  // namespace
}  // namespace switchyard
