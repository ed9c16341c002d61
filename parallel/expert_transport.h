#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string_view>
#include <vector>

#include "parallel/communicator.h"
#include "parallel/exchange_plan.h"
#include "parallel/tensor.h"

namespace switchyard {

/// Rows in flight. `finish` is the only way on: it waits and hands over the rows that arrived. Every rank finishes its
/// exchanges in the order in which they were started, before their transport is destroyed. One that is dropped while an
/// error unwinds leaves its buffers to the transport and does not wait; to drop one otherwise is a bug (asserted in
/// debug builds).
class [[nodiscard]] Exchange {
 public:
  /// What a transport keeps of an exchange that it started.
  class Pending {
   public:
    virtual ~Pending() = default;
    virtual Tensor wait() = 0;
  };

  explicit Exchange(std::unique_ptr<Pending> pending);
  Exchange(Exchange&&) noexcept;
  Exchange& operator=(Exchange&&) = delete;
  ~Exchange();
  /// Collective. May be called once: throws Error the second time.
  Tensor finish() &&;

 private:
  std::unique_ptr<Pending> pending_;
};

/// What a transport has moved since it was made.
struct TransportTraffic {
  std::vector<std::uint64_t> bytes_sent;  // [n_ranks], dispatch and combine; a rank's own rows count as its own
  double dispatch_wait_seconds = 0;       // time spent inside finish() of dispatches
  double combine_wait_seconds = 0;        // ... and of combines
};

/// Moves rows between source ranks and expert ranks. Rows are opaque: [n, width] of any DType. Type and width are equal
/// on all ranks, also on those that bring no row, and arrive as they were sent.
class ExpertTransport {
 public:
  virtual ~ExpertTransport() = default;
  /// Collective. packed: [plan.n_send(), width] in packed order; finish() gives [plan.n_receive(), width], arrived
  /// order.
  virtual Exchange start_dispatch(const ExchangePlan& plan, Tensor packed) = 0;
  /// Collective. arrived: [plan.n_receive(), width] in arrived order; finish() gives [plan.n_send(), width], packed
  /// order.
  virtual Exchange start_combine(const ExchangePlan& plan, Tensor arrived) = 0;
  const TransportTraffic& traffic() const { return traffic_; }

 protected:
  explicit ExpertTransport(int n_ranks) { traffic_.bytes_sent.resize(static_cast<std::size_t>(n_ranks)); }
  int n_ranks() const { return static_cast<int>(traffic_.bytes_sent.size()); }
  /// Throws Error unless the plan is for this many ranks and `rows` are `expected` rows of some width.
  void check_rows(const ExchangePlan& plan, const Tensor& rows, std::int64_t expected) const;

  TransportTraffic traffic_;
};

/// One process, no copy: rows stay where they are. Throws UsageError on a communicator of more than one rank.
std::unique_ptr<ExpertTransport> make_local_transport(const Communicator& comm);
/// MPI_Ialltoallv over a row datatype, so that counts stay in int range past 2^31 bytes.
std::unique_ptr<ExpertTransport> make_mpi_transport(const Communicator& comm);
/// By name: "local" or "mpi". Throws UsageError naming the choices.
std::unique_ptr<ExpertTransport> make_transport(std::string_view name, const Communicator& comm);

}  // namespace switchyard
