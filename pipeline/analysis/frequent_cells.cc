#include "pipeline/analysis/frequent_cells.h"

#include <algorithm>
#include <bit>
#include <utility>

#include "pipeline/analysis/misra_gries.h"

namespace switchyard {
namespace {

constexpr std::size_t kLeastSlots = 64;

/// Room for twice the capacity and one more, half full.
std::size_t most_slots(std::uint64_t capacity) { return std::bit_ceil(4 * capacity + 4); }

}  // namespace

std::uint64_t FrequentCells::bytes(std::uint64_t capacity) { return most_slots(capacity) * sizeof(Slot); }

std::uint64_t FrequentCells::capacity_within(std::uint64_t bytes) {
  return std::max(kLeastSlots, std::bit_floor(bytes / sizeof(Slot))) / 4 - 1;
}

FrequentCells::Slot& FrequentCells::find(std::uint64_t cell) {
  const std::size_t mask = slots_.size() - 1;
  std::size_t at = (cell * 0x9e3779b97f4a7c15ULL) >> shift_;  // Fibonacci hashing: the product's high bits
  while (slots_[at].count != 0 && slots_[at].cell != cell) at = (at + 1) & mask;
  return slots_[at];
}

void FrequentCells::add(std::uint64_t cell, std::uint64_t count) {
  if (count == 0) return;
  if (2 * (used_ + 1) > slots_.size()) rebuild(std::max(kLeastSlots, 2 * slots_.size()), 0);
  Slot& slot = find(cell);
  used_ += slot.count == 0 ? 1 : 0;
  slot.cell = cell;
  slot.count += count;
  // Twice the capacity before compacting: the cost is spread over as many new cells as it keeps.
  if (used_ > 2 * capacity_) compact();
}

void FrequentCells::merge(const FrequentCells& other) {
  undercount_ += other.undercount_;
  for (const Slot& slot : other.slots_) add(slot.cell, slot.count);
}

void FrequentCells::clear() {
  std::fill(slots_.begin(), slots_.end(), Slot{});
  used_ = 0;
  undercount_ = 0;
}

void FrequentCells::rebuild(std::size_t n_slots, std::uint64_t taken) {
  const std::vector<Slot> old = std::exchange(slots_, std::vector<Slot>(n_slots));
  shift_ = 64 - std::countr_zero(n_slots);
  used_ = 0;
  for (const Slot& slot : old) {
    if (slot.count <= taken) continue;
    find(slot.cell) = {slot.cell, slot.count - taken};
    ++used_;
  }
}

void FrequentCells::compact() {
  std::vector<std::uint64_t> counts;
  counts.reserve(used_);
  for (const Slot& slot : slots_)
    if (slot.count > 0) counts.push_back(slot.count);
  const std::uint64_t taken = misra_gries_cut(std::move(counts), capacity_);
  undercount_ += taken;
  rebuild(slots_.size(), taken);
}

SparseCounts FrequentCells::counts() {
  if (used_ > capacity_) compact();
  std::vector<Slot> kept;
  kept.reserve(used_);
  std::copy_if(slots_.begin(), slots_.end(), std::back_inserter(kept), [](const Slot& slot) { return slot.count > 0; });
  std::sort(kept.begin(), kept.end(), [](const Slot& a, const Slot& b) { return a.cell < b.cell; });
  SparseCounts counts;
  for (const Slot& slot : kept) counts.append(slot.cell, slot.count);
  return counts;
}

}  // namespace switchyard
