#pragma once

#include <cuda_runtime_api.h>

#include <chrono>
#include <cstddef>
#include <functional>
#include <string>
#include <vector>

/// A stand-in for the parts of CUDA's runtime, of NCCL and of cublasLt that we use, linked in their place: real
/// headers, host memory, MPI underneath. A stream is a thread with a queue, so work is as late as on a device; kernels/
/// launches kernels' arithmetic as such work. What the real ones answer with a hang or silent damage (sizes that
/// differ, a missing group, a rank that does not come, a host pointer, memory freed too early or while it is
/// registered, memory registered on one side of a message alone, two streams at the same memory neither of which waits
/// for the other) becomes an error here. Not modelled: graphs, a GPU that is too busy for NCCL's own kernels, and what
/// is parallel within a kernel.
namespace fake_gpu {

/// Memory that an operation reads or writes.
struct Range {
  const void* begin;
  std::size_t bytes;
};

/// Puts work into a stream, behind what is there.
void enqueue(cudaStream_t stream, std::vector<Range> touched, std::function<void()> work);

/// Launches a kernel in the compute stream: work that touches the tensors, or whatever was allocated, that these point
/// into. Null pointers are left out; one to host memory is complained of.
void launch(const std::vector<const void*>& touched, std::function<void()> work);

/// Whether all of it lies in one piece of device memory, or in one of pinned host memory.
bool is_device_memory(Range range);
bool is_pinned_memory(Range range);

/// Whether some work that is not over touches it.
bool is_touched(Range range);
/// Device memory that NCCL has registered must not be freed.
void set_registered(Range range, bool registered);
bool is_registered(Range range);
/// Calls of ncclCommRegister up to now.
int count_registrations();

/// From now on every call that could answer an error of earlier work answers this one. reset() undoes it.
void lose_device(cudaError_t error);

/// How long an operation of NCCL waits for its peers before it is an error. 5 seconds unless set.
void set_patience(std::chrono::milliseconds patience);
std::chrono::milliseconds patience();

/// Something that a program must not do. Printed, and kept for tests.
void complain(const std::string& what);
/// Complaints since the last call.
std::string take_complaints();
/// Makes the device whole again and forgets complaints.
void reset();

}  // namespace fake_gpu
