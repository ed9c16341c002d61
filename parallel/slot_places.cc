#include "parallel/slot_places.h"

#include <algorithm>
#include <cstddef>
#include <limits>
#include <numeric>
#include <string>

#include "parallel/error.h"

namespace switchyard {
namespace {

std::size_t index(std::int64_t value) { return static_cast<std::size_t>(value); }

[[noreturn]] void throw_unplaced(ExpertIds ids, const LayerPlacement& placement) {
  const auto bad = std::find_if(ids.ids.begin(), ids.ids.end(),
                                [&](std::int32_t id) { return id < 0 || id >= placement.n_experts(); });
  const std::int64_t token = (bad - ids.ids.begin()) / ids.top_k;
  throw Error("token " + std::to_string(token) + " chose expert " + std::to_string(*bad) + ", but the placement has " +
              std::to_string(placement.n_experts()));
}

}  // namespace

std::int64_t ExpertIds::n_tokens() const {
  if (top_k < 1 || ids.size() % index(top_k) != 0)
    throw Error(std::to_string(ids.size()) + " expert ids are not a multiple of top_k = " + std::to_string(top_k));
  if (ids.size() > index(std::numeric_limits<std::int32_t>::max()))
    throw Error(std::to_string(ids.size()) + " slots in one batch, more than 2^31 - 1", {}, "use smaller batches");
  return std::ssize(ids) / top_k;
}

std::pair<std::int64_t, std::int64_t> tokens_of_part(std::int64_t n_tokens, int part, int n_parts) {
  return {n_tokens * part / n_parts, n_tokens * (part + 1) / n_parts};
}

SlotPlaces::SlotPlaces(ExpertIds ids, std::pair<std::int64_t, std::int64_t> tokens, const LayerPlacement& placement,
                       int rank)
    : first_slot_(tokens.first * ids.top_k),
      place_(index((tokens.second - tokens.first) * ids.top_k)),
      rows_(index(placement.n_physical()), 0) {
  const bool one_copy_each = !placement.has_replicas();
  for (std::size_t i = 0; i < place_.size(); ++i) {
    const std::size_t slot = index(first_slot_) + i;
    const std::int32_t id = ids.ids[slot];
    if (static_cast<std::uint32_t>(id) >= static_cast<std::uint32_t>(placement.n_experts()))
      throw_unplaced(ids, placement);
    const int physical =
        one_copy_each ? id : placement.physical_for(id, static_cast<std::int64_t>(slot) / ids.top_k, rank);
    place_[i] = placement.place_of(physical);
    ++rows_[index(place_[i])];
  }
}

SlotPlaces::SlotPlaces(ExpertIds ids, const LayerPlacement& placement, int rank)
    : SlotPlaces(ids, {0, ids.n_tokens()}, placement, rank) {}

std::vector<std::int32_t> SlotPlaces::pack_order() const {
  // A counting sort: next[p] is where the next slot of place p goes.
  std::vector<std::int32_t> order(place_.size());
  std::vector<std::int32_t> next(rows_.size());
  std::exclusive_scan(rows_.begin(), rows_.end(), next.begin(), std::int32_t{0});
  for (std::size_t i = 0; i < place_.size(); ++i)
    order[index(next[index(place_[i])]++)] = static_cast<std::int32_t>(first_slot_ + static_cast<std::int64_t>(i));
  return order;
}

}  // namespace switchyard
