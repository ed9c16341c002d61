#include <cuda_runtime_api.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <mutex>
#include <thread>
#include <utility>

#include "tests/support/fake_gpu/fake_gpu.h"

namespace fake_gpu {
namespace {

constexpr std::size_t kDeviceBytes = std::size_t{1} << 30U;

enum class Kind : bool { device, pinned };

struct Piece {
  std::size_t bytes;
  Kind kind;
};

/// What was allocated, and what operations that are not over touch.
class Memory {
 public:
  cudaError_t allocate(void** data, std::size_t bytes, Kind kind) {
    const std::lock_guard lock(mutex_);
    if (kind == Kind::device && device_bytes_ + bytes > kDeviceBytes) return cudaErrorMemoryAllocation;
    *data = std::aligned_alloc(256, (bytes + 255) / 256 * 256);
    std::memset(*data, 0xff, bytes);  // NaN in f32 and bf16
    pieces_[static_cast<const std::byte*>(*data)] = {bytes, kind};
    if (kind == Kind::device) device_bytes_ += bytes;
    return cudaSuccess;
  }

  cudaError_t release(void* data, Kind kind) {
    if (data == nullptr) return cudaSuccess;
    const std::lock_guard lock(mutex_);
    const auto piece = pieces_.find(static_cast<const std::byte*>(data));
    if (piece == pieces_.end() || piece->second.kind != kind) return cudaErrorInvalidValue;
    const Range freed = {data, piece->second.bytes};
    if (std::ranges::any_of(pending_, [&](const Range& range) { return overlap(range, freed); })) {
      complain("memory is freed while work that touches it is pending");
      lose_device(cudaErrorIllegalAddress);
      return cudaErrorIllegalAddress;  // and stays, as the work would write into what others own by then
    }
    if (kind == Kind::device) device_bytes_ -= piece->second.bytes;
    pieces_.erase(piece);
    std::free(data);
    return cudaSuccess;
  }

  bool holds(Range range, Kind kind) {
    const std::lock_guard lock(mutex_);
    const auto* begin = static_cast<const std::byte*>(range.begin);
    auto piece = pieces_.upper_bound(begin);
    if (piece == pieces_.begin()) return false;
    --piece;
    return piece->second.kind == kind && begin + range.bytes <= piece->first + piece->second.bytes;
  }

  void begin(const std::vector<Range>& ranges) {
    const std::lock_guard lock(mutex_);
    pending_.insert(pending_.end(), ranges.begin(), ranges.end());
  }

  void end(const std::vector<Range>& ranges) {
    const std::lock_guard lock(mutex_);
    for (const Range& range : ranges) {
      pending_.erase(std::ranges::find_if(
          pending_, [&](const Range& other) { return other.begin == range.begin && other.bytes == range.bytes; }));
    }
  }

  std::size_t free_bytes() {
    const std::lock_guard lock(mutex_);
    return kDeviceBytes - device_bytes_;
  }

 private:
  static bool overlap(const Range& a, const Range& b) {
    const auto* a_begin = static_cast<const std::byte*>(a.begin);
    const auto* b_begin = static_cast<const std::byte*>(b.begin);
    return a_begin < b_begin + b.bytes && b_begin < a_begin + a.bytes;
  }

  std::mutex mutex_;
  std::map<const std::byte*, Piece> pieces_;
  std::vector<Range> pending_;
  std::size_t device_bytes_ = 0;
};

Memory& memory() {
  static Memory& instance = *new Memory;  // streams and pools outlive main
  return instance;
}

std::atomic<cudaError_t> lost = cudaSuccess;
std::atomic<std::int64_t> patience_ms = 5000;
std::mutex complaints_mutex;
std::string complaints;

}  // namespace
}  // namespace fake_gpu

struct CUstream_st {
 public:
  CUstream_st() : thread_([this] { run(); }) {}

  ~CUstream_st() {
    {
      const std::lock_guard lock(mutex_);
      stopped_ = true;
    }
    changed_.notify_all();
    thread_.join();  // which first does what is left
  }

  void push(std::vector<fake_gpu::Range> touched, std::function<void()> work) {
    fake_gpu::memory().begin(touched);
    {
      const std::lock_guard lock(mutex_);
      queue_.push_back({std::move(touched), std::move(work)});
    }
    changed_.notify_all();
  }

  void drain() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return queue_.empty(); });
  }

 private:
  struct Operation {
    std::vector<fake_gpu::Range> touched;
    std::function<void()> work;
  };

  void run() {
    std::unique_lock lock(mutex_);
    for (;;) {
      changed_.wait(lock, [&] { return stopped_ || !queue_.empty(); });
      if (queue_.empty()) return;
      Operation& operation = queue_.front();  // stays in the queue while it runs; a deque does not move it
      lock.unlock();
      operation.work();
      fake_gpu::memory().end(operation.touched);
      lock.lock();
      queue_.pop_front();
      if (queue_.empty()) changed_.notify_all();
    }
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Operation> queue_;
  bool stopped_ = false;
  std::thread thread_;
};

struct CUevent_st {
  std::atomic<int> recorded = 0, done = 0;
};

namespace fake_gpu {

void enqueue(cudaStream_t stream, std::vector<Range> touched, std::function<void()> work) {
  stream->push(std::move(touched), std::move(work));
}

bool is_device_memory(Range range) { return memory().holds(range, Kind::device); }
bool is_pinned_memory(Range range) { return memory().holds(range, Kind::pinned); }
void lose_device(cudaError_t error) { lost = error; }
void set_patience(std::chrono::milliseconds patience) { patience_ms = patience.count(); }
std::chrono::milliseconds patience() { return std::chrono::milliseconds(patience_ms); }

void complain(const std::string& what) {
  const std::lock_guard lock(complaints_mutex);
  std::fprintf(stderr, "fake GPU: %s\n", what.c_str());
  complaints += what + "\n";
}

std::string take_complaints() {
  const std::lock_guard lock(complaints_mutex);
  return std::exchange(complaints, {});
}

void reset() {
  lost = cudaSuccess;
  take_complaints();
}

}  // namespace fake_gpu

extern "C" {

const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaErrorMemoryAllocation:
      return "out of memory";
    case cudaErrorInvalidValue:
      return "invalid argument";
    case cudaErrorIllegalAddress:
      return "an illegal memory access was encountered";
    default:
      return "an error of the fake GPU";
  }
}
cudaError_t cudaGetLastError() { return fake_gpu::lost; }

cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) { return device == 0 ? cudaSuccess : cudaErrorInvalidDevice; }
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
  if (device != 0) return cudaErrorInvalidDevice;
  *properties = {};
  std::snprintf(properties->name, sizeof properties->name, "fake GPU");
  properties->major = 9;
  properties->multiProcessorCount = 1;
  return cudaSuccess;
}
cudaError_t cudaMemGetInfo(std::size_t* free_bytes, std::size_t* total_bytes) {
  *free_bytes = fake_gpu::memory().free_bytes();
  *total_bytes = fake_gpu::kDeviceBytes;
  return cudaSuccess;
}

cudaError_t cudaMalloc(void** data, std::size_t bytes) {
  return fake_gpu::memory().allocate(data, bytes, fake_gpu::Kind::device);
}
cudaError_t cudaFree(void* data) { return fake_gpu::memory().release(data, fake_gpu::Kind::device); }
cudaError_t cudaHostAlloc(void** data, std::size_t bytes, unsigned /*flags*/) {
  return fake_gpu::memory().allocate(data, bytes, fake_gpu::Kind::pinned);
}
cudaError_t cudaFreeHost(void* data) { return fake_gpu::memory().release(data, fake_gpu::Kind::pinned); }

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags) {
  if (flags != cudaStreamNonBlocking) fake_gpu::complain("a stream that waits for the default stream");
  *stream = new CUstream_st;
  return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  delete stream;
  return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  stream->drain();
  return fake_gpu::lost;
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind, cudaStream_t stream) {
  const bool to_device = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
  const bool from_device = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
  if (to_device && !fake_gpu::is_device_memory({to, bytes})) return cudaErrorInvalidValue;
  if (from_device && !fake_gpu::is_device_memory({from, bytes})) return cudaErrorInvalidValue;
  stream->push({{to, bytes}, {from, bytes}}, [=] { std::memcpy(to, from, bytes); });
  return fake_gpu::lost;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned /*flags*/) {
  *event = new CUevent_st;
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  const int count = ++event->recorded;
  stream->push({}, [event, count] { event->done = count; });
  return cudaSuccess;
}
cudaError_t cudaEventQuery(cudaEvent_t event) {
  if (fake_gpu::lost != cudaSuccess) return fake_gpu::lost;
  return event->done >= event->recorded ? cudaSuccess : cudaErrorNotReady;
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  while (event->done < event->recorded) std::this_thread::yield();
  return fake_gpu::lost;
}
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned /*flags*/) {
  const int count = event->recorded;
  stream->push({}, [event, count] {
    while (event->done < count) std::this_thread::yield();
  });
  return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t /*event*/) {
  return cudaSuccess;  // kept: what waits for it in a stream still looks at it, as CUDA allows
}

}  // extern "C"
