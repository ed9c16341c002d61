#include "parallel/tensor.h"

#include <sys/mman.h>

#include <cstdlib>
#include <string>
#include <utility>

#include "parallel/buffer_pool.h"
#include "parallel/device/device_memory.h"
#include "parallel/error.h"

namespace switchyard {
namespace {

constexpr std::size_t kAlignment = 64;
constexpr std::size_t kHugePage = std::size_t{2} << 20U;
constexpr std::size_t kSmallestHuge = kHugePage / 2;
#ifdef __SANITIZE_ADDRESS__
constexpr std::size_t kSmallestPooled = SIZE_MAX;  // the sanitizer must see every free
#else
constexpr std::size_t kSmallestPooled = std::size_t{64} << 10U;  // below, malloc itself keeps the pages
#endif
constexpr std::size_t kMostPooled = std::size_t{2} << 30U;

BufferPool& pool() {
  // Never destroyed: tensors with static lifetime may be freed after it.
  static BufferPool& instance = *new BufferPool(kMostPooled, [](std::byte* data) { std::free(data); });
  return instance;
}

std::size_t checked_bytes(DType type, std::int64_t rows, std::int64_t cols) {
  std::int64_t elements = 0;
  std::int64_t bytes = 0;
  if (rows < 0 || cols < 0 || __builtin_mul_overflow(rows, cols, &elements) ||
      __builtin_mul_overflow(elements, size_of(type), &bytes)) {
    throw Error("a tensor cannot have " + std::to_string(rows) + " rows of " + std::to_string(cols) + " elements");
  }
  return static_cast<std::size_t>(bytes);
}

Buffer allocate(std::size_t bytes) {
  if (bytes >= kSmallestPooled) {
    if (const Buffer buffer = pool().take(bytes); buffer.data != nullptr) return buffer;
  }
  const std::size_t alignment = bytes >= kSmallestHuge ? kHugePage : kAlignment;
  const std::size_t capacity = (bytes + alignment - 1) / alignment * alignment;
  void* data = std::aligned_alloc(alignment, capacity);
  if (data == nullptr) {
    pool().clear();
    data = std::aligned_alloc(alignment, capacity);
  }
  if (data == nullptr) {
    throw Error("no memory for a tensor of " + std::to_string(bytes) + " bytes", {},
                "use smaller batches or more ranks");
  }
#ifdef MADV_HUGEPAGE
  // A hint: a quarter of the time for the first touch, and fewer page walks after. A refusal does no harm.
  if (alignment == kHugePage) ::madvise(data, capacity, MADV_HUGEPAGE);
#endif
  return {static_cast<std::byte*>(data), capacity};
}

void release(Buffer buffer) {
  if (buffer.capacity >= kSmallestPooled) {
    pool().give(buffer);
  } else {
    std::free(buffer.data);
  }
}

}  // namespace

Tensor::Tensor(DType type, std::int64_t rows, std::int64_t cols, Device device)
    : Tensor(type, rows, cols, device, nullptr) {}

Tensor::Tensor(DType type, std::int64_t rows, std::int64_t cols, Device device, BufferSource* source)
    : rows_(rows), cols_(cols), type_(type), device_(device), source_(source) {
  const std::size_t bytes = checked_bytes(type, rows, cols);
  if (bytes == 0) return;
  const Buffer buffer = source != nullptr       ? source->take(bytes)
                        : device == Device::cpu ? allocate(bytes)
                                                : take_device_buffer(device, bytes);
  data_ = buffer.data;
  capacity_ = buffer.capacity;
}

Tensor::Tensor(Tensor&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)),
      capacity_(std::exchange(other.capacity_, 0)),
      rows_(std::exchange(other.rows_, 0)),
      cols_(std::exchange(other.cols_, 0)),
      type_(other.type_),
      device_(other.device_),
      source_(other.source_) {}

Tensor& Tensor::operator=(Tensor&& other) noexcept {
  Tensor taken(std::move(other));
  std::swap(data_, taken.data_);
  std::swap(capacity_, taken.capacity_);
  std::swap(rows_, taken.rows_);
  std::swap(cols_, taken.cols_);
  std::swap(type_, taken.type_);
  std::swap(device_, taken.device_);
  std::swap(source_, taken.source_);
  return *this;
}

Tensor::~Tensor() {
  if (data_ == nullptr) return;
  const Buffer buffer = {data_, capacity_};
  if (source_ != nullptr)
    source_->give(buffer);
  else
    device_ == Device::cpu ? release(buffer) : give_device_buffer(device_, buffer);
}

}  // namespace switchyard
