#pragma once

#include <nccl.h>

#include "parallel/communicator.h"

namespace switchyard {

/// NCCL's counterpart of a Communicator, for this process's GPU. Non-blocking: no call of NCCL waits inside for a peer
/// that may be dead, and every wait of ours looks for errors meanwhile.
class NcclCommunicator {
 public:
  /// Collective. Throws Error: no GPU, two ranks on one GPU, a peer that cannot be reached.
  explicit NcclCommunicator(const Communicator& comm);
  NcclCommunicator(const NcclCommunicator&) = delete;
  NcclCommunicator& operator=(const NcclCommunicator&) = delete;
  /// Collective, unless it was aborted or an error unwinds.
  ~NcclCommunicator();

  ncclComm_t handle() const { return handle_; }
  /// Throws Error when an earlier operation failed, here or on a peer whose end was noticed.
  void check() const;
  /// Blocks until calls in progress have put their work into their streams: nothing else may be put there before.
  void settle() const;
  /// Ends all operations here, so that nothing waits for a peer any more. The communicator is of no more use.
  void abort() noexcept;

 private:
  ncclComm_t handle_ = nullptr;
};

}  // namespace switchyard
