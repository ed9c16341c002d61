/// A program whose rank WHO is lost: lost_gpu_rank WHO HOW. All ranks dispatch rows over NCCL (the stand-in), again and
/// again; in the second round the rank throws ("error"), kills itself ("kill"), or does not come ("absent").
/// lost_gpu_rank_test.sh runs it and looks at what remains.

#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "parallel/communicator.h"
#include "parallel/error.h"
#include "parallel/exchange_plan.h"
#include "parallel/expert_placement.h"
#include "parallel/expert_transport.h"
#include "parallel/mpi_environment.h"
#include "parallel/slot_places.h"
#include "parallel/tensor.h"
#include "tests/support/fake_gpu/fake_gpu.h"

namespace {

using namespace switchyard;

void lose_rank(std::string_view how) {
  if (how == "error") throw Error("a fault was injected");
  if (how == "kill") std::raise(SIGKILL);
  if (how == "absent") ::pause();
}

}  // namespace

int main(int argc, char** argv) {
  const MpiEnvironment mpi(&argc, &argv, MpiThreads::any);
  const std::vector<std::string_view> arguments(argv + 1, argv + argc);
  if (arguments.size() != 2) throw UsageError("lost_gpu_rank WHO HOW");
  fake_gpu::set_patience(std::chrono::seconds(6));  // longer than a rank waits before it says its own error
  const Communicator comm = Communicator::world();
  const auto transport = make_nccl_transport(comm);
  const auto placement = ExpertPlacement::contiguous(1, 5, comm.size()).layer(0);
  const std::vector<std::int32_t> ids = {0, 1, 2, 3, 4};
  const auto plan = ExchangePlan::make(SlotPlaces({ids, 1}, placement, comm.rank()).rows(), placement, comm);
  for (int round = 0; round < 3; ++round) {
    if (round == 1 && arguments[0] == std::to_string(comm.rank())) lose_rank(arguments[1]);
    Exchange out = transport->start_dispatch(plan, Tensor(DType::f32, plan.n_send(), 5000, Device::gpu));
    static_cast<void>(std::move(out).finish());
  }
  return 0;
}
