#pragma once

#include <cstddef>
#include <functional>
#include <mutex>
#include <utility>
#include <vector>

namespace switchyard {

/// Memory of some kind, as much as `capacity` bytes. Whoever holds one gives it back.
struct Buffer {
  std::byte* data = nullptr;
  std::size_t capacity = 0;
};

/// What buffers are taken from and given back to.
class BufferSource {
 public:
  virtual ~BufferSource() = default;
  /// At least `bytes`, aligned to 256 bytes. Throws Error naming them when memory is exhausted.
  virtual Buffer take(std::size_t bytes) = 0;
  virtual void give(Buffer buffer) = 0;
};

/// Freed buffers of one kind of memory by age, kept for the next of their size, up to a bound. Few at a time (a forward
/// pass has tens of sizes), so a scan finds the best fit. May be used from any thread.
class BufferPool {
 public:
  /// Keeps at most so many bytes; what is too much goes to `free`, oldest first.
  BufferPool(std::size_t most_bytes, std::function<void(std::byte*)> free)
      : most_bytes_(most_bytes), free_(std::move(free)) {}

  /// The smallest free buffer of at least `bytes`, unless more than half of it would lie idle; else an empty one.
  Buffer take(std::size_t bytes);
  void give(Buffer buffer);
  /// Frees all that lies idle.
  void clear();

 private:
  void drop_oldest_until(std::size_t limit);

  std::size_t most_bytes_;
  std::function<void(std::byte*)> free_;
  std::mutex mutex_;
  std::vector<Buffer> idle_;
  std::size_t bytes_ = 0;
};

}  // namespace switchyard
