#include "pipeline/analysis/path_sketch.h"

#include <algorithm>
#include <utility>

#include "pipeline/analysis/misra_gries.h"

namespace switchyard {
namespace {

std::uint64_t hash_of(std::span<const std::uint16_t> experts) {
  std::uint64_t h = 0x9e3779b97f4a7c15ULL;
  for (const std::uint16_t e : experts) {
    h = (h ^ e) * 0xff51afd7ed558ccdULL;
    h ^= h >> 32U;
  }
  return h;
}

}  // namespace

std::size_t PathSketch::find(std::span<const std::uint16_t> experts, std::uint64_t hash) const {
  const std::size_t mask = slots_.size() - 1;
  std::size_t at = hash & mask;
  while (slots_[at].count != 0 &&
         !(slots_[at].hash == hash &&
           std::equal(experts.begin(), experts.end(), experts_.begin() + static_cast<std::ptrdiff_t>(at * length_))))
    at = (at + 1) & mask;
  return at;
}

void PathSketch::add(std::span<const std::uint16_t> experts, std::uint64_t count) {
  if (length_ == 0 || count == 0) return;
  if (2 * (used_ + 1) > slots_.size()) make_room(used_ + 1);
  const std::uint64_t hash = hash_of(experts);
  const std::size_t at = find(experts, hash);
  if (slots_[at].count == 0) {
    slots_[at].hash = hash;
    std::copy(experts.begin(), experts.end(), experts_.begin() + static_cast<std::ptrdiff_t>(at * length_));
    ++used_;
  }
  slots_[at].count += count;
  // Twice the capacity before compacting: the cost is spread over as many new paths as it keeps.
  if (used_ > 2 * capacity_) compact();
}

void PathSketch::merge(const PathSketch& other) {
  undercount_ += other.undercount_;
  make_room(std::max(used_, other.used_));
  for (std::size_t i = 0; i < other.slots_.size(); ++i)
    if (other.slots_[i].count > 0) add(std::span(other.experts_).subspan(i * length_, length_), other.slots_[i].count);
}

void PathSketch::make_room(std::size_t paths) {
  std::size_t size = std::max<std::size_t>(64, slots_.size());
  while (2 * paths > size) size *= 2;
  if (size == slots_.size()) return;
  const std::vector<Slot> old_slots = std::move(slots_);
  const std::vector<std::uint16_t> old_experts = std::move(experts_);
  slots_.assign(size, {});
  experts_.assign(size * length_, 0);
  for (std::size_t i = 0; i < old_slots.size(); ++i) {
    if (old_slots[i].count == 0) continue;
    const std::span<const std::uint16_t> experts = std::span(old_experts).subspan(i * length_, length_);
    const std::size_t at = find(experts, old_slots[i].hash);
    slots_[at] = old_slots[i];
    std::copy(experts.begin(), experts.end(), experts_.begin() + static_cast<std::ptrdiff_t>(at * length_));
  }
}

void PathSketch::compact() {
  if (used_ <= capacity_) return;
  std::vector<std::uint64_t> counts;
  counts.reserve(used_);
  for (const Slot& slot : slots_)
    if (slot.count > 0) counts.push_back(slot.count);
  const std::uint64_t taken = misra_gries_cut(std::move(counts), capacity_);

  const std::vector<Slot> old_slots = std::move(slots_);
  const std::vector<std::uint16_t> old_experts = std::move(experts_);
  slots_.assign(old_slots.size(), {});
  experts_.assign(old_experts.size(), 0);
  used_ = 0;
  undercount_ += taken;
  for (std::size_t i = 0; i < old_slots.size(); ++i)
    if (old_slots[i].count > taken)
      add(std::span(old_experts).subspan(i * length_, length_), old_slots[i].count - taken);
}

std::vector<PathSketch::Entry> PathSketch::entries() const {
  std::vector<Entry> list;
  list.reserve(used_);
  for (std::size_t i = 0; i < slots_.size(); ++i) {
    if (slots_[i].count == 0) continue;
    const auto begin = experts_.begin() + static_cast<std::ptrdiff_t>(i * length_);
    list.push_back({{begin, begin + static_cast<std::ptrdiff_t>(length_)}, slots_[i].count});
  }
  std::sort(list.begin(), list.end(), [](const Entry& a, const Entry& b) {
    return a.count != b.count ? a.count > b.count : a.experts < b.experts;
  });
  return list;
}

}  // namespace switchyard
