#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>

/// A stand-in for NVML, loaded in its place: every GPU's counter grows by a second's worth of one watt more with each
/// reading. What it answered goes to the file FAKE_NVML_READINGS, a line "BUS_ID MILLIJOULES" a reading.
/// FAKE_NVML_FAILS names the function that answers "not supported", FAKE_NVML_MIG divides the GPUs. Built with
/// FAKE_NVML_WITHOUT_ENERGY it is of a time before there were counters.

struct nvmlDevice_st {
  std::string bus_id;
  unsigned long long readings = 0;
};

namespace {

constexpr int kUninitialized = 1;
constexpr int kNotSupported = 3;

int sessions = 0;

int answer(const char* function) {
  const char* fails = std::getenv("FAKE_NVML_FAILS");
  if (fails != nullptr && std::strcmp(fails, function) == 0) return kNotSupported;
  return sessions > 0 ? 0 : kUninitialized;
}

}  // namespace

extern "C" {

const char* nvmlErrorString(int result) { return result == kNotSupported ? "Not Supported" : "Uninitialized"; }

int nvmlInit_v2() {
  ++sessions;
  const int result = answer("nvmlInit_v2");
  if (result != 0) --sessions;
  return result;
}

int nvmlShutdown() {
  const int result = answer("nvmlShutdown");
  if (result == 0) --sessions;
  return result;
}

int nvmlDeviceGetHandleByPciBusId_v2(const char* bus_id, nvmlDevice_st** device) {
  static std::map<std::string, nvmlDevice_st>& devices = *new std::map<std::string, nvmlDevice_st>;
  *device = &devices.try_emplace(bus_id, nvmlDevice_st{bus_id}).first->second;
  return answer("nvmlDeviceGetHandleByPciBusId_v2");
}

int nvmlDeviceGetMigMode(nvmlDevice_st* /*device*/, unsigned* current, unsigned* pending) {
  *current = *pending = std::getenv("FAKE_NVML_MIG") != nullptr ? 1 : 0;
  return answer("nvmlDeviceGetMigMode");
}

#ifndef FAKE_NVML_WITHOUT_ENERGY
int nvmlDeviceGetTotalEnergyConsumption(nvmlDevice_st* device, unsigned long long* millijoules) {
  const int result = answer("nvmlDeviceGetTotalEnergyConsumption");
  if (result != 0) return result;
  ++device->readings;
  *millijoules = 5'000'000 + 1000 * device->readings * (device->readings + 1) / 2;
  const char* path = std::getenv("FAKE_NVML_READINGS");
  if (path == nullptr) return 0;
  std::FILE* file = std::fopen(path, "a");
  std::fprintf(file, "%s %llu\n", device->bus_id.c_str(), *millijoules);
  std::fclose(file);
  return 0;
}
#endif

}  // extern "C"
