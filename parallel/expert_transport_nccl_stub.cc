#include "parallel/error.h"
#include "parallel/expert_transport.h"

namespace switchyard {

std::unique_ptr<ExpertTransport> make_nccl_transport(const Communicator& /*comm*/) {
  throw Error("this build of switchyard has no NCCL", {},
              "choose the mpi transport, or build where nvcc, nccl.h and libnccl are found, with -DSWITCHYARD_CUDA=ON");
}

bool has_nccl() { return false; }

}  // namespace switchyard
