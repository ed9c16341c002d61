#pragma once

#include <cstddef>
#include <map>

#include "parallel/buffer_pool.h"
#include "parallel/device/nccl/nccl_communicator.h"

namespace switchyard {

/// GPU memory for the rows that a communicator exchanges, allocated by NCCL and registered with the communicator, so
/// that rows are read and written where they lie. Registered memory here and other memory at a peer is more than NCCL
/// can tell: exchange rows in such buffers alone. Freed ones are kept, and sizes go in steps, so that registering is
/// rare; a buffer is given back when neither an exchange nor the host has a use for it, and used again in the compute
/// stream's order. From one thread. An NCCL that cannot register (before 2.19) gets plain memory.
class RegisteredBuffers : public BufferSource {
 public:
  /// nccl outlives this object.
  explicit RegisteredBuffers(NcclCommunicator& nccl);
  RegisteredBuffers(const RegisteredBuffers&) = delete;
  RegisteredBuffers& operator=(const RegisteredBuffers&) = delete;
  /// All buffers were given back, unless an error unwinds or NCCL was aborted: then they are left to whoever uses them.
  ~RegisteredBuffers() override;

  Buffer take(std::size_t bytes) override;
  void give(Buffer buffer) override { idle_.give(buffer); }
  /// Whether a buffer of these begins there.
  bool owns(const std::byte* data) const { return handles_.contains(data); }

 private:
  std::byte* allocate(std::size_t capacity);
  void free(std::byte* data);

  NcclCommunicator& nccl_;
  std::map<const std::byte*, void*> handles_;  // of NCCL, by buffer
  BufferPool idle_;
};

}  // namespace switchyard
