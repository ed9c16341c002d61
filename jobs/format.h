#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace switchyard {

/// 1234567 -> "1,234,567".
std::string with_commas(std::uint64_t number);
/// 1536 -> "1.5 KiB".
std::string as_bytes_text(double bytes);
/// 3725 -> "1 h 02 min", 65 -> "1 min 05 s", 4.2 -> "4.2 s".
std::string as_duration(double seconds);
/// Ascending numbers as "0-3,8".
std::string as_ranges(const std::vector<int>& numbers);
/// A block a number, its height the number over the largest one's, e.g. "▃█ ▁"; a space for 0.
std::string as_bars(const std::vector<std::uint64_t>& numbers);

}  // namespace switchyard
