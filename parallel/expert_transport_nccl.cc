#include <chrono>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "parallel/device/device_memory.h"
#include "parallel/device/nccl/nccl_check.h"
#include "parallel/device/nccl/nccl_communicator.h"
#include "parallel/device/nccl/registered_buffers.h"
#include "parallel/device/stream.h"
#include "parallel/error.h"
#include "parallel/expert_transport.h"

namespace switchyard {
namespace {

/// Bytes that go to each rank or come from each, one rank's after another's.
struct Parts {
  std::vector<std::size_t> bytes, begins;

  Parts(std::span<const std::int32_t> rows_of_rank, std::int64_t row_bytes) {
    std::size_t begin = 0;
    for (const std::int32_t rows : rows_of_rank) {
      bytes.push_back(static_cast<std::size_t>(rows * row_bytes));
      begins.push_back(begin);
      begin += bytes.back();
    }
  }
};

/// "ranks 0, 2": those with which something is exchanged.
std::string peers_of(std::span<const std::int32_t> to, std::span<const std::int32_t> from, int me) {
  std::string peers;
  for (std::size_t rank = 0; rank < to.size(); ++rank) {
    if (static_cast<int>(rank) == me || (to[rank] == 0 && from[rank] == 0)) continue;
    peers += (peers.empty() ? "ranks " : ", ") + std::to_string(rank);
  }
  return peers.empty() ? "itself alone" : peers;
}

/// One rank's end of NCCL: the communicator and the stream in which rows fly, between registered buffers.
class Line {
 public:
  explicit Line(const Communicator& comm) : rank_(comm.rank()), nccl_(comm) {}

  NcclCommunicator& nccl() { return nccl_; }

  /// Puts one exchange into the stream, behind what the compute stream has been given up to now.
  Event start(const Tensor& sent, const Parts& to, Tensor& received, const Parts& from, const std::string& peers) {
    stream_.wait_for(compute_stream().record());
    end_here_on_error(peers, [&] {
      SWITCHYARD_NCCL(ncclGroupStart());
      for (std::size_t rank = 0; rank < to.bytes.size(); ++rank) {
        // Both sides know the counts: what is empty is left out by both.
        if (to.bytes[rank] > 0) {
          SWITCHYARD_NCCL(ncclSend(sent.bytes() + to.begins[rank], to.bytes[rank], ncclUint8, static_cast<int>(rank),
                                   nccl_.handle(), stream_.handle()));
        }
        if (from.bytes[rank] > 0) {
          SWITCHYARD_NCCL(ncclRecv(received.bytes() + from.begins[rank], from.bytes[rank], ncclUint8,
                                   static_cast<int>(rank), nccl_.handle(), stream_.handle()));
        }
      }
      SWITCHYARD_NCCL(ncclGroupEnd());
      nccl_.settle();
    });
    return stream_.record();
  }

  /// Blocks until the event has come.
  void wait(const Event& done, const std::string& peers) {
    end_here_on_error(peers, [&] {
      for (nccl_.check(); !done.is_done(); nccl_.check()) std::this_thread::yield();
    });
  }

 private:
  /// An error of `action` ends the exchange on this rank, so that its process can end, and names the rank and its
  /// peers; uncaught, it then ends all ranks.
  template <typename Action>
  void end_here_on_error(const std::string& peers, const Action& action) {
    try {
      action();
    } catch (const Error& error) {
      nccl_.abort();
      throw Error(error.what(), "rank " + std::to_string(rank_) + ", exchanging rows with " + peers);
    }
  }

  int rank_;
  NcclCommunicator nccl_;
  Stream stream_;
};

class InFlight : public Exchange::Pending {
 public:
  /// line and wait_seconds outlive this object.
  InFlight(Tensor sent, Tensor received, Event done, std::string peers, Line* line, double* wait_seconds)
      : sent_(std::move(sent)),
        received_(std::move(received)),
        done_(std::move(done)),
        peers_(std::move(peers)),
        line_(line),
        wait_seconds_(wait_seconds) {}

  Tensor wait() override {
    using Clock = std::chrono::steady_clock;
    const Clock::time_point begin = Clock::now();
    line_->wait(done_, peers_);
    *wait_seconds_ += std::chrono::duration<double>(Clock::now() - begin).count();
    return std::move(received_);
  }

 private:
  Tensor sent_, received_;  // NCCL reads and writes them until the exchange is over
  Event done_;
  std::string peers_;
  Line* line_;
  double* wait_seconds_;
};

class NcclTransport : public ExpertTransport {
 public:
  explicit NcclTransport(const Communicator& comm)
      : ExpertTransport(comm.size()), comm_(comm.duplicate()), line_(comm_), memory_(line_.nccl()) {}

  BufferSource* row_memory() override { return &memory_; }

 private:
  Exchange start(Tensor rows, const Counts& counts, double& wait_seconds) override {
    if (rows.device() != Device::gpu) {
      throw Error("the nccl transport was given rows that are not in GPU memory", {}, "choose the mpi transport");
    }
    check_equal_width(comm_, rows.row_bytes());
    if (rows.bytes() != nullptr && !memory_.owns(rows.bytes())) rows = copied_here(rows);
    Tensor received(rows.dtype(), counts.n_receive, rows.cols(), Device::gpu, &memory_);
    std::string peers = peers_of(counts.to, counts.from, comm_.rank());
    Event done =
        line_.start(rows, Parts(counts.to, rows.row_bytes()), received, Parts(counts.from, rows.row_bytes()), peers);
    return Exchange(std::make_unique<InFlight>(std::move(rows), std::move(received), std::move(done), std::move(peers),
                                               &line_, &wait_seconds));
  }

  Tensor copied_here(const Tensor& rows) {
    Tensor copy(rows.dtype(), rows.rows(), rows.cols(), Device::gpu, &memory_);
    copy_in(compute_stream(), copy.bytes(), rows.bytes(), static_cast<std::size_t>(rows.rows() * rows.row_bytes()));
    return copy;
  }

  Communicator comm_;
  Line line_;
  RegisteredBuffers memory_;
};

}  // namespace

std::unique_ptr<ExpertTransport> make_nccl_transport(const Communicator& comm) {
  return std::make_unique<NcclTransport>(comm);
}

bool has_nccl() { return true; }

}  // namespace switchyard
