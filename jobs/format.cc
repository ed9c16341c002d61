#include "jobs/format.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>

namespace switchyard {
namespace {

template <typename... Values>
std::string print(const char* format, Values... values) {
  std::array<char, 64> text{};
  std::snprintf(text.data(), text.size(), format, values...);
  return text.data();
}

}  // namespace

std::string with_commas(std::uint64_t number) {
  const std::string digits = std::to_string(number);
  std::string text;
  for (std::size_t i = 0; i < digits.size(); ++i) {
    if (i > 0 && (digits.size() - i) % 3 == 0) text += ',';
    text += digits[i];
  }
  return text;
}

std::string as_bytes_text(double bytes) {
  constexpr std::array<const char*, 6> kUnits = {"B", "KiB", "MiB", "GiB", "TiB", "PiB"};
  std::size_t unit = 0;
  while (bytes >= 1024 && unit + 1 < kUnits.size()) {
    bytes /= 1024;
    ++unit;
  }
  return print(unit == 0 ? "%.0f %s" : "%.1f %s", bytes, kUnits[unit]);
}

std::string as_duration(double seconds) {
  if (!std::isfinite(seconds)) return "unknown";
  if (seconds < 60) return print("%.1f s", seconds);
  const auto whole = static_cast<std::int64_t>(std::llround(seconds));
  if (whole < 3600) return print("%d min %02d s", static_cast<int>(whole / 60), static_cast<int>(whole % 60));
  return print("%d h %02d min", static_cast<int>(whole / 3600), static_cast<int>(whole / 60 % 60));
}

std::string as_ranges(const std::vector<int>& numbers) {
  std::string text;
  for (std::size_t first = 0; first < numbers.size();) {
    std::size_t last = first;
    while (last + 1 < numbers.size() && numbers[last + 1] == numbers[last] + 1) ++last;
    text.append(text.empty() ? "" : ",").append(std::to_string(numbers[first]));
    if (last > first) text.append("-").append(std::to_string(numbers[last]));
    first = last + 1;
  }
  return text;
}

std::string as_bars(const std::vector<std::uint64_t>& numbers) {
  constexpr std::array<const char*, 8> kBlocks = {"▁", "▂", "▃", "▄", "▅", "▆", "▇", "█"};
  std::uint64_t largest = 1;
  for (const std::uint64_t number : numbers) largest = std::max(largest, number);
  std::string text;
  for (const std::uint64_t number : numbers)
    text += number == 0 ? " " : kBlocks[std::min<std::uint64_t>(7, number * 8 / largest)];
  return text;
}

}  // namespace switchyard
