/// A program that dies: failing_rank WHERE WHO [HOW]. Every rank walks through all collectives of parallel/, over and
/// over, but at WHERE the rank WHO ("all": every one) throws instead, while the others wait for it with communicators,
/// a transport and an exchange alive. failing_rank_test.sh runs it and looks at what remains.

#include <cstdint>
#include <span>
#include <stdexcept>
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

namespace {

using namespace switchyard;

struct Fault {
  std::string_view where, who, how;

  void may_strike(std::string_view here, int rank) const {
    if (here != where || (who != "all" && who != std::to_string(rank))) return;
    if (how == "usage") throw UsageError("a fault was injected", std::string(here), "inject none");
    if (how == "foreign") throw std::logic_error("a fault was injected");
    if (how == "int") throw 7;
    throw Error("a fault was injected", std::string(here));
  }
};

void walk_through_collectives(const Fault& fault, const Communicator& comm, ExpertTransport& transport) {
  const auto step = [&](std::string_view here) { fault.may_strike(here, comm.rank()); };
  std::vector<double> values(3, 1.0);
  std::vector<std::int32_t> counts(static_cast<std::size_t>(comm.size()));
  step("barrier");
  comm.barrier();
  step("sum");
  static_cast<void>(comm.sum(1.0));
  step("sum_to_root");
  comm.sum_to_root(std::span(values));
  step("broadcast");
  values = comm.broadcast(std::move(values));
  step("gather_v");
  static_cast<void>(comm.gather_v(std::span<const double>(values)));
  step("all_gather_v");
  static_cast<void>(comm.all_gather_v(std::span<const double>(values)));
  step("all_to_all");
  comm.all_to_all(std::vector<std::int32_t>(counts), counts);
  step("all_to_all_v");
  static_cast<void>(comm.all_to_all_v(std::vector<std::vector<double>>(counts.size(), values)));
  step("duplicate");
  const Communicator copy = comm.duplicate();

  const auto placement = ExpertPlacement::contiguous(1, 5, comm.size()).layer(0);
  const std::vector<std::int32_t> ids = {0, 1, 2, 3, 4};
  step("plan");
  const auto plan = ExchangePlan::make(SlotPlaces({ids, 1}, placement, comm.rank()).rows(), placement, comm);
  step("start_dispatch");
  Exchange out = transport.start_dispatch(plan, Tensor(DType::f32, plan.n_send(), 5000));
  step("finish_dispatch");
  Tensor rows = std::move(out).finish();
  step("start_combine");
  Exchange back = transport.start_combine(plan, std::move(rows));
  step("finish_combine");
  static_cast<void>(std::move(back).finish());
}

}  // namespace

int main(int argc, char** argv) {
  const MpiEnvironment mpi(&argc, &argv);
  const std::vector<std::string_view> arguments(argv + 1, argv + argc);
  if (arguments.size() < 2) throw UsageError("failing_rank WHERE WHO [HOW]");
  const Fault fault{arguments[0], arguments[1], arguments.size() > 2 ? arguments[2] : "error"};
  const Communicator comm = Communicator::world();
  const auto transport = make_mpi_transport(comm);
  // The second round meets ranks that may have left the first one's last collective already.
  for (int round = 0; round < 2; ++round) walk_through_collectives(fault, comm, *transport);
  fault.may_strike("end", comm.rank());
  return 0;
}
