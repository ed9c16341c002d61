#pragma once

#include <cstdint>
#include <vector>

#include "pipeline/analysis/sparse_counts.h"

namespace switchyard {

/// The most frequent cells of a table too large to hold: a Misra-Gries summary (misra_gries.h) that grows with what it
/// meets, up to bytes(capacity).
class FrequentCells {
 public:
  FrequentCells() = default;
  explicit FrequentCells(std::uint64_t capacity) : capacity_(capacity) {}

  void add(std::uint64_t cell, std::uint64_t count = 1);
  void merge(const FrequentCells& other);
  void clear();
  /// The kept cells, at most `capacity`. A cell's true count lies in [count, count + undercount()].
  SparseCounts counts();
  /// At most what was added over (capacity + 1); 0 while no more cells than `capacity` were met.
  std::uint64_t undercount() const { return undercount_; }

  /// Memory of a full one.
  static std::uint64_t bytes(std::uint64_t capacity);
  /// The largest capacity whose bytes() are no more than these, at least 15.
  static std::uint64_t capacity_within(std::uint64_t bytes);

 private:
  struct Slot {
    std::uint64_t cell = 0;
    std::uint64_t count = 0;  // 0: empty
  };
  Slot& find(std::uint64_t cell);
  /// The same counts, less `taken`, in a table of this many slots.
  void rebuild(std::size_t n_slots, std::uint64_t taken);
  void compact();

  std::uint64_t capacity_ = 0;
  std::uint64_t used_ = 0;
  std::uint64_t undercount_ = 0;
  int shift_ = 64;           // of a hash, to a slot
  std::vector<Slot> slots_;  // open addressing, a power of two, at most half full
};

}  // namespace switchyard
