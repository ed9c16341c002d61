#pragma once

#include <cstddef>
#include <span>
#include <type_traits>
#include <utility>
#include <vector>

#include "parallel/device/device_memory.h"

namespace switchyard {

/// Owned array in GPU memory, contents undefined until written. As a Tensor on a GPU, for what is no matrix of numbers:
/// ids, orders, offsets.
template <typename T>
class DeviceArray {
  static_assert(std::is_trivially_copyable_v<T>);

 public:
  DeviceArray() = default;
  explicit DeviceArray(std::size_t size) : size_(size) {
    if (size > 0) buffer_ = take_device_buffer(Device::gpu, size * sizeof(T));
  }
  /// A copy of values of the host, in the compute stream. Does not block.
  explicit DeviceArray(std::span<const T> values) : DeviceArray(values.size()) {
    upload(buffer_.data, values.data(), values.size_bytes());
  }
  DeviceArray(DeviceArray&& other) noexcept
      : buffer_(std::exchange(other.buffer_, {})), size_(std::exchange(other.size_, 0)) {}
  DeviceArray& operator=(DeviceArray&& other) noexcept {
    std::swap(buffer_, other.buffer_);
    std::swap(size_, other.size_);
    return *this;
  }
  ~DeviceArray() {
    if (buffer_.data != nullptr) give_device_buffer(Device::gpu, buffer_);
  }

  std::size_t size() const { return size_; }
  T* data() { return reinterpret_cast<T*>(buffer_.data); }
  const T* data() const { return reinterpret_cast<const T*>(buffer_.data); }
  /// The values, once the compute stream has made them. Blocks.
  std::vector<T> to_host() const {
    std::vector<T> values(size_);
    copy_bytes(values.data(), buffer_.data, size_ * sizeof(T));
    return values;
  }

 private:
  Buffer buffer_;
  std::size_t size_ = 0;
};

}  // namespace switchyard
