#include <mpi.h>

#include <cstring>
#include <map>
#include <numeric>
#include <string>
#include <utility>

#include "parallel/device/device_memory.h"
#include "parallel/error.h"
#include "parallel/expert_transport.h"
#include "parallel/mpi_check.h"
#include "parallel/mpi_handle.h"

namespace switchyard {
namespace {

/// Committed datatypes of one row, by its bytes: MPI then counts rows, which fit an int where bytes would not.
class RowTypes {
 public:
  RowTypes() = default;
  RowTypes(const RowTypes&) = delete;
  RowTypes& operator=(const RowTypes&) = delete;
  ~RowTypes() {
    int finalised = 0;
    MPI_Finalized(&finalised);
    if (finalised != 0) return;
    for (auto& [bytes, type] : types_) MPI_Type_free(&type);
  }

  MPI_Datatype of(std::int64_t row_bytes) {
    const auto known = types_.find(row_bytes);
    if (known != types_.end()) return known->second;
    MPI_Datatype type = MPI_DATATYPE_NULL;
    SWITCHYARD_MPI(MPI_Type_contiguous(static_cast<int>(row_bytes), MPI_BYTE, &type));
    SWITCHYARD_MPI(MPI_Type_commit(&type));
    types_.emplace(row_bytes, type);
    return type;
  }

 private:
  std::map<std::int64_t, MPI_Datatype> types_;
};

/// Rows for each rank or from each rank, as MPI wants them. A rank's own rows are not among them: they are copied.
struct Layout {
  std::vector<int> rows, begins;
  std::int64_t own_rows = 0, own_begin = 0;

  Layout(std::span<const std::int32_t> rows_of_rank, int me) : rows(rows_of_rank.begin(), rows_of_rank.end()) {
    begins.resize(rows.size());
    std::exclusive_scan(rows.begin(), rows.end(), begins.begin(), 0);
    const auto mine = static_cast<std::size_t>(me);
    own_begin = begins[mine];
    own_rows = std::exchange(rows[mine], 0);
  }
};

class InFlight : public Exchange::Pending {
 public:
  /// wait_seconds outlives this object.
  InFlight(Tensor sent, Layout to, Layout from, std::int64_t n_receive, double* wait_seconds)
      : device_(sent.device()),
        sent_(device_ == Device::gpu ? copy_to(Device::pinned, sent) : std::move(sent)),
        received_(sent_.dtype(), n_receive, sent_.cols(), sent_.device()),
        to_(std::move(to)),
        from_(std::move(from)),
        wait_seconds_(wait_seconds) {}

  void start(MPI_Datatype row, MPI_Comm comm) {
    SWITCHYARD_MPI(MPI_Ialltoallv(sent_.bytes(), to_.rows.data(), to_.begins.data(), row, received_.bytes(),
                                  from_.rows.data(), from_.begins.data(), row, comm, &request_));
    const std::int64_t row_bytes = sent_.row_bytes();
    if (to_.own_rows > 0) {
      std::memcpy(received_.bytes() + from_.own_begin * row_bytes, sent_.bytes() + to_.own_begin * row_bytes,
                  static_cast<std::size_t>(to_.own_rows * row_bytes));
    }
  }

  Tensor wait() override {
    const double begin = MPI_Wtime();
    SWITCHYARD_MPI(MPI_Wait(&request_, MPI_STATUS_IGNORE));
    *wait_seconds_ += MPI_Wtime() - begin;
    return device_ == Device::gpu ? copy_to(Device::gpu, received_) : std::move(received_);
  }

 private:
  Device device_;           // where rows come from and go to
  Tensor sent_, received_;  // in host memory, which is what MPI reads and writes
  Layout to_, from_;        // MPI reads the counts until the exchange is over
  MPI_Request request_ = MPI_REQUEST_NULL;
  double* wait_seconds_;
};

class MpiTransport : public ExpertTransport {
 public:
  explicit MpiTransport(const Communicator& comm) : ExpertTransport(comm.size()), comm_(comm.duplicate()) {}

 private:
  Exchange start(Tensor rows, const Counts& counts, double& wait_seconds) override {
    check_equal_width(comm_, rows.row_bytes());
    const MPI_Datatype row = row_types_.of(rows.row_bytes());
    const int me = comm_.rank();
    auto flight = std::make_unique<InFlight>(std::move(rows), Layout(counts.to, me), Layout(counts.from, me),
                                             counts.n_receive, &wait_seconds);
    flight->start(row, comm_.handle().comm);
    return Exchange(std::move(flight));
  }

  Communicator comm_;
  RowTypes row_types_;
};

}  // namespace

std::unique_ptr<ExpertTransport> make_mpi_transport(const Communicator& comm) {
  return std::make_unique<MpiTransport>(comm);
}

}  // namespace switchyard
