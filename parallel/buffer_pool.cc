#include "parallel/buffer_pool.h"

namespace switchyard {

Buffer BufferPool::take(std::size_t bytes) {
  const std::lock_guard lock(mutex_);
  auto best = idle_.end();
  for (auto it = idle_.begin(); it != idle_.end(); ++it) {
    const bool fits = it->capacity >= bytes && it->capacity / 2 <= bytes;
    if (fits && (best == idle_.end() || it->capacity <= best->capacity)) best = it;
  }
  if (best == idle_.end()) return {};
  const Buffer buffer = *best;
  idle_.erase(best);
  bytes_ -= buffer.capacity;
  return buffer;
}

void BufferPool::give(Buffer buffer) {
  const std::lock_guard lock(mutex_);
  bytes_ += buffer.capacity;
  idle_.push_back(buffer);
  drop_oldest_until(most_bytes_);
}

void BufferPool::clear() {
  const std::lock_guard lock(mutex_);
  drop_oldest_until(0);
}

void BufferPool::drop_oldest_until(std::size_t limit) {
  auto it = idle_.begin();
  for (; it != idle_.end() && bytes_ > limit; ++it) {
    bytes_ -= it->capacity;
    free_(it->data);
  }
  idle_.erase(idle_.begin(), it);
}

}  // namespace switchyard
