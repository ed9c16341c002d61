#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "parallel/buffer_pool.h"
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

/// Moves rows between source ranks and expert ranks. Rows are opaque: [n, width] of any DType. Type, width and device
/// are equal on all ranks, also on those that bring no row, and arrive as they were sent.
class ExpertTransport {
 public:
  virtual ~ExpertTransport() = default;
  /// Collective. packed: [plan.n_send(), width] in packed order; finish() gives [plan.n_receive(), width], arrived
  /// order.
  Exchange start_dispatch(const ExchangePlan& plan, Tensor packed);
  /// Collective. arrived: [plan.n_receive(), width] in arrived order; finish() gives [plan.n_send(), width], packed
  /// order.
  Exchange start_combine(const ExchangePlan& plan, Tensor arrived);
  /// Where rows that are to be sent best lie, so that they need not be copied; nullptr: anywhere. Such tensors end
  /// before the transport.
  virtual BufferSource* row_memory() { return nullptr; }
  const TransportTraffic& traffic() const { return traffic_; }

 protected:
  explicit ExpertTransport(int n_ranks) { traffic_.bytes_sent.resize(static_cast<std::size_t>(n_ranks)); }

  /// How many rows go to each rank and come from each, [n_ranks], one rank's after another's.
  struct Counts {
    std::span<const std::int32_t> to, from;
    std::int64_t n_receive;  // sum of `from`
  };
  /// Debug builds: collective, throws Error unless rows have as many bytes on all ranks. Else does nothing.
  static void check_equal_width(const Communicator& comm, std::int64_t row_bytes);

 private:
  /// Starts an exchange of rows that fit the counts. Time in finish() is added to wait_seconds.
  virtual Exchange start(Tensor rows, const Counts& counts, double& wait_seconds) = 0;
  Exchange start_checked(const ExchangePlan& plan, Tensor rows, const Counts& counts, double& wait_seconds);

  TransportTraffic traffic_;
};

/// One process, no copy: rows stay where they are. Throws UsageError on a communicator of more than one rank.
std::unique_ptr<ExpertTransport> make_local_transport(const Communicator& comm);
/// MPI_Ialltoallv over a row datatype, so that counts stay in int range past 2^31 bytes. Rows in GPU memory travel
/// through pinned host memory, so that ranks may share a GPU.
std::unique_ptr<ExpertTransport> make_mpi_transport(const Communicator& comm);
/// NCCL, GPU to GPU, for rows in GPU memory: each rank has a GPU of its own and has called use_gpu. Rows fly in a
/// stream of their own, beside what computes, between buffers that NCCL has registered, so that it need not copy them;
/// what it hands over is among these. A rank on which an exchange fails says so and ends all ranks. Collective.
/// Throws Error in a build without NCCL.
std::unique_ptr<ExpertTransport> make_nccl_transport(const Communicator& comm);
/// Whether this build has it.
bool has_nccl();
/// By name: "local", "mpi" or "nccl". Throws UsageError naming the choices.
std::unique_ptr<ExpertTransport> make_transport(std::string_view name, const Communicator& comm);

}  // namespace switchyard
