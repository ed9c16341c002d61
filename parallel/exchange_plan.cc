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

/// [n_experts] place of each expert in the order by rank, then id.
std::vector<std::int32_t> position_of_expert(const LayerPlacement& placement) {
  std::vector<std::int32_t> position(index(placement.n_experts()));
  std::int32_t next = 0;
  for (int rank = 0; rank < placement.n_ranks(); ++rank) {
    for (const std::int32_t expert : placement.experts_of(rank)) position[index(expert)] = next++;
  }
  return position;
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

std::vector<std::int32_t> ExchangePlan::rows_by_expert(ExpertIds ids, const LayerPlacement& placement) {
  check_shape(ids);
  const std::vector<std::int32_t> position = position_of_expert(placement);
  std::vector<std::int32_t> rows(position.size());
  for (const std::int32_t id : ids.ids) {
    if (static_cast<std::uint32_t>(id) >= position.size()) throw_unplaced(ids, placement);
    ++rows[index(position[index(id)])];
  }
  return rows;
}

ExchangePlan ExchangePlan::make(ExpertIds ids, const LayerPlacement& placement, const Communicator& comm) {
  const int n_ranks = placement.n_ranks();
  if (n_ranks != comm.size()) {
    throw Error("the placement is for " + std::to_string(n_ranks) + " ranks, the communicator has " +
                std::to_string(comm.size()));
  }
  // Ranks may hold different numbers of experts: each one's counts are padded to the longest list.
  std::size_t width = 0;
  for (int rank = 0; rank < n_ranks; ++rank) width = std::max(width, placement.experts_of(rank).size());
  std::vector<std::int32_t> outgoing(index(n_ranks) * width);
  std::vector<std::int32_t> incoming(outgoing.size());
  std::vector<std::int32_t> rows = rows_by_expert(ids, placement);
  auto next = rows.begin();
  for (int rank = 0; rank < n_ranks; ++rank) {
    const auto n_experts = static_cast<std::ptrdiff_t>(placement.experts_of(rank).size());
    std::copy(next, next + n_experts, outgoing.begin() + static_cast<std::ptrdiff_t>(index(rank) * width));
    next += n_experts;
  }
  comm.all_to_all(outgoing, incoming);

  const std::size_t n_local = placement.experts_of(comm.rank()).size();
  std::vector<std::int32_t> arriving;
  arriving.reserve(index(n_ranks) * n_local);
  for (int rank = 0; rank < n_ranks; ++rank) {
    const auto row = std::span(incoming).subspan(index(rank) * width, n_local);
    arriving.insert(arriving.end(), row.begin(), row.end());
  }
  return {ids, placement, comm.rank(), arriving, std::move(rows)};
}

ExchangePlan::ExchangePlan(ExpertIds ids, const LayerPlacement& placement, int rank,
                           std::span<const std::int32_t> arriving)
    : ExchangePlan(ids, placement, rank, arriving, rows_by_expert(ids, placement)) {}

ExchangePlan::ExchangePlan(ExpertIds ids, const LayerPlacement& placement, int rank,
                           std::span<const std::int32_t> arriving, std::vector<std::int32_t> send_counts)
    : rank_(rank),
      send_rows_(index(placement.n_ranks())),
      receive_rows_(index(placement.n_ranks())),
      rows_per_expert_(placement.experts_of(rank).size()),
      pack_order_(ids.ids.size()) {
  const std::size_t n_local = rows_per_expert_.size();
  if (arriving.size() != receive_rows_.size() * n_local) {
    throw Error(std::to_string(arriving.size()) + " arriving counts for " + std::to_string(receive_rows_.size()) +
                " ranks and " + std::to_string(n_local) + " local experts");
  }

  // A counting sort of the slots by expert position: next[p] is where the next slot of position p goes.
  const std::vector<std::int32_t> position = position_of_expert(placement);
  std::vector<std::int32_t>& next = send_counts;
  for (int expert = 0; expert < placement.n_experts(); ++expert) {
    send_rows_[index(placement.rank_of(expert))] += next[index(position[index(expert)])];
  }
  std::exclusive_scan(next.begin(), next.end(), next.begin(), std::int32_t{0});
  const auto n_slots = static_cast<std::int32_t>(ids.ids.size());
  for (std::int32_t slot = 0; slot < n_slots; ++slot) {
    pack_order_[index(next[index(position[index(ids.ids[index(slot)])])]++)] = slot;
  }

  // arrived_begin[r, l]: first arrived row from source rank r for local expert l.
  std::vector<std::int32_t> arrived_begin(arriving.size());
  std::int64_t n_receive = 0;
  for (std::size_t i = 0; i < arriving.size(); ++i) {
    arrived_begin[i] = static_cast<std::int32_t>(n_receive);
    receive_rows_[i / n_local] += arriving[i];
    rows_per_expert_[i % n_local] += arriving[i];
    n_receive += arriving[i];
    if (arriving[i] < 0 || n_receive > std::numeric_limits<std::int32_t>::max()) {
      throw Error(
          std::to_string(n_receive) + " rows arrive on rank " + std::to_string(rank) + ", outside of 0 ... 2^31 - 1",
          {}, "use smaller batches");
    }
  }
  group_order_.reserve(index(n_receive));
  for (std::size_t local = 0; local < n_local; ++local) {
    for (std::size_t source = 0; source < receive_rows_.size(); ++source) {
      const std::size_t cell = source * n_local + local;
      const auto begin = static_cast<std::ptrdiff_t>(group_order_.size());
      group_order_.resize(group_order_.size() + index(arriving[cell]));
      std::iota(group_order_.begin() + begin, group_order_.end(), arrived_begin[cell]);
    }
  }
}

}  // namespace switchyard
