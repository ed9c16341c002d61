#include "parallel/bf16.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <vector>

namespace switchyard {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

/// What binary16 bits mean, by the definition of the format.
double half_value(std::uint32_t bits) {
  const int exponent = static_cast<int>((bits >> 10U) & 31U);
  const double fraction = (bits & 1023U) / 1024.0;
  const double magnitude = exponent == 0 ? std::ldexp(fraction, -14) : std::ldexp(1.0 + fraction, exponent - 15);
  return (bits & 0x8000U) != 0 ? -magnitude : magnitude;
}

TEST(HalfTest, EveryFiniteValueWidensExactlyAndComesBack) {
  int compared = 0;
  for (std::uint32_t bits = 0; bits < 0x10000U; ++bits) {
    if ((bits & 0x7c00U) == 0x7c00U) continue;
    const float value = from_half_bits(static_cast<std::uint16_t>(bits));
    ASSERT_EQ(static_cast<double>(value), half_value(bits)) << bits;
    ASSERT_EQ(std::signbit(value), (bits & 0x8000U) != 0) << bits;
    ASSERT_EQ(to_half_bits(value), bits);
    ++compared;
  }
  EXPECT_EQ(compared, 2 * 31 * 1024);
}

TEST(HalfTest, BetweenNeighboursRoundsToNearestAndTiesToEven) {
  int compared = 0;
  for (std::uint32_t low = 0; low < 0x7bffU; ++low) {
    const std::uint32_t high = low + 1;
    // Half has 11 bits of precision, so that the middle of two neighbours is exact in a float.
    const auto middle = static_cast<float>((half_value(low) + half_value(high)) / 2);
    const std::uint32_t even = (low & 1U) == 0 ? low : high;
    ASSERT_EQ(to_half_bits(middle), even) << low;
    ASSERT_EQ(to_half_bits(std::nextafter(middle, 0.0F)), low);
    ASSERT_EQ(to_half_bits(std::nextafter(middle, kInfinity)), high);
    ASSERT_EQ(to_half_bits(-middle), even | 0x8000U);
    ++compared;
  }
  EXPECT_EQ(compared, 0x7bff);
}

TEST(HalfTest, OutOfRangeGivesInfinityOrZero) {
  EXPECT_EQ(to_half_bits(65504.0F), 0x7bff);
  EXPECT_EQ(to_half_bits(std::nextafter(65520.0F, 0.0F)), 0x7bff);
  EXPECT_EQ(to_half_bits(65520.0F), 0x7c00);
  EXPECT_EQ(to_half_bits(-65536.0F), 0xfc00);
  EXPECT_EQ(to_half_bits(70000.0F), 0x7c00);
  EXPECT_EQ(to_half_bits(-131071.0F), 0xfc00);
  EXPECT_EQ(to_half_bits(std::numeric_limits<float>::max()), 0x7c00);
  EXPECT_EQ(to_half_bits(kInfinity), 0x7c00);
  EXPECT_EQ(to_half_bits(std::numeric_limits<float>::denorm_min()), 0x0000);
  EXPECT_EQ(to_half_bits(-0.0F), 0x8000);
  EXPECT_EQ(to_half_bits(0x1p-25F), 0x0000);  // half of the smallest subnormal: a tie, to even
  EXPECT_EQ(to_half_bits(0x1.8p-25F), 0x0001);
  EXPECT_EQ(from_half_bits(0x7c00), kInfinity);
  EXPECT_EQ(from_half_bits(0xfc00), -kInfinity);
}

TEST(HalfTest, NanStaysNan) {
  int compared = 0;
  for (const std::uint32_t word : {0x7f800001U, 0x7fc00000U, 0x7fffffffU, 0xff800001U, 0x7f801000U}) {
    const std::uint16_t half = to_half_bits(std::bit_cast<float>(word));
    EXPECT_GT(half & 0x7fffU, 0x7c00U) << word;
    EXPECT_EQ(half >> 15U, word >> 31U);
    ++compared;
  }
  for (std::uint32_t bits = 0x7c01U; bits < 0x8000U; ++bits) {
    ASSERT_TRUE(std::isnan(from_half_bits(static_cast<std::uint16_t>(bits)))) << bits;
    ++compared;
  }
  EXPECT_EQ(compared, 5 + 1023);
}

TEST(HalfTest, ManyAtOnceEqualOneByOne) {
  std::vector<std::uint16_t> bits(1 << 16);
  std::iota(bits.begin(), bits.end(), std::uint16_t{0});
  std::vector<float> values(bits.size());
  from_half_bits(bits, values);
  int compared = 0;
  for (const std::uint16_t half : bits) {
    const float one = from_half_bits(half);
    if (std::isnan(one))
      ASSERT_TRUE(std::isnan(values[half])) << half;
    else
      ASSERT_EQ(std::bit_cast<std::uint32_t>(values[half]), std::bit_cast<std::uint32_t>(one)) << half;
    ++compared;
  }
  EXPECT_EQ(compared, 1 << 16);
}

float bf16_value(std::uint32_t bits) { return std::bit_cast<float>(bits << 16U); }

TEST(Bf16Test, BetweenNeighboursRoundsToNearestAndTiesToEven) {
  int compared = 0;
  for (std::uint32_t low = 0; low < 0x7f7fU; ++low) {
    const std::uint32_t middle = (low << 16U) + 0x8000U;
    ASSERT_EQ(Bf16(bf16_value(low)).bits, low);
    ASSERT_EQ(static_cast<float>(Bf16(bf16_value(low))), bf16_value(low));
    ASSERT_EQ(Bf16(std::bit_cast<float>(middle)).bits, (low & 1U) == 0 ? low : low + 1);
    ASSERT_EQ(Bf16(std::bit_cast<float>(middle - 1)).bits, low);
    ASSERT_EQ(Bf16(std::bit_cast<float>(middle + 1)).bits, low + 1);
    ++compared;
  }
  EXPECT_EQ(compared, 0x7f7f);
}

TEST(Bf16Test, OverflowInfinityAndNan) {
  EXPECT_EQ(Bf16(std::numeric_limits<float>::max()).bits, 0x7f80);
  EXPECT_EQ(Bf16(-kInfinity).bits, 0xff80);
  EXPECT_EQ(Bf16(-0.0F).bits, 0x8000);
  for (const std::uint32_t word : {0x7f800001U, 0x7fffffffU, 0xffffffffU}) {
    EXPECT_TRUE(std::isnan(static_cast<float>(Bf16(std::bit_cast<float>(word))))) << word;
  }
}

}  // namespace
}  // namespace switchyard
