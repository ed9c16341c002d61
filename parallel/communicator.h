#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <type_traits>
#include <vector>

namespace switchyard {

/// A group of ranks. Owns its MPI communicator (a duplicate, so that its messages meet no others).
/// Every member function but rank() and size() is collective and blocking; all calls come from one thread.
class Communicator {
 public:
  static Communicator world();  // Collective over all processes
  static Communicator self();   // this process alone
  Communicator(Communicator&&) noexcept;
  Communicator& operator=(Communicator&&) noexcept;
  ~Communicator();

  int rank() const;
  int size() const;

  Communicator duplicate() const;
  /// The ranks that share memory with this one, in the order of their ranks here.
  Communicator same_node() const;
  void barrier() const;
  std::int64_t sum(std::int64_t value) const;
  double sum(double value) const;
  std::int64_t max(std::int64_t value) const;
  double max(double value) const;
  std::int64_t min(std::int64_t value) const;
  bool any(bool value) const;

  /// Element-wise sum onto `root`; other ranks' data is left undefined. Sizes equal on all ranks.
  void sum_to_root(std::span<std::uint64_t> data, int root = 0) const;
  void sum_to_root(std::span<double> data, int root = 0) const;

  /// The root's bytes on every rank (any length, also past 2^31).
  std::string broadcast(std::string value, int root = 0) const;
  template <typename T>
  std::vector<T> broadcast(std::vector<T> values, int root = 0) const;

  /// One value of each rank, in rank order.
  template <typename T>
  std::vector<T> all_gather(const T& value) const;
  std::vector<std::string> all_gather(const std::string& value) const;
  /// Values of all ranks one after another, in rank order; lengths may differ and may be 0.
  template <typename T>
  std::vector<T> all_gather_v(std::span<const T> values) const;
  /// As all_gather_v, but only the root receives; others get an empty vector.
  template <typename T>
  std::vector<T> gather_v(std::span<const T> values, int root = 0) const;

  /// send and receive: [size() * n], n values for each rank.
  void all_to_all(std::span<const std::int32_t> send, std::span<std::int32_t> receive) const;
  /// Values for each rank, send[r], out; those of each rank, in rank order, back.
  template <typename T>
  std::vector<std::vector<T>> all_to_all_v(const std::vector<std::vector<T>>& send) const;

  struct Outgoing {
    int rank;
    std::span<const std::byte> bytes;
  };
  struct Incoming {
    int rank;
    std::span<std::byte> bytes;
  };
  /// Sends and receives messages of any length whose sizes both sides know. What two ranks send one another arrives in
  /// the order in which it was sent.
  void exchange(std::span<const Outgoing> send, std::span<const Incoming> receive) const;

  struct Handle;  // MPI_Comm, defined in parallel/mpi_handle.h
  const Handle& handle() const { return *handle_; }

 private:
  explicit Communicator(std::unique_ptr<Handle> handle);
  void broadcast_bytes(std::byte* data, std::size_t bytes, int root) const;
  std::vector<std::byte> gather_bytes(std::span<const std::byte> bytes, int root) const;  // root -1: everybody
  std::vector<std::vector<std::byte>> exchange_bytes(const std::vector<std::span<const std::byte>>& send) const;

  std::unique_ptr<Handle> handle_;
};

template <typename T>
std::vector<T> Communicator::broadcast(std::vector<T> values, int root) const {
  static_assert(std::is_trivially_copyable_v<T>);
  std::uint64_t count = values.size();
  broadcast_bytes(reinterpret_cast<std::byte*>(&count), sizeof count, root);
  values.resize(count);
  broadcast_bytes(reinterpret_cast<std::byte*>(values.data()), count * sizeof(T), root);
  return values;
}

namespace detail {
template <typename T>
std::vector<T> from_bytes(const std::vector<std::byte>& bytes) {
  static_assert(std::is_trivially_copyable_v<T>);
  std::vector<T> values(bytes.size() / sizeof(T));
  if (!values.empty()) __builtin_memcpy(values.data(), bytes.data(), values.size() * sizeof(T));
  return values;
}
}  // namespace detail

template <typename T>
std::vector<T> Communicator::all_gather(const T& value) const {
  return all_gather_v(std::span<const T>(&value, 1));
}
template <typename T>
std::vector<T> Communicator::all_gather_v(std::span<const T> values) const {
  return detail::from_bytes<T>(gather_bytes(std::as_bytes(values), -1));
}
template <typename T>
std::vector<T> Communicator::gather_v(std::span<const T> values, int root) const {
  return detail::from_bytes<T>(gather_bytes(std::as_bytes(values), root));
}
template <typename T>
std::vector<std::vector<T>> Communicator::all_to_all_v(const std::vector<std::vector<T>>& send) const {
  std::vector<std::span<const std::byte>> out;
  out.reserve(send.size());
  for (const auto& values : send) out.push_back(std::as_bytes(std::span<const T>(values)));
  std::vector<std::vector<T>> received;
  for (const auto& bytes : exchange_bytes(out)) received.push_back(detail::from_bytes<T>(bytes));
  return received;
}

}  // namespace switchyard
