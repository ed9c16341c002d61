#include "parallel/bf16.h"

#include <bit>
#include <cstdint>

namespace switchyard {
namespace {

constexpr std::uint32_t kFloatInfinity = 0x7f800000U;
constexpr std::uint32_t kHalfOverflow = 0x47800000U;        // 2^16 as binary32
constexpr std::uint32_t kHalfSmallestNormal = 0x38800000U;  // 2^-14
constexpr std::uint32_t kExponentShift = (127U - 15U) << 23U;
constexpr std::uint32_t kHalfInfinity = 0x7c00U;

}  // namespace

std::uint16_t to_half_bits(float value) {
  const auto word = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t sign = (word >> 16U) & 0x8000U;
  const std::uint32_t magnitude = word & 0x7fffffffU;
  std::uint32_t half = 0;
  if (magnitude > kFloatInfinity) {
    half = kHalfInfinity | 0x200U | ((magnitude >> 13U) & 0x3ffU);
  } else if (magnitude >= kHalfOverflow) {
    half = kHalfInfinity;
  } else if (magnitude < kHalfSmallestNormal) {
    // 0.5f has the spacing of half's subnormals, 2^-24, so the addition rounds to them.
    half = std::bit_cast<std::uint32_t>(std::bit_cast<float>(magnitude) + 0.5F) - std::bit_cast<std::uint32_t>(0.5F);
  } else {
    // The carry may reach the exponent, and from 65520 on gives infinity, as it should.
    half = (magnitude - kExponentShift + 0xfffU + ((magnitude >> 13U) & 1U)) >> 13U;
  }
  return static_cast<std::uint16_t>(sign | half);
}

float from_half_bits(std::uint16_t bits) {
  const std::uint32_t sign = (bits & 0x8000U) << 16U;
  const std::uint32_t magnitude = bits & 0x7fffU;
  std::uint32_t word = 0;
  if (magnitude >= kHalfInfinity) {
    word = kFloatInfinity | (magnitude << 13U);
  } else if (magnitude < 0x400U) {
    word = std::bit_cast<std::uint32_t>(static_cast<float>(magnitude) * 0x1p-24F);
  } else {
    word = (magnitude << 13U) + kExponentShift;
  }
  return std::bit_cast<float>(sign | word);
}

void from_half_bits(std::span<const std::uint16_t> bits, std::span<float> values) {
  const std::uint16_t* const from = bits.data();
  float* const to = values.data();
#pragma omp simd
  for (std::size_t i = 0; i < bits.size(); ++i) {
    // Half's exponent and mantissa in binary32's places are the value over 2^112, subnormals too.
    const std::uint32_t magnitude = from[i] & 0x7fffU;
    const auto scaled = std::bit_cast<std::uint32_t>(std::bit_cast<float>(magnitude << 13U) * 0x1p112F);
    const std::uint32_t special = magnitude >= kHalfInfinity ? kFloatInfinity : 0U;
    to[i] = std::bit_cast<float>((static_cast<std::uint32_t>(from[i] & 0x8000U) << 16U) | scaled | special);
  }
}

}  // namespace switchyard
