#include "parallel/device/device_memory.h"
#include "parallel/device/gpu.h"
#include "parallel/device/stream.h"
#include "parallel/error.h"

/// What a build without CUDA answers.
namespace switchyard {
namespace {

[[noreturn]] void no_cuda() {
  throw Error("this build of switchyard cannot use GPUs", {},
              "build it where the CUDA compiler nvcc is on the PATH, with -DSWITCHYARD_CUDA=ON");
}

}  // namespace

int count_gpus() { return 0; }
GpuReport use_gpu(int /*ordinal*/) { no_cuda(); }

// No stream can be made, so there is no event either, and nothing of them that could run.
Event::Event(Event&& other) noexcept : handle_(other.handle_) {}
Event::~Event() {}  // NOLINT(performance-trivially-destructible): the other build's is not
bool Event::is_done() const { no_cuda(); }
void Event::wait() const { no_cuda(); }
double Event::seconds_since(const Event& /*earlier*/) const { no_cuda(); }
Stream::Stream() { no_cuda(); }
Stream::~Stream() {}  // NOLINT(performance-trivially-destructible): likewise
Event Stream::record() const { no_cuda(); }
Event Stream::record_time() const { no_cuda(); }
void Stream::wait_for(const Event& /*event*/) const { no_cuda(); }
void Stream::wait() const { no_cuda(); }
const Stream& compute_stream() { no_cuda(); }

Buffer take_device_buffer(Device /*device*/, std::size_t /*bytes*/) { no_cuda(); }
void give_device_buffer(Device /*device*/, Buffer /*buffer*/) {}  // none was taken
void free_idle_buffers(Device /*device*/) {}
// NOLINTNEXTLINE(performance-unnecessary-value-param): as declared, for those that keep it
void on_gpu_memory_shortage(std::function<void()> /*free_idle*/) {}
void copy_bytes(void* /*to*/, const void* /*from*/, std::size_t /*bytes*/) { no_cuda(); }
void upload(void* /*to*/, const void* /*from*/, std::size_t /*bytes*/) { no_cuda(); }
void copy_in(const Stream& /*stream*/, void* /*to*/, const void* /*from*/, std::size_t /*bytes*/) { no_cuda(); }
void clear(Tensor& /*tensor*/, std::int64_t /*first*/) { no_cuda(); }
Tensor copy_to(Device /*device*/, TensorView /*from*/) { no_cuda(); }

}  // namespace switchyard
