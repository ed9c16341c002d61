#include "parallel/gpu_choice.h"

#include <algorithm>
#include <charconv>
#include <string_view>
#include <utility>
#include <vector>

#include "parallel/error.h"

namespace switchyard {
namespace {

constexpr const char* kVisible = "CUDA_VISIBLE_DEVICES";
constexpr const char* kCount = "SLURM_GPUS_ON_NODE";
constexpr const char* kStepGpus = "SLURM_STEP_GPUS";
constexpr int kMostDevices = 1024;  // of a node: more is a mistake

std::optional<std::string> value_of(const Environment& environment, const char* name) {
  const char* value = environment(name);
  return value == nullptr ? std::nullopt : std::optional<std::string>(value);
}

std::vector<std::string> split(std::string_view list) {
  std::vector<std::string> parts;
  for (std::size_t begin = 0; begin <= list.size();) {
    const std::size_t end = std::min(list.find(',', begin), list.size());
    parts.emplace_back(list.substr(begin, end - begin));
    begin = end + 1;
  }
  return parts;
}

std::optional<int> number_in(std::string_view text) {
  int number = 0;
  const auto [end, fault] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (fault != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return number;
}

bool is_device(const std::string& text) {
  const std::optional<int> number = number_in(text);
  const bool uuid = (text.starts_with("GPU-") || text.starts_with("MIG-")) && text.size() > 4;
  return uuid || (number && *number >= 0 && *number < kMostDevices);
}

std::vector<std::string> visible_devices(const std::string& list) {
  if (list.empty() || list == "NoDevFiles") return {};
  std::vector<std::string> devices;
  for (std::string& device : split(list)) {
    if (device == "-1") break;
    if (!is_device(device))
      throw Error("'" + device + "' in '" + list + "' is no device", kVisible,
                  "give numbers, GPU-... or MIG-... with commas between them, or unset it");
    if (std::find(devices.begin(), devices.end(), device) != devices.end())
      throw Error("'" + list + "' names device " + device + " twice", kVisible, "name each device once");
    devices.push_back(std::move(device));
  }
  return devices;
}

std::vector<std::string> numbers_below(std::size_t count) {
  std::vector<std::string> numbers;
  for (std::size_t number = 0; number < count; ++number) numbers.push_back(std::to_string(number));
  return numbers;
}

/// As many devices as Slurm says that the step has here.
std::vector<std::string> counted_devices(const std::string& text) {
  const std::optional<int> count = number_in(text);
  if (!count || *count < 0 || *count > kMostDevices)
    throw Error("'" + text + "' is no number of GPUs", kCount, "Slurm sets it; unset it to run without GPUs");
  return numbers_below(static_cast<std::size_t>(*count));
}

}  // namespace

std::optional<GpuChoice> choose_gpu(const Environment& environment, int rank_on_node) {
  std::vector<std::string> devices;
  if (const auto visible = value_of(environment, kVisible))
    devices = visible_devices(*visible);
  else if (const auto count = value_of(environment, kCount))
    devices = counted_devices(*count);
  if (devices.empty()) return std::nullopt;

  const auto ordinal = static_cast<std::size_t>(rank_on_node) % devices.size();
  // Devices counted from 0 are the step's, unless the step has more: then they are one of its tasks'.
  const std::vector<std::string> of_step = split(value_of(environment, kStepGpus).value_or(""));
  const bool are_of_step = of_step.size() == devices.size() && devices == numbers_below(devices.size());
  return GpuChoice{static_cast<int>(ordinal), are_of_step ? of_step[ordinal] : devices[ordinal]};
}

}  // namespace switchyard
