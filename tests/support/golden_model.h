#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <limits>
#include <memory>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "io/checkpoint.h"
#include "io/safetensors.h"
#include "parallel/device/device_memory.h"
#include "pipeline/model/model.h"

namespace switchyard::testing_support {

/// A folder with a model and what the reference implementation computes of some sequences in float32.
class GoldenModel {
 public:
  explicit GoldenModel(const std::string& name)
      : folder_(std::filesystem::path(SWITCHYARD_TEST_DATA) / name), golden_(folder_ / "golden.safetensors") {}

  const std::filesystem::path& folder() const { return folder_; }

  std::vector<float> floats(const std::string& name) const { return values<float>(name); }
  std::vector<std::int32_t> integers(const std::string& name) const { return values<std::int32_t>(name); }

  /// Sequences [first, last), each a window; all of them without arguments.
  Batch batch(std::size_t first = 0, std::size_t last = std::numeric_limits<std::size_t>::max()) const {
    const std::vector<std::int32_t> ids = integers("input_ids");
    const std::vector<std::int32_t> lengths = integers("lengths");
    const std::size_t width = ids.size() / lengths.size();
    Batch batch;
    batch.window_offsets = {0};
    for (std::size_t s = first; s < std::min(last, lengths.size()); ++s) {
      const auto length = static_cast<std::size_t>(lengths[s]);
      for (std::size_t t = 0; t < length; ++t) {
        batch.tokens.push_back(static_cast<std::uint32_t>(ids[s * width + t]));
        batch.targets.push_back(t + 1 < length ? ids[s * width + t + 1] : -1);
      }
      batch.window_offsets.push_back(static_cast<std::int32_t>(batch.tokens.size()));
    }
    return batch;
  }

 private:
  template <typename T>
  std::vector<T> values(const std::string& name) const {
    const StoredTensor* stored = golden_.find(name);
    if (stored == nullptr) throw std::runtime_error("no golden tensor " + name);
    std::vector<T> all(stored->data.size() / sizeof(T));
    std::memcpy(all.data(), stored->data.data(), stored->data.size());
    return all;
  }

  std::filesystem::path folder_;
  SafetensorsFile golden_;
};

/// Makes a GPU's ids and weights those of the host.
inline void take_choices(Routing& routing) {
  routing.gpu_ids = DeviceArray<std::int32_t>(std::span<const std::int32_t>(routing.ids));
  upload(routing.gpu_weights.bytes(), routing.weights.data(), routing.weights.size() * sizeof(float));
}

/// Keeps all that a forward pass shows.
class KeepAll : public RoutingObserver {
 public:
  void observe(int moe_layer, Routing&& routing, std::span<const ExchangePlan> /*plans*/) override {
    layers_in_order = layers_in_order && moe_layer == static_cast<int>(routings.size());
    bring_to_host(routing, "MoE layer " + std::to_string(moe_layer));
    for (Tensor* column : {&routing.logits, &routing.figures})
      if (column->device() == Device::gpu) *column = copy_to(Device::cpu, *column);
    routings.push_back(std::move(routing));
  }
  void layer_output(int /*layer*/, TensorView hidden) override {
    if (hidden.device() == Device::gpu) return layer_output(0, copy_to(Device::cpu, hidden));
    hiddens.emplace_back(hidden.data<float>(), hidden.data<float>() + hidden.rows() * hidden.cols());
  }

  std::vector<Routing> routings;
  std::vector<std::vector<float>> hiddens;  // [n, d] of each layer
  bool layers_in_order = true;
};

inline double deviation(std::span<const float> values) {
  double sum = 0;
  double squares = 0;
  for (const float v : values) sum += v;
  const double mean = sum / static_cast<double>(values.size());
  for (const float v : values) squares += (v - mean) * (v - mean);
  return std::sqrt(squares / static_cast<double>(values.size()));
}

/// Differences in units of the expected values' standard deviation; infinite when a size differs.
struct RelativeError {
  double largest = std::numeric_limits<double>::infinity();
  double mean = std::numeric_limits<double>::infinity();  // root mean square
};

inline RelativeError relative_error(std::span<const float> got, std::span<const float> expected) {
  if (got.size() != expected.size() || got.empty()) return {};
  double largest = 0;
  double squares = 0;
  for (std::size_t i = 0; i < got.size(); ++i) {
    const double error = std::abs(static_cast<double>(got[i]) - expected[i]);
    if (std::isnan(error)) return {};
    largest = std::max(largest, error);
    squares += error * error;
  }
  const double unit = deviation(expected);
  return {largest / unit, std::sqrt(squares / static_cast<double>(got.size())) / unit};
}

}  // namespace switchyard::testing_support
