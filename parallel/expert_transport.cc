#include "parallel/expert_transport.h"

#include <cassert>
#include <exception>
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

void ExpertTransport::check_rows(const ExchangePlan& plan, const Tensor& rows, std::int64_t expected) const {
  if (n_ranks() != plan.n_ranks()) {
    throw Error("the plan is for " + std::to_string(plan.n_ranks()) + " ranks, the transport has " +
                std::to_string(n_ranks()));
  }
  if (rows.rows() != expected || rows.row_bytes() == 0) {
    throw Error("an exchange of " + std::to_string(expected) + " rows was given " + std::to_string(rows.rows()) +
                    " of " + std::to_string(rows.row_bytes()) + " bytes",
                {}, "give empty tensors their width too");
  }
}

std::unique_ptr<ExpertTransport> make_transport(std::string_view name, const Communicator& comm) {
  if (name == "local") return make_local_transport(comm);
  if (name == "mpi") return make_mpi_transport(comm);
  throw UsageError("unknown transport '" + std::string(name) + "'", {}, "choose local or mpi");
}

}  // namespace switchyard
