#include "parallel/exchange_plan.h"

#include <algorithm>
#include <cstddef>
#include <limits>
#include <numeric>
#include <string>
#include <utility>

#include "parallel/error.h"

namespace switchyard {
namespace {

std::size_t index(std::int64_t value) { return static_cast<std::size_t>(value); }

void check_places(std::size_t found, std::size_t expected) {
  if (found != expected)
    throw Error(std::to_string(found) + " counts of rows for " + std::to_string(expected) + " places of experts");
}

}  // namespace

ExchangePlan ExchangePlan::make(std::span<const std::int32_t> rows_by_place, const LayerPlacement& placement,
                                const Communicator& comm) {
  return std::move(make_parts(rows_by_place, 1, placement, comm).front());
}

std::vector<ExchangePlan> ExchangePlan::make_parts(std::span<const std::int32_t> rows_by_place, int n_parts,
                                                   const LayerPlacement& placement, const Communicator& comm) {
  const int n_ranks = placement.n_ranks();
  if (n_ranks != comm.size()) {
    throw Error("the placement is for " + std::to_string(n_ranks) + " ranks, the communicator has " +
                std::to_string(comm.size()));
  }
  const std::size_t parts = index(n_parts);
  const std::size_t n_places = index(placement.n_physical());
  check_places(rows_by_place.size(), parts * n_places);

  // For each rank its counts of each part. Ranks may hold different numbers of experts: counts are padded to the
  // longest list.
  std::size_t width = 0;
  for (int rank = 0; rank < n_ranks; ++rank) width = std::max(width, placement.experts_of(rank).size());
  std::vector<std::int32_t> outgoing(index(n_ranks) * parts * width);
  std::vector<std::int32_t> incoming(outgoing.size());
  for (std::size_t part = 0; part < parts; ++part) {
    auto next = rows_by_place.begin() + static_cast<std::ptrdiff_t>(part * n_places);
    for (int rank = 0; rank < n_ranks; ++rank) {
      const auto n_experts = static_cast<std::ptrdiff_t>(placement.experts_of(rank).size());
      const auto to = static_cast<std::ptrdiff_t>((index(rank) * parts + part) * width);
      std::copy(next, next + n_experts, outgoing.begin() + to);
      next += n_experts;
    }
  }
  comm.all_to_all(outgoing, incoming);

  const std::size_t n_local = placement.experts_of(comm.rank()).size();
  std::vector<ExchangePlan> plans;
  for (std::size_t part = 0; part < parts; ++part) {
    std::vector<std::int32_t> arriving;
    arriving.reserve(index(n_ranks) * n_local);
    for (int rank = 0; rank < n_ranks; ++rank) {
      const auto row = std::span(incoming).subspan((index(rank) * parts + part) * width, n_local);
      arriving.insert(arriving.end(), row.begin(), row.end());
    }
    plans.push_back({rows_by_place.subspan(part * n_places, n_places), placement, comm.rank(), arriving});
  }
  return plans;
}

ExchangePlan::ExchangePlan(std::span<const std::int32_t> rows_by_place, const LayerPlacement& placement, int rank,
                           std::span<const std::int32_t> arriving)
    : rank_(rank),
      rows_by_place_(rows_by_place.begin(), rows_by_place.end()),
      send_rows_(index(placement.n_ranks())),
      receive_rows_(index(placement.n_ranks())),
      rows_per_expert_(placement.experts_of(rank).size()),
      arriving_(arriving.begin(), arriving.end()) {
  check_places(rows_by_place.size(), index(placement.n_physical()));
  const std::size_t n_local = rows_per_expert_.size();
  if (arriving.size() != receive_rows_.size() * n_local) {
    throw Error(std::to_string(arriving.size()) + " arriving counts for " + std::to_string(receive_rows_.size()) +
                " ranks and " + std::to_string(n_local) + " local experts");
  }
  auto rows = rows_by_place_.cbegin();
  for (int to = 0; to < placement.n_ranks(); ++to) {
    const auto end = rows + static_cast<std::ptrdiff_t>(placement.experts_of(to).size());
    send_rows_[index(to)] = std::accumulate(rows, end, std::int32_t{0});
    n_send_ += send_rows_[index(to)];
    rows = end;
  }
  for (std::size_t i = 0; i < arriving.size(); ++i) {
    receive_rows_[i / n_local] += arriving[i];
    rows_per_expert_[i % n_local] += arriving[i];
    n_receive_ += arriving[i];
    if (arriving[i] < 0 || n_receive_ > std::numeric_limits<std::int32_t>::max()) {
      throw Error(
          std::to_string(n_receive_) + " rows arrive on rank " + std::to_string(rank) + ", outside of 0 ... 2^31 - 1",
          {}, "use smaller batches");
    }
  }
}

std::vector<std::int32_t> ExchangePlan::arrived_begins() const {
  std::vector<std::int32_t> begins(arriving_.size());
  std::exclusive_scan(arriving_.begin(), arriving_.end(), begins.begin(), std::int32_t{0});
  return begins;
}

bool ExchangePlan::arrives_grouped() const {
  const std::vector<std::int32_t> begins = arrived_begins();
  const std::size_t n_local = rows_per_expert_.size();
  std::int32_t row = 0;  // of the grouped order
  for (std::size_t local = 0; local < n_local; ++local) {
    for (std::size_t cell = local; cell < arriving_.size(); cell += n_local) {
      if (arriving_[cell] > 0 && begins[cell] != row) return false;
      row += arriving_[cell];
    }
  }
  return true;
}

std::vector<std::int32_t> ExchangePlan::group_order() const {
  const std::vector<std::int32_t> begins = arrived_begins();
  const std::size_t n_local = rows_per_expert_.size();
  std::vector<std::int32_t> order(index(n_receive_));
  auto next = order.begin();
  for (std::size_t local = 0; local < n_local; ++local) {
    for (std::size_t cell = local; cell < arriving_.size(); cell += n_local) {
      const auto end = next + arriving_[cell];
      std::iota(next, end, begins[cell]);
      next = end;
    }
  }
  return order;
}

}  // namespace switchyard
