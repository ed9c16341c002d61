#include "parallel/expert_transport.h"

#include <cassert>
#include <exception>
#include <numeric>
#include <string>
#include <utility>

#include "parallel/error.h"

namespace switchyard {

Exchange::Exchange(std::unique_ptr<Pending> pending) : pending_(std::move(pending)) {}
Exchange::Exchange(Exchange&&) noexcept = default;

Exchange::~Exchange() {
  if (!pending_) return;
  assert(std::uncaught_exceptions() > 0 && "an exchange was dropped without finish()");
  // The transport may still read and write the buffers, and to wait for it may be for ever: leave them to it.
  static_cast<void>(pending_.release());
}

Tensor Exchange::finish() && {
  if (!pending_) throw Error("an exchange was finished twice");
  Tensor rows = pending_->wait();
  pending_.reset();
  return rows;
}

Exchange ExpertTransport::start_dispatch(const ExchangePlan& plan, Tensor packed) {
  return start_checked(plan, std::move(packed), {plan.send_rows(), plan.receive_rows(), plan.n_receive()},
                       traffic_.dispatch_wait_seconds);
}

Exchange ExpertTransport::start_combine(const ExchangePlan& plan, Tensor arrived) {
  return start_checked(plan, std::move(arrived), {plan.receive_rows(), plan.send_rows(), plan.n_send()},
                       traffic_.combine_wait_seconds);
}

Exchange ExpertTransport::start_checked(const ExchangePlan& plan, Tensor rows, const Counts& counts,
                                        double& wait_seconds) {
  const std::size_t n_ranks = traffic_.bytes_sent.size();
  if (counts.to.size() != n_ranks) {
    throw Error("the plan is for " + std::to_string(plan.n_ranks()) + " ranks, the transport has " +
                std::to_string(n_ranks));
  }
  const auto n_rows = std::accumulate(counts.to.begin(), counts.to.end(), std::int64_t{0});
  if (rows.rows() != n_rows || rows.row_bytes() == 0) {
    throw Error("an exchange of " + std::to_string(n_rows) + " rows was given " + std::to_string(rows.rows()) + " of " +
                    std::to_string(rows.row_bytes()) + " bytes",
                {}, "give empty tensors their width too");
  }
  for (std::size_t rank = 0; rank < n_ranks; ++rank) {
    traffic_.bytes_sent[rank] += static_cast<std::uint64_t>(counts.to[rank] * rows.row_bytes());
  }
  return start(std::move(rows), counts, wait_seconds);
}

void ExpertTransport::check_equal_width([[maybe_unused]] const Communicator& comm,
                                        [[maybe_unused]] std::int64_t row_bytes) {
#ifndef NDEBUG
  if (comm.min(row_bytes) != comm.max(row_bytes)) {
    throw Error("an exchange has rows of " + std::to_string(row_bytes) + " bytes here and of others elsewhere");
  }
#endif
}

std::unique_ptr<ExpertTransport> make_transport(std::string_view name, const Communicator& comm) {
  if (name == "local") return make_local_transport(comm);
  if (name == "mpi") return make_mpi_transport(comm);
  if (name == "nccl") return make_nccl_transport(comm);
  throw UsageError("unknown transport '" + std::string(name) + "'", {}, "choose local, mpi or nccl");
}

}  // namespace switchyard
