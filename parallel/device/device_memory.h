#pragma once

#include <cstddef>
#include <functional>

#include "parallel/buffer_pool.h"
#include "parallel/device/stream.h"
#include "parallel/tensor.h"

/// Memory that a GPU works on, from bounded pools of freed buffers. A freed buffer of GPU memory is handed out again at
/// once, while work on it may still wait in the compute stream: that is sound because whoever gets it also works in the
/// compute stream, behind. Another stream that touches a tensor therefore waits for an event of the compute stream
/// before, and the tensor lives until that other work is done. Memory is never managed by the driver behind our back.
namespace switchyard {

/// At least `bytes` of pinned or GPU memory, aligned to 256 bytes. Throws Error naming the bytes asked for and left.
Buffer take_device_buffer(Device device, std::size_t bytes);
void give_device_buffer(Device device, Buffer buffer);
/// Frees what lies idle in that pool.
void free_idle_buffers(Device device);
/// What is called when no more GPU memory can be had, to free some that lies idle elsewhere; replaces what was given
/// before.
void on_gpu_memory_shortage(std::function<void()> free_idle);

/// Copies between the devices that two pointers tell of, of which at least one is not pageable host memory. Comes after
/// what the compute stream was given before, and blocks until it is whole.
void copy_bytes(void* to, const void* from, std::size_t bytes);

/// Copies from host memory to a GPU's, behind what the compute stream was given before. Does not block: `from` may be
/// changed at once.
void upload(void* to, const void* from, std::size_t bytes);

/// Begins a copy in a stream, between GPU memory and pinned memory. Both live until it is done.
void copy_in(const Stream& stream, void* to, const void* from, std::size_t bytes);

/// The same of `count` blocks of so many bytes, of which each begins so far behind the one before it.
struct BlocksApart {
  std::size_t count, bytes, apart_there, apart_here;
};
void copy_in(const Stream& stream, void* to, const void* from, const BlocksApart& blocks);

/// Makes the numbers of rows from `first` on 0, in the compute stream.
void clear(Tensor& tensor, std::int64_t first = 0);

/// A copy of a matrix on another device, or on the same. Of its devices at least one is not the CPU. Comes after what
/// the compute stream does to `from`, and blocks until it is whole.
Tensor copy_to(Device device, TensorView from);

}  // namespace switchyard
