#pragma once

#include <cassert>
#include <cstddef>
#include <cstdint>
#include <span>

#include "parallel/bf16.h"

namespace switchyard {

enum class DType : std::uint8_t { f32, bf16 };

/// Where a matrix lies. pinned: host memory that a GPU reads and writes by itself. gpu: memory of the GPU that this
/// process uses (device/gpu.h).
enum class Device : std::uint8_t { cpu, pinned, gpu };

/// Bytes of one element.
constexpr std::int64_t size_of(DType type) { return type == DType::f32 ? 4 : 2; }
template <typename T>
constexpr DType dtype_of();
template <>
constexpr DType dtype_of<float>() {
  return DType::f32;
}
template <>
constexpr DType dtype_of<Bf16>() {
  return DType::bf16;
}

class BufferSource;

/// Borrowed, read-only, row-major matrix [rows, cols].
class TensorView {
 public:
  TensorView() = default;
  TensorView(const void* data, DType type, std::int64_t rows, std::int64_t cols, Device device = Device::cpu)
      : data_(static_cast<const std::byte*>(data)), rows_(rows), cols_(cols), type_(type), device_(device) {}

  std::int64_t rows() const { return rows_; }
  std::int64_t cols() const { return cols_; }
  DType dtype() const { return type_; }
  Device device() const { return device_; }
  std::int64_t row_bytes() const { return cols_ * size_of(type_); }
  const std::byte* bytes() const { return data_; }
  /// The elements; T must be of the element type's size (asserted in debug builds).
  template <typename T>
  const T* data() const {
    assert(data_ == nullptr || std::int64_t{sizeof(T)} == size_of(type_));
    return reinterpret_cast<const T*>(data_);
  }
  template <typename T>
  std::span<const T> row(std::int64_t r) const {
    return {data<T>() + r * cols_, static_cast<std::size_t>(cols_)};
  }
  /// Rows [begin, end).
  TensorView rows(std::int64_t begin, std::int64_t end) const {
    return {data_ + begin * row_bytes(), type_, end - begin, cols_, device_};
  }

 private:
  const std::byte* data_ = nullptr;
  std::int64_t rows_ = 0;
  std::int64_t cols_ = 0;
  DType type_ = DType::f32;
  Device device_ = Device::cpu;
};

/// Owned row-major matrix [rows, cols], 64-byte aligned, contents undefined until written. Memory comes from a
/// process-wide pool of freed buffers, because a forward pass asks for the same sizes over and over and fresh pages
/// cost more than the arithmetic. Throws Error naming the bytes when memory is exhausted. On a GPU, what was freed is
/// used again in the order of the compute stream: device/device_memory.h.
class Tensor {
 public:
  Tensor() = default;
  Tensor(DType type, std::int64_t rows, std::int64_t cols, Device device = Device::cpu);
  /// In memory of a source of that device, which outlives the tensor; nullptr: of the pool.
  Tensor(DType type, std::int64_t rows, std::int64_t cols, Device device, BufferSource* source);
  Tensor(Tensor&& other) noexcept;
  Tensor& operator=(Tensor&& other) noexcept;
  Tensor(const Tensor&) = delete;
  Tensor& operator=(const Tensor&) = delete;
  ~Tensor();

  std::int64_t rows() const { return rows_; }
  std::int64_t cols() const { return cols_; }
  DType dtype() const { return type_; }
  Device device() const { return device_; }
  std::int64_t row_bytes() const { return cols_ * size_of(type_); }
  /// Forgets the rows from n on.
  void keep_rows(std::int64_t n) {
    assert(n <= rows_);
    rows_ = n;
  }
  std::byte* bytes() { return data_; }
  const std::byte* bytes() const { return data_; }
  template <typename T>
  T* data() {
    assert(data_ == nullptr || std::int64_t{sizeof(T)} == size_of(type_));
    return reinterpret_cast<T*>(data_);
  }
  template <typename T>
  const T* data() const {
    assert(data_ == nullptr || std::int64_t{sizeof(T)} == size_of(type_));
    return reinterpret_cast<const T*>(data_);
  }
  template <typename T>
  std::span<T> row(std::int64_t r) {
    return {data<T>() + r * cols_, static_cast<std::size_t>(cols_)};
  }
  template <typename T>
  std::span<const T> row(std::int64_t r) const {
    return {data<T>() + r * cols_, static_cast<std::size_t>(cols_)};
  }
  TensorView view() const { return {data_, type_, rows_, cols_, device_}; }
  /// A Tensor is a TensorView wherever one is read.
  operator TensorView() const { return view(); }  // NOLINT(google-explicit-constructor)
  TensorView rows(std::int64_t begin, std::int64_t end) const { return view().rows(begin, end); }

 private:
  std::byte* data_ = nullptr;
  std::size_t capacity_ = 0;  // bytes
  std::int64_t rows_ = 0;
  std::int64_t cols_ = 0;
  DType type_ = DType::f32;
  Device device_ = Device::cpu;
  BufferSource* source_ = nullptr;
};

}  // namespace switchyard
