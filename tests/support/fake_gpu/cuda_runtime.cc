#include <cuda_runtime_api.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <mutex>
#include <thread>
#include <utility>

#include "parallel/device/stream.h"
#include "tests/support/fake_gpu/fake_gpu.h"

namespace fake_gpu {
namespace {

constexpr std::size_t kDeviceBytes = std::size_t{1} << 30U;

enum class Kind : bool { device, pinned };

struct Piece {
  std::size_t bytes;
  Kind kind;
};

bool overlap(const Range& a, const Range& b) {
  const auto* a_begin = static_cast<const std::byte*>(a.begin);
  const auto* b_begin = static_cast<const std::byte*>(b.begin);
  return a_begin < b_begin + b.bytes && b_begin < a_begin + a.bytes;
}

/// How much of each stream's work comes before something: operations, by the stream's number.
using Past = std::map<int, std::int64_t>;

void merge(Past& past, const Past& other) {
  for (const auto& [stream, operations] : other) past[stream] = std::max(past[stream], operations);
}

/// Which work comes before which, by streams, events and what the host has waited for: two streams that touch the same
/// memory must be in order, whichever was faster this time.
class Order {
 public:
  /// Whether what the stream is given to do comes behind all other streams' work on that memory.
  bool begin(int stream, const std::vector<Range>& ranges) {
    const std::lock_guard lock(mutex_);
    Past& past = streams_[stream];
    merge(past, host_);
    const std::int64_t number = ++past[stream];
    bool in_order = true;
    for (const Range& range : ranges) {
      if (range.bytes == 0) continue;
      for (const Access& access : accesses_)
        if (overlap(access.range, range) && past[access.stream] < access.number) in_order = false;
      std::erase_if(accesses_, [&](const Access& access) {
        return access.stream == stream && access.range.begin == range.begin && access.range.bytes == range.bytes;
      });
      accesses_.push_back({range, stream, number});
    }
    return in_order;
  }
  Past past_of(int stream) {
    const std::lock_guard lock(mutex_);
    Past past = streams_[stream];
    merge(past, host_);
    return past;
  }
  void stream_waits(int stream, const Past& past) {
    const std::lock_guard lock(mutex_);
    merge(streams_[stream], past);
  }
  void host_waits(const Past& past) {
    const std::lock_guard lock(mutex_);
    merge(host_, past);
    std::erase_if(accesses_, [&](const Access& access) { return access.number <= host_[access.stream]; });
  }

 private:
  struct Access {
    Range range;
    int stream;
    std::int64_t number;
  };
  std::mutex mutex_;
  std::map<int, Past> streams_;
  Past host_;
  std::vector<Access> accesses_;  // that something yet to come may not be behind
};

Order& order() {
  static Order& instance = *new Order;
  return instance;
}

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
    if (std::ranges::any_of(registered_, [&](const Range& range) { return overlap(range, freed); })) {
      complain("memory is freed while NCCL has it registered");
      return cudaErrorInvalidValue;
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

  /// All of the device memory that was allocated with what is at `data`; nothing when that is none.
  Range piece_of(const void* data) {
    const std::lock_guard lock(mutex_);
    auto piece = pieces_.upper_bound(static_cast<const std::byte*>(data));
    if (piece == pieces_.begin()) return {};
    --piece;
    const bool inside = static_cast<const std::byte*>(data) < piece->first + piece->second.bytes;
    return inside && piece->second.kind == Kind::device ? Range{piece->first, piece->second.bytes} : Range{};
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

  bool is_touched(Range range) {
    const std::lock_guard lock(mutex_);
    return std::ranges::any_of(pending_, [&](const Range& other) { return overlap(range, other); });
  }

  void set_registered(Range range, bool registered) {
    const std::lock_guard lock(mutex_);
    if (registered) {
      registered_.push_back(range);
    } else {
      registered_.erase(std::ranges::find(registered_, range.begin, &Range::begin));
    }
  }

  /// Whether all of it lies in one registered range.
  bool is_registered(Range range) {
    const std::lock_guard lock(mutex_);
    const auto* begin = static_cast<const std::byte*>(range.begin);
    return std::ranges::any_of(registered_, [&](const Range& whole) {
      const auto* first = static_cast<const std::byte*>(whole.begin);
      return first <= begin && begin + range.bytes <= first + whole.bytes;
    });
  }

  std::size_t free_bytes() {
    const std::lock_guard lock(mutex_);
    return kDeviceBytes - device_bytes_;
  }

 private:
  std::mutex mutex_;
  std::map<const std::byte*, Piece> pieces_;
  std::vector<Range> pending_, registered_;
  std::size_t device_bytes_ = 0;
};

Memory& memory() {
  static Memory& instance = *new Memory;  // streams and pools outlive main
  return instance;
}

/// As many as the variable FAKE_GPUS says: their memories are the processes' own all the same.
int count_devices() {
  const char* count = std::getenv("FAKE_GPUS");
  return count == nullptr ? 1 : std::atoi(count);
}

std::atomic<cudaError_t> lost = cudaSuccess;
std::atomic<std::int64_t> patience_ms = 5000;
std::mutex complaints_mutex;
std::string complaints;

}  // namespace
}  // namespace fake_gpu

struct CUstream_st {
 public:
  CUstream_st() : number_(next_number++), thread_([this] { run(); }) {}

  ~CUstream_st() {
    {
      const std::lock_guard lock(mutex_);
      stopped_ = true;
    }
    changed_.notify_all();
    thread_.join();  // which first does what is left
  }

  int number() const { return number_; }

  void push(std::vector<fake_gpu::Range> touched, std::function<void()> work) {
    if (!fake_gpu::order().begin(number_, touched))
      fake_gpu::complain("two streams touch the same memory, and neither waits for the other");
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

  inline static int next_number = 0;

  int number_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Operation> queue_;
  bool stopped_ = false;
  std::thread thread_;
};

struct CUevent_st {
  std::atomic<int> recorded = 0, done = 0;
  bool knows_time = false;
  std::chrono::steady_clock::time_point time;  // when it was done
  fake_gpu::Past past;                         // what comes before it
};

namespace fake_gpu {

void enqueue(cudaStream_t stream, std::vector<Range> touched, std::function<void()> work) {
  stream->push(std::move(touched), std::move(work));
}

void launch(const std::vector<const void*>& touched, std::function<void()> work) {
  std::vector<Range> ranges;
  for (const void* data : touched) {
    if (data == nullptr) continue;
    ranges.push_back(memory().piece_of(data));
    if (ranges.back().bytes == 0) complain("a kernel was given memory that is not the device's");
  }
  enqueue(switchyard::compute_stream().handle(), std::move(ranges), std::move(work));
}

bool is_device_memory(Range range) { return memory().holds(range, Kind::device); }
bool is_pinned_memory(Range range) { return memory().holds(range, Kind::pinned); }
bool is_touched(Range range) { return memory().is_touched(range); }
void set_registered(Range range, bool registered) { memory().set_registered(range, registered); }
bool is_registered(Range range) { return memory().is_registered(range); }
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
  *count = fake_gpu::count_devices();
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) {
  return device >= 0 && device < fake_gpu::count_devices() ? cudaSuccess : cudaErrorInvalidDevice;
}
cudaError_t cudaGetDevice(int* device) {
  *device = 0;  // all are alike
  return cudaSuccess;
}
cudaError_t cudaDeviceGetPCIBusId(char* bus_id, int length, int device) {
  std::snprintf(bus_id, static_cast<std::size_t>(length), "0000:%02x:00.0", static_cast<unsigned>(device));
  return cudaSetDevice(device);
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
  if (cudaSetDevice(device) != cudaSuccess) return cudaErrorInvalidDevice;
  *properties = {};
  properties->uuid.bytes[0] = static_cast<char>(device);
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
  const fake_gpu::Past past = fake_gpu::order().past_of(stream->number());
  stream->drain();
  fake_gpu::order().host_waits(past);
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

cudaError_t cudaMemcpy2DAsync(void* to, std::size_t apart_there, const void* from, std::size_t apart_here,
                              std::size_t bytes, std::size_t count, cudaMemcpyKind kind, cudaStream_t stream) {
  constexpr std::size_t kMostApart = (std::size_t{1} << 31U) - 1;  // as devices say: cudaDevAttrMaxPitch
  if (bytes > apart_there || bytes > apart_here || kind != cudaMemcpyDefault) return cudaErrorInvalidValue;
  if (apart_there > kMostApart || apart_here > kMostApart) return cudaErrorInvalidPitchValue;
  const std::size_t reach_there = (count - 1) * apart_there + bytes;
  const std::size_t reach_here = (count - 1) * apart_here + bytes;
  stream->push({{to, reach_there}, {from, reach_here}}, [=] {
    for (std::size_t i = 0; i < count; ++i)
      std::memcpy(static_cast<std::byte*>(to) + i * apart_there, static_cast<const std::byte*>(from) + i * apart_here,
                  bytes);
  });
  return fake_gpu::lost;
}

cudaError_t cudaMemsetAsync(void* to, int value, std::size_t bytes, cudaStream_t stream) {
  if (!fake_gpu::is_device_memory({to, bytes})) return cudaErrorInvalidValue;
  stream->push({{to, bytes}}, [=] { std::memset(to, value, bytes); });
  return fake_gpu::lost;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags) {
  *event = new CUevent_st;
  (*event)->knows_time = (flags & cudaEventDisableTiming) == 0;
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  const int count = ++event->recorded;
  event->past = fake_gpu::order().past_of(stream->number());
  stream->push({}, [event, count] {
    event->time = std::chrono::steady_clock::now();
    event->done = count;
  });
  return cudaSuccess;
}
cudaError_t cudaEventQuery(cudaEvent_t event) {
  if (fake_gpu::lost != cudaSuccess) return fake_gpu::lost;
  if (event->done < event->recorded) return cudaErrorNotReady;
  fake_gpu::order().host_waits(event->past);
  return cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  while (event->done < event->recorded) std::this_thread::yield();
  fake_gpu::order().host_waits(event->past);
  return fake_gpu::lost;
}
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t begin, cudaEvent_t end) {
  if (!begin->knows_time || !end->knows_time) return cudaErrorInvalidResourceHandle;
  if (begin->done < begin->recorded || end->done < end->recorded) return cudaErrorNotReady;
  *milliseconds = std::chrono::duration<float, std::milli>(end->time - begin->time).count();
  return fake_gpu::lost;
}
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned /*flags*/) {
  const int count = event->recorded;
  fake_gpu::order().stream_waits(stream->number(), event->past);
  stream->push({}, [event, count] {
    while (event->done < count) std::this_thread::yield();
  });
  return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t /*event*/) {
  return cudaSuccess;  // kept: what waits for it in a stream still looks at it, as CUDA allows
}

}  // extern "C"
