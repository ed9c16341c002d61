#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace switchyard {

/// The most frequent top-1 paths: for each token the first-choice expert of every MoE layer. A Misra-Gries summary
/// (misra_gries.h): exact while no more than `capacity` distinct paths
/// were seen; beyond that each kept count is at most `undercount()` too low, and undercount() <= paths seen / (capacity
/// + 1).
class PathSketch {
 public:
  struct Entry {
    std::vector<std::uint16_t> experts;  // [L] top-1 expert of each MoE layer
    std::uint64_t count = 0;
  };

  PathSketch() = default;
  PathSketch(std::size_t length, std::size_t capacity) : length_(length), capacity_(capacity) {}

  /// experts: [L].
  void add(std::span<const std::uint16_t> experts, std::uint64_t count = 1);
  void merge(const PathSketch& other);
  /// Memory for so many different paths at once, before they are added.
  void make_room(std::size_t paths);
  /// Keeps at most `capacity` entries; what that takes off every count is added to undercount().
  void compact();
  /// By count descending, ties by path ascending; a path's true count lies in [count, count + undercount()].
  std::vector<Entry> entries() const;
  std::uint64_t undercount() const { return undercount_; }
  std::size_t length() const { return length_; }
  std::size_t capacity() const { return capacity_; }
  /// For reading a stored sketch.
  void set_undercount(std::uint64_t undercount) { undercount_ = undercount; }

 private:
  struct Slot {
    std::uint64_t hash = 0;
    std::uint64_t count = 0;  // 0: empty
  };
  std::size_t find(std::span<const std::uint16_t> experts, std::uint64_t hash) const;

  std::size_t length_ = 0;
  std::size_t capacity_ = 0;
  std::size_t used_ = 0;
  std::uint64_t undercount_ = 0;
  std::vector<Slot> slots_;             // open addressing, a power of two
  std::vector<std::uint16_t> experts_;  // [slots, L]
};

}  // namespace switchyard
