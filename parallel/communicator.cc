#include "parallel/communicator.h"

#include <mpi.h>

#include <algorithm>
#include <array>
#include <cassert>
#include <cstring>
#include <exception>
#include <utility>

#include "parallel/error.h"
#include "parallel/mpi_check.h"
#include "parallel/mpi_handle.h"

namespace switchyard {
namespace {

/// MPI counts are ints: whatever may be longer travels in pieces of this many bytes.
constexpr std::size_t kPieceBytes = std::size_t{16} << 20U;

template <typename T>
MPI_Datatype mpi_type();
template <>
MPI_Datatype mpi_type<std::int64_t>() {
  return MPI_INT64_T;
}
template <>
MPI_Datatype mpi_type<std::uint64_t>() {
  return MPI_UINT64_T;
}
template <>
MPI_Datatype mpi_type<double>() {
  return MPI_DOUBLE;
}

template <typename T>
T all_reduce(T value, MPI_Op operation, MPI_Comm comm) {
  SWITCHYARD_MPI(MPI_Allreduce(MPI_IN_PLACE, &value, 1, mpi_type<T>(), operation, comm));
  return value;
}

/// Debug builds: throws on every rank when `value` is not the same on all.
void check_equal([[maybe_unused]] const char* what, [[maybe_unused]] std::int64_t value,
                 [[maybe_unused]] MPI_Comm comm) {
#ifndef NDEBUG
  std::array<std::int64_t, 2> least = {value, -value};
  SWITCHYARD_MPI(MPI_Allreduce(MPI_IN_PLACE, least.data(), 2, MPI_INT64_T, MPI_MIN, comm));
  if (least[0] != -least[1]) {
    throw Error(std::string(what) + " is not equal on all ranks: between " + std::to_string(least[0]) + " and " +
                std::to_string(-least[1]));
  }
#endif
}

template <typename T>
void reduce_to(std::span<T> data, int root, int rank, MPI_Comm comm) {
  check_equal("the root of a sum", root, comm);
  check_equal("the length of a sum", static_cast<std::int64_t>(data.size()), comm);
  constexpr std::size_t kPiece = kPieceBytes / sizeof(T);
  for (std::size_t begin = 0; begin < data.size(); begin += kPiece) {
    const int count = static_cast<int>(std::min(kPiece, data.size() - begin));
    T* piece = data.data() + begin;
    const void* send = rank == root ? MPI_IN_PLACE : piece;
    SWITCHYARD_MPI(MPI_Reduce(send, rank == root ? piece : nullptr, count, mpi_type<T>(), MPI_SUM, root, comm));
  }
}

MPI_Comm duplicate_of(MPI_Comm comm) {
  MPI_Comm copy = MPI_COMM_NULL;
  SWITCHYARD_MPI(MPI_Comm_dup(comm, &copy));
  return copy;
}

}  // namespace

Communicator::Communicator(std::unique_ptr<Handle> handle) : handle_(std::move(handle)) {}
Communicator::Communicator(Communicator&&) noexcept = default;
Communicator& Communicator::operator=(Communicator&& other) noexcept {
  std::swap(handle_, other.handle_);
  return *this;
}

Communicator::~Communicator() {
  if (!handle_ || !handle_->owned) return;
  int finalised = 0;
  MPI_Finalized(&finalised);
  // Freeing is collective; on the way out of an error the other ranks may never come.
  if (finalised == 0 && std::uncaught_exceptions() == 0) MPI_Comm_free(&handle_->comm);
}

Communicator Communicator::world() {
  return Communicator(std::make_unique<Handle>(Handle{duplicate_of(MPI_COMM_WORLD), true}));
}
Communicator Communicator::self() {
  return Communicator(std::make_unique<Handle>(Handle{duplicate_of(MPI_COMM_SELF), true}));
}
Communicator Communicator::duplicate() const {
  return Communicator(std::make_unique<Handle>(Handle{duplicate_of(handle_->comm), true}));
}
Communicator Communicator::same_node() const {
  MPI_Comm node = MPI_COMM_NULL;
  SWITCHYARD_MPI(MPI_Comm_split_type(handle_->comm, MPI_COMM_TYPE_SHARED, rank(), MPI_INFO_NULL, &node));
  return Communicator(std::make_unique<Handle>(Handle{node, true}));
}

int Communicator::rank() const {
  int rank = 0;
  SWITCHYARD_MPI(MPI_Comm_rank(handle_->comm, &rank));
  return rank;
}
int Communicator::size() const {
  int size = 0;
  SWITCHYARD_MPI(MPI_Comm_size(handle_->comm, &size));
  return size;
}

void Communicator::barrier() const { SWITCHYARD_MPI(MPI_Barrier(handle_->comm)); }
std::int64_t Communicator::sum(std::int64_t value) const { return all_reduce(value, MPI_SUM, handle_->comm); }
double Communicator::sum(double value) const { return all_reduce(value, MPI_SUM, handle_->comm); }
std::int64_t Communicator::max(std::int64_t value) const { return all_reduce(value, MPI_MAX, handle_->comm); }
double Communicator::max(double value) const { return all_reduce(value, MPI_MAX, handle_->comm); }
std::int64_t Communicator::min(std::int64_t value) const { return all_reduce(value, MPI_MIN, handle_->comm); }
bool Communicator::any(bool value) const { return max(std::int64_t{value}) != 0; }

void Communicator::sum_to_root(std::span<std::uint64_t> data, int root) const {
  reduce_to(data, root, rank(), handle_->comm);
}
void Communicator::sum_to_root(std::span<double> data, int root) const { reduce_to(data, root, rank(), handle_->comm); }

std::string Communicator::broadcast(std::string value, int root) const {
  std::uint64_t length = value.size();
  broadcast_bytes(reinterpret_cast<std::byte*>(&length), sizeof length, root);
  value.resize(length);
  broadcast_bytes(reinterpret_cast<std::byte*>(value.data()), length, root);
  return value;
}

void Communicator::broadcast_bytes(std::byte* data, std::size_t bytes, int root) const {
  check_equal("the root of a broadcast", root, handle_->comm);
  for (std::size_t begin = 0; begin < bytes; begin += kPieceBytes) {
    const int count = static_cast<int>(std::min(kPieceBytes, bytes - begin));
    SWITCHYARD_MPI(MPI_Bcast(data + begin, count, MPI_BYTE, root, handle_->comm));
  }
}

std::vector<std::string> Communicator::all_gather(const std::string& value) const {
  const std::vector<std::uint64_t> lengths = all_gather(std::uint64_t{value.size()});
  const std::vector<char> text = all_gather_v(std::span<const char>(value));
  std::vector<std::string> values;
  std::size_t at = 0;
  for (const std::uint64_t length : lengths) {
    values.emplace_back(text.data() + at, length);
    at += length;
  }
  return values;
}

std::vector<std::byte> Communicator::gather_bytes(std::span<const std::byte> bytes, int root) const {
  check_equal("the root of a gather", root, handle_->comm);
  const auto n_ranks = static_cast<std::size_t>(size());
  const auto me = static_cast<std::size_t>(rank());
  const bool to_all = root < 0;

  std::vector<std::uint64_t> ends(n_ranks);
  const std::uint64_t mine = bytes.size();
  SWITCHYARD_MPI(MPI_Allgather(&mine, 1, MPI_UINT64_T, ends.data(), 1, MPI_UINT64_T, handle_->comm));
  for (std::size_t r = 1; r < n_ranks; ++r) ends[r] += ends[r - 1];
  const std::uint64_t total = ends.back();

  // The result arrives piece by piece; each rank contributes what of its bytes lies in the piece.
  std::vector<std::byte> gathered(to_all || rank() == root ? total : 0);
  std::vector<int> counts(n_ranks);
  std::vector<int> offsets(n_ranks);
  for (std::uint64_t piece = 0; piece < total; piece += kPieceBytes) {
    std::uint64_t my_begin = 0;
    for (std::size_t r = 0; r < n_ranks; ++r) {
      const std::uint64_t rank_begin = r == 0 ? 0 : ends[r - 1];
      const std::uint64_t begin = std::clamp(rank_begin, piece, piece + kPieceBytes);
      const std::uint64_t end = std::clamp(ends[r], piece, piece + kPieceBytes);
      counts[r] = static_cast<int>(end - begin);
      offsets[r] = static_cast<int>(begin - piece);
      if (r == me && counts[r] > 0) my_begin = begin - rank_begin;
    }
    const std::byte* send = bytes.data() + my_begin;
    std::byte* receive = gathered.empty() ? nullptr : gathered.data() + piece;
    if (to_all) {
      SWITCHYARD_MPI(
          MPI_Allgatherv(send, counts[me], MPI_BYTE, receive, counts.data(), offsets.data(), MPI_BYTE, handle_->comm));
    } else {
      SWITCHYARD_MPI(MPI_Gatherv(send, counts[me], MPI_BYTE, receive, counts.data(), offsets.data(), MPI_BYTE, root,
                                 handle_->comm));
    }
  }
  return gathered;
}

void Communicator::all_to_all(std::span<const std::int32_t> send, std::span<std::int32_t> receive) const {
  check_equal("the length of an all-to-all", static_cast<std::int64_t>(send.size()), handle_->comm);
  const auto n_ranks = static_cast<std::size_t>(size());
  if (send.size() != receive.size() || send.size() % n_ranks != 0) {
    throw Error("all_to_all: " + std::to_string(send.size()) + " values to send and " + std::to_string(receive.size()) +
                " to receive are not the same multiple of " + std::to_string(n_ranks) + " ranks");
  }
  const int count = static_cast<int>(send.size() / n_ranks);
  SWITCHYARD_MPI(MPI_Alltoall(send.data(), count, MPI_INT32_T, receive.data(), count, MPI_INT32_T, handle_->comm));
}

std::vector<std::vector<std::byte>> Communicator::exchange_bytes(
    const std::vector<std::span<const std::byte>>& send) const {
  const auto n_ranks = static_cast<std::size_t>(size());
  if (send.size() != n_ranks) {
    throw Error("all_to_all_v: " + std::to_string(send.size()) + " lists for " + std::to_string(n_ranks) + " ranks");
  }
  std::vector<std::uint64_t> send_sizes(n_ranks);
  std::vector<std::uint64_t> receive_sizes(n_ranks);
  for (std::size_t r = 0; r < n_ranks; ++r) send_sizes[r] = send[r].size();
  SWITCHYARD_MPI(
      MPI_Alltoall(send_sizes.data(), 1, MPI_UINT64_T, receive_sizes.data(), 1, MPI_UINT64_T, handle_->comm));

  std::vector<std::vector<std::byte>> received(n_ranks);
  std::vector<Outgoing> out;
  std::vector<Incoming> in;
  for (std::size_t r = 0; r < n_ranks; ++r) {
    received[r].resize(receive_sizes[r]);
    out.push_back({static_cast<int>(r), send[r]});
    in.push_back({static_cast<int>(r), received[r]});
  }
  exchange(out, in);
  return received;
}

void Communicator::exchange(std::span<const Outgoing> send, std::span<const Incoming> receive) const {
  // Between two ranks messages keep their order, so that pieces need no numbers.
  std::vector<MPI_Request> requests;
  for (const Incoming& message : receive)
    for (std::size_t begin = 0; begin < message.bytes.size(); begin += kPieceBytes) {
      const int count = static_cast<int>(std::min(kPieceBytes, message.bytes.size() - begin));
      SWITCHYARD_MPI(MPI_Irecv(message.bytes.data() + begin, count, MPI_BYTE, message.rank, 0, handle_->comm,
                               &requests.emplace_back()));
    }
  for (const Outgoing& message : send)
    for (std::size_t begin = 0; begin < message.bytes.size(); begin += kPieceBytes) {
      const int count = static_cast<int>(std::min(kPieceBytes, message.bytes.size() - begin));
      SWITCHYARD_MPI(MPI_Isend(message.bytes.data() + begin, count, MPI_BYTE, message.rank, 0, handle_->comm,
                               &requests.emplace_back()));
    }
  SWITCHYARD_MPI(MPI_Waitall(static_cast<int>(requests.size()), requests.data(), MPI_STATUSES_IGNORE));
}

}  // namespace switchyard
