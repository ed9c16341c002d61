#include "parallel/tensor.h"

#include <sys/mman.h>

#include <cstdlib>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

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

struct Buffer {
  std::byte* data = nullptr;
  std::size_t capacity = 0;
};

/// Freed buffers by age. Few at a time (a forward pass has tens of sizes), so a scan finds the best fit.
class Pool {
 public:
  /// The smallest free buffer of at least `bytes`, unless more than half of it would lie idle.
  Buffer take(std::size_t bytes) {
    const std::lock_guard lock(mutex_);
    auto best = free_.end();
    for (auto it = free_.begin(); it != free_.end(); ++it) {
      const bool fits = it->capacity >= bytes && it->capacity / 2 <= bytes;
      if (fits && (best == free_.end() || it->capacity <= best->capacity)) best = it;
    }
    if (best == free_.end()) return {};
    const Buffer buffer = *best;
    free_.erase(best);
    bytes_ -= buffer.capacity;
    return buffer;
  }

  void give(Buffer buffer) {
    const std::lock_guard lock(mutex_);
    bytes_ += buffer.capacity;
    free_.push_back(buffer);
    drop_oldest_until(kMostPooled);
  }

  void clear() {
    const std::lock_guard lock(mutex_);
    drop_oldest_until(0);
  }

 private:
  void drop_oldest_until(std::size_t limit) {
    auto it = free_.begin();
    for (; it != free_.end() && bytes_ > limit; ++it) {
      bytes_ -= it->capacity;
      std::free(it->data);
    }
    free_.erase(free_.begin(), it);
  }

  std::mutex mutex_;
  std::vector<Buffer> free_;
  std::size_t bytes_ = 0;
};

Pool& pool() {
  static Pool& instance = *new Pool;  // never destroyed: tensors with static lifetime may be freed after it
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

Tensor::Tensor(DType type, std::int64_t rows, std::int64_t cols) : rows_(rows), cols_(cols), type_(type) {
  const std::size_t bytes = checked_bytes(type, rows, cols);
  if (bytes == 0) return;
  const Buffer buffer = allocate(bytes);
  data_ = buffer.data;
  capacity_ = buffer.capacity;
}

Tensor::Tensor(Tensor&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)),
      capacity_(std::exchange(other.capacity_, 0)),
      rows_(std::exchange(other.rows_, 0)),
      cols_(std::exchange(other.cols_, 0)),
      type_(other.type_) {}

Tensor& Tensor::operator=(Tensor&& other) noexcept {
  Tensor taken(std::move(other));
  std::swap(data_, taken.data_);
  std::swap(capacity_, taken.capacity_);
  std::swap(rows_, taken.rows_);
  std::swap(cols_, taken.cols_);
  std::swap(type_, taken.type_);
  return *this;
}

Tensor::~Tensor() {
  if (data_ != nullptr) release({data_, capacity_});
}

}  // namespace switchyard
