#include "parallel/device/nccl/nccl_communicator.h"

#include <cstring>
#include <exception>
#include <string>
#include <thread>

#include "parallel/device/nccl/nccl_check.h"

namespace switchyard {
namespace {

ncclUniqueId make_id(const Communicator& comm) {
  ncclUniqueId id = {};
  if (comm.rank() == 0) SWITCHYARD_NCCL(ncclGetUniqueId(&id));
  const std::string bytes = comm.broadcast(std::string(id.internal, sizeof id.internal));
  std::memcpy(id.internal, bytes.data(), sizeof id.internal);
  return id;
}

ncclResult_t state_of(ncclComm_t comm) {
  ncclResult_t state = ncclSuccess;
  SWITCHYARD_NCCL(ncclCommGetAsyncError(comm, &state));
  return state;
}

}  // namespace

NcclCommunicator::NcclCommunicator(const Communicator& comm) {
  const ncclUniqueId id = make_id(comm);
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  config.blocking = 0;
  SWITCHYARD_NCCL(ncclCommInitRankConfig(&handle_, comm.size(), id, comm.rank(), &config));
  try {
    settle();
  } catch (...) {
    abort();
    throw;
  }
}

NcclCommunicator::~NcclCommunicator() {
  if (handle_ == nullptr) return;
  if (std::uncaught_exceptions() > 0) {
    abort();
    return;
  }
  ncclResult_t state = ncclCommFinalize(handle_);
  while (state == ncclInProgress) {
    std::this_thread::yield();
    if (ncclCommGetAsyncError(handle_, &state) != ncclSuccess) state = ncclInternalError;
  }
  state == ncclSuccess ? ncclCommDestroy(handle_) : ncclCommAbort(handle_);
}

void NcclCommunicator::check() const { nccl_check(state_of(handle_), "NCCL's exchange"); }

void NcclCommunicator::settle() const {
  ncclResult_t state = ncclInProgress;
  while ((state = state_of(handle_)) == ncclInProgress) std::this_thread::yield();
  nccl_check(state, "NCCL's start");
}

void NcclCommunicator::abort() noexcept {
  if (handle_ != nullptr) ncclCommAbort(handle_);
  handle_ = nullptr;
}

}  // namespace switchyard
