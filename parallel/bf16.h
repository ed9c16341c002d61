#pragma once

#include <bit>
#include <cstdint>
#include <span>

namespace switchyard {

/// bfloat16 as stored: the upper half of an IEEE binary32.
struct Bf16 {
  std::uint16_t bits = 0;

  Bf16() = default;
  /// Round to nearest, ties to even; NaN stays NaN.
  explicit Bf16(float value) {
    const auto word = std::bit_cast<std::uint32_t>(value);
    const bool nan = (word & 0x7fffffffU) > 0x7f800000U;
    bits = static_cast<std::uint16_t>(nan ? (word >> 16U) | 0x40U : (word + 0x7fffU + ((word >> 16U) & 1U)) >> 16U);
  }
  explicit operator float() const { return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16U); }
};

/// IEEE binary16 bits of a float, round to nearest even (overflow gives infinity, NaN stays NaN), and back.
std::uint16_t to_half_bits(float value);
float from_half_bits(std::uint16_t bits);
/// Of as many values.
void from_half_bits(std::span<const std::uint16_t> bits, std::span<float> values);

}  // namespace switchyard
