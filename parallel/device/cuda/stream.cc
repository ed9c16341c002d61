#include "parallel/device/stream.h"

#include <utility>

#include "parallel/device/cuda/cuda_check.h"

namespace switchyard {

Event::Event(Event&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}

Event::~Event() {
  if (handle_ != nullptr) cudaEventDestroy(handle_);
}

bool Event::is_done() const {
  const cudaError_t state = cudaEventQuery(handle_);
  if (state == cudaErrorNotReady) return false;
  cuda_check(state, "cudaEventQuery");
  return true;
}

void Event::wait() const { SWITCHYARD_CUDA(cudaEventSynchronize(handle_)); }

double Event::seconds_since(const Event& earlier) const {
  float milliseconds = 0;
  SWITCHYARD_CUDA(cudaEventElapsedTime(&milliseconds, earlier.handle_, handle_));
  return static_cast<double>(milliseconds) / 1e3;
}

Stream::Stream() { SWITCHYARD_CUDA(cudaStreamCreateWithFlags(&handle_, cudaStreamNonBlocking)); }

Stream::~Stream() { cudaStreamDestroy(handle_); }

Event Stream::record() const { return record(cudaEventDisableTiming); }

Event Stream::record_time() const { return record(cudaEventDefault); }

Event Stream::record(unsigned flags) const {
  CUevent_st* handle = nullptr;
  SWITCHYARD_CUDA(cudaEventCreateWithFlags(&handle, flags));
  Event event(handle);
  SWITCHYARD_CUDA(cudaEventRecord(handle, handle_));
  return event;
}

void Stream::wait_for(const Event& event) const { SWITCHYARD_CUDA(cudaStreamWaitEvent(handle_, event.handle_, 0)); }

void Stream::wait() const { SWITCHYARD_CUDA(cudaStreamSynchronize(handle_)); }

const Stream& compute_stream() {
  static const Stream& stream = *new Stream;  // never destroyed: tensors with static lifetime may be freed after it
  return stream;
}

}  // namespace switchyard
