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

/// [n_physical] place of each physical expert in the order by rank, then expert.
std::vector<std::int32_t> place_of_physical(const LayerPlacement& placement) {
  std::vector<std::int32_t> first(index(placement.n_ranks()) + 1, 0);
  for (int rank = 0; rank < placement.n_ranks(); ++rank)
    first[index(rank) + 1] = first[index(rank)] + static_cast<std::int32_t>(placement.experts_of(rank).size());
  std::vector<std::int32_t> place(index(placement.n_physical()));
  for (int p = 0; p < placement.n_physical(); ++p)
    place[index(p)] = first[index(placement.rank_of(p))] + placement.local_index(p);
  return place;
}

void check_shape(ExpertIds ids) {
  if (ids.top_k < 1 || ids.ids.size() % index(ids.top_k) != 0) {
    throw Error(std::to_string(ids.ids.size()) +
                " expert ids are not a multiple of top_k = " + std::to_string(ids.top_k));
  }
  if (ids.ids.size() > index(std::numeric_limits<std::int32_t>::max())) {
    throw Error(std::to_string(ids.ids.size()) + " slots in one batch, more than 2^31 - 1", {}, "use smaller batches");
  }
}

[[noreturn]] void throw_unplaced(ExpertIds ids, const LayerPlacement& placement) {
  const auto bad = std::find_if(ids.ids.begin(), ids.ids.end(),
                                [&](std::int32_t id) { return id < 0 || id >= placement.n_experts(); });
  const std::int64_t token = (bad - ids.ids.begin()) / ids.top_k;
  throw Error("token " + std::to_string(token) + " chose expert " + std::to_string(*bad) + ", but the placement has " +
              std::to_string(placement.n_experts()));
}

}  // namespace

struct ExchangePlan::Sending {
  std::size_t first_slot;
  std::vector<std::int32_t> places;  // of each slot's physical expert
  std::vector<std::int32_t> rows;    // [n_physical] by place

  /// Of the tokens [first, end).
  Sending(ExpertIds ids, std::size_t first, std::size_t end, const LayerPlacement& placement, int rank)
      : first_slot(first * index(ids.top_k)),
        places((end - first) * index(ids.top_k)),
        rows(index(placement.n_physical()), 0) {
    const std::vector<std::int32_t> place_of = place_of_physical(placement);
    const bool one_copy_each = !placement.has_replicas();
    for (std::size_t i = 0; i < places.size(); ++i) {
      const std::size_t slot = first_slot + i;
      const std::int32_t id = ids.ids[slot];
      if (static_cast<std::uint32_t>(id) >= static_cast<std::uint32_t>(placement.n_experts()))
        throw_unplaced(ids, placement);
      const int physical =
          one_copy_each ? id : placement.physical_for(id, static_cast<std::int64_t>(slot) / ids.top_k, rank);
      places[i] = place_of[index(physical)];
      ++rows[index(places[i])];
    }
  }

  static Sending all(ExpertIds ids, const LayerPlacement& placement, int rank) {
    check_shape(ids);
    return {ids, 0, ids.ids.size() / index(ids.top_k), placement, rank};
  }
};

std::vector<std::int32_t> ExchangePlan::rows_by_expert(ExpertIds ids, const LayerPlacement& placement, int rank) {
  return Sending::all(ids, placement, rank).rows;
}

ExchangePlan ExchangePlan::make(ExpertIds ids, const LayerPlacement& placement, const Communicator& comm) {
  return std::move(make_parts(ids, 1, placement, comm).front());
}

std::vector<ExchangePlan> ExchangePlan::make_parts(ExpertIds ids, int n_parts, const LayerPlacement& placement,
                                                   const Communicator& comm) {
  const int n_ranks = placement.n_ranks();
  if (n_ranks != comm.size()) {
    throw Error("the placement is for " + std::to_string(n_ranks) + " ranks, the communicator has " +
                std::to_string(comm.size()));
  }
  check_shape(ids);
  const std::size_t parts = index(n_parts);
  const std::size_t n_tokens = ids.ids.size() / index(ids.top_k);
  std::vector<Sending> sending;
  for (std::size_t part = 0; part < parts; ++part)
    sending.push_back({ids, n_tokens * part / parts, n_tokens * (part + 1) / parts, placement, comm.rank()});

  // For each rank its counts of each part. Ranks may hold different numbers of experts: counts are padded to the
  // longest list.
  std::size_t width = 0;
  for (int rank = 0; rank < n_ranks; ++rank) width = std::max(width, placement.experts_of(rank).size());
  std::vector<std::int32_t> outgoing(index(n_ranks) * parts * width);
  std::vector<std::int32_t> incoming(outgoing.size());
  for (std::size_t part = 0; part < parts; ++part) {
    auto next = sending[part].rows.begin();
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
    plans.push_back({std::move(sending[part]), placement, comm.rank(), arriving});
  }
  return plans;
}

ExchangePlan::ExchangePlan(ExpertIds ids, const LayerPlacement& placement, int rank,
                           std::span<const std::int32_t> arriving)
    : ExchangePlan(Sending::all(ids, placement, rank), placement, rank, arriving) {}

ExchangePlan::ExchangePlan(Sending sending, const LayerPlacement& placement, int rank,
                           std::span<const std::int32_t> arriving)
    : rank_(rank),
      first_slot_(static_cast<std::int64_t>(sending.first_slot)),
      places_(std::move(sending.places)),
      rows_of_place_(std::move(sending.rows)),
      send_rows_(index(placement.n_ranks())),
      receive_rows_(index(placement.n_ranks())),
      rows_per_expert_(placement.experts_of(rank).size()),
      arriving_(arriving.begin(), arriving.end()) {
  const std::size_t n_local = rows_per_expert_.size();
  if (arriving.size() != receive_rows_.size() * n_local) {
    throw Error(std::to_string(arriving.size()) + " arriving counts for " + std::to_string(receive_rows_.size()) +
                " ranks and " + std::to_string(n_local) + " local experts");
  }
  auto rows = rows_of_place_.cbegin();
  for (int to = 0; to < placement.n_ranks(); ++to) {
    const auto end = rows + static_cast<std::ptrdiff_t>(placement.experts_of(to).size());
    send_rows_[index(to)] = std::accumulate(rows, end, std::int32_t{0});
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

std::vector<std::int32_t> ExchangePlan::pack_order() const {
  // A counting sort of the slots by place: next[p] is where the next slot of place p goes.
  std::vector<std::int32_t> order(places_.size());
  std::vector<std::int32_t> next(rows_of_place_.size());
  std::exclusive_scan(rows_of_place_.begin(), rows_of_place_.end(), next.begin(), std::int32_t{0});
  for (std::size_t i = 0; i < places_.size(); ++i)
    order[index(next[index(places_[i])]++)] = static_cast<std::int32_t>(first_slot_ + static_cast<std::int64_t>(i));
  return order;
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
