#include "parallel/device/energy_meter.h"

#include <dlfcn.h>

#include <algorithm>
#include <limits>
#include <optional>
#include <vector>

#include "parallel/error.h"

namespace switchyard {
namespace {

constexpr const char* kLibrary = "libnvidia-ml.so.1";
constexpr double kJoulesOfCounter = 1e-3;

struct LibraryCloser {
  void operator()(void* library) const { dlclose(library); }
};
using Library = std::unique_ptr<void, LibraryCloser>;

Library load_library() {
  Library library(dlopen(kLibrary, RTLD_NOW | RTLD_LOCAL));
  if (library == nullptr) throw Error(dlerror());
  return library;
}

/// nullptr when the library lacks it.
template <typename Function>
Function* find_function(const Library& library, const char* name) {
  return reinterpret_cast<Function*>(dlsym(library.get(), name));
}

template <typename Function>
Function& get_function(const Library& library, const char* name) {
  Function* function = find_function<Function>(library, name);
  if (function == nullptr) throw Error(std::string(kLibrary).append(" has no ").append(name));
  return *function;
}

}  // namespace

/// The functions of NVML that are used, declared here because toolkits need not have its header, and one GPU's handle.
/// Results of 0 are success.
class NvmlCounter {
 public:
  /// Throws Error with the reason why there is no such counter.
  explicit NvmlCounter(const std::string& pci_bus_id)
      : library_(load_library()),
        total_energy_(get_function<TotalEnergy>(library_, "nvmlDeviceGetTotalEnergyConsumption")),
        error_string_(get_function<ErrorString>(library_, "nvmlErrorString")),
        session_(*this) {
    auto& by_bus_id = get_function<HandleByBusId>(library_, "nvmlDeviceGetHandleByPciBusId_v2");
    check(by_bus_id(pci_bus_id.c_str(), &device_), "nvmlDeviceGetHandleByPciBusId_v2");
    unsigned divided = 0;
    unsigned divided_later = 0;
    auto* mig_mode = find_function<MigMode>(library_, "nvmlDeviceGetMigMode");  // fails on GPUs that cannot be divided
    if (mig_mode != nullptr && mig_mode(device_, &divided, &divided_later) == 0 && divided != 0)
      throw Error("the GPU is divided (MIG), and NVML counts the energy of whole GPUs");
    unsigned long long ignored = 0;
    check(total_energy_(device_, &ignored), "nvmlDeviceGetTotalEnergyConsumption");
  }

  std::optional<double> joules() const {
    unsigned long long count = 0;
    if (total_energy_(device_, &count) != 0) return std::nullopt;
    return static_cast<double>(count) * kJoulesOfCounter;
  }

 private:
  using Device = struct nvmlDevice_st*;
  using NoArguments = int();
  using HandleByBusId = int(const char*, Device*);
  using MigMode = int(Device, unsigned*, unsigned*);
  using TotalEnergy = int(Device, unsigned long long*);
  using ErrorString = const char*(int);

  /// NVML started, until it is no longer used.
  class Session {
   public:
    explicit Session(const NvmlCounter& nvml) : shutdown_(get_function<NoArguments>(nvml.library_, "nvmlShutdown")) {
      nvml.check(get_function<NoArguments>(nvml.library_, "nvmlInit_v2")(), "nvmlInit_v2");
    }
    Session(const Session&) = delete;
    Session& operator=(const Session&) = delete;
    ~Session() { shutdown_(); }

   private:
    NoArguments& shutdown_;
  };

  void check(int result, const char* call) const {
    if (result != 0) throw Error(std::string(call).append(": ").append(error_string_(result)));
  }

  Library library_;
  TotalEnergy& total_energy_;
  ErrorString& error_string_;
  Session session_;
  Device device_ = nullptr;
};

EnergyMeter::EnergyMeter(const GpuReport& gpu, const Communicator& comm) {
  const Communicator node = comm.same_node();
  const std::vector<std::string> gpus = node.all_gather(gpu.id);
  const auto first = std::ranges::find(gpus, gpu.id) - gpus.begin();
  if (first == node.rank()) {
    try {
      counter_ = std::make_unique<NvmlCounter>(gpu.pci_bus_id);
    } catch (const Error& error) {
      reason_unknown_ = error.what();
    }
  }
  reason_unknown_ = node.all_gather(reason_unknown_)[static_cast<std::size_t>(first)];
}

EnergyMeter::~EnergyMeter() = default;

double EnergyMeter::joules() const {
  if (!reason_unknown_.empty()) return std::numeric_limits<double>::quiet_NaN();
  if (counter_ == nullptr) return 0;
  return counter_->joules().value_or(std::numeric_limits<double>::quiet_NaN());
}

}  // namespace switchyard
